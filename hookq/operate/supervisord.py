"""Asks supervisord which processes run, and passes signals on: XML-RPC over its unix socket.

The socket's mode (0700) is the guard; user and password only silence supervisord's warning.
Promises: an answer within LIMIT_S, or NoSupervisor with a sentence.
"""

import http.client
import socket
import xmlrpc.client
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.parsers.expat import ExpatError

LIMIT_S: Final = 2.0
OURS: Final = ("webhookd", "worker", "dashboard")


class NoSupervisor(Exception):
    """supervisord cannot be asked; the message says why."""


class Program(NamedTuple):
    """One process as supervisord sees it. `state` is its word (RUNNING, FATAL, …), `since` unix
    seconds.
    """

    name: str
    state: str
    pid: int
    since: int
    now: int
    spawn_error: str


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        _, self._extra_headers, _ = self.get_host_info(host)
        connection = http.client.HTTPConnection("localhost", timeout=LIMIT_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(LIMIT_S)
        self._connection = host, connection  # so that close() finds it
        connection.sock.connect(str(self.path))
        return connection


def _ask(state_dir: Path, method: str, *args: Any) -> Any:
    path = state_dir / "supervisor.sock"
    try:
        with closing(_Transport(path)) as transport:
            server = xmlrpc.client.ServerProxy(
                "http://operator:local@localhost", transport=transport
            )
            return getattr(server.supervisor, method)(*args)
    except xmlrpc.client.Fault:
        raise
    except (OSError, http.client.HTTPException, xmlrpc.client.Error, ExpatError) as error:
        why = getattr(error, "strerror", None) or repr(error)
        raise NoSupervisor(f"supervisord does not answer on {path} ({why})") from None


def programs(state_dir: Path) -> list[Program]:
    """Return every process that supervisord looks after, by name. Raises NoSupervisor."""
    return sorted(_program(row) for row in _ask(state_dir, "getAllProcessInfo"))


def _program(row: dict[str, Any]) -> Program:
    name = row["name"] if row["name"] == row["group"] else f"{row['group']}:{row['name']}"
    return Program(name, row["statename"], row["pid"], row["start"], row["now"], row["spawnerr"])


def reload_all(state_dir: Path) -> list[str]:
    """Send HUP to each of our processes that runs, and start those that ended on wrong settings;
    return their names. Raises NoSupervisor.
    """
    names = []
    for program in programs(state_dir):
        if program.name.split(":")[0] not in OURS:
            continue
        try:
            if program.state == "RUNNING":
                _ask(state_dir, "signalProcess", program.name, "HUP")
            elif program.state in ("EXITED", "FATAL"):
                _ask(state_dir, "startProcess", program.name, False)
            else:
                continue
        except xmlrpc.client.Fault:
            # It has just ended, or started: either way it reads the current settings.
            continue
        names.append(program.name)
    return names
