"""Behind `make run` and `make reload`: checks what can be checked before anything starts, runs
supervisord, and waits for its end. What people read meanwhile is in hookq/operate/narrate.py.

It makes the secrets of a first start, holds the lock on STATE_DIR, and tries both ports: a taken
one would end supervisord with a traceback. Then it waits for a signal, which it passes on, or for
supervisord to end.

Promises: when it ends, everything it started has ended. Does not promise to notice edits: host,
ports, numbers of processes and STATE_DIR are those of the start; the processes read everything else
again on HUP.
"""

import errno
import fcntl
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from hookq import daemon
from hookq.operate import supervisord
from hookq.operate.narrate import banner, describe_redis, follow, say
from hookq.settings import EX_SETTINGS, Invalid, Settings, load

PORT_WAIT_S = 15.0  # a stack that is just stopping needs a moment to let go
STOP_GRACE_S = 10  # beyond the longest timeout_s, before a worker is killed
SETTLED_S = 1.5  # after this long supervisord has started all its children
SLOW_S = 5.0  # a start that takes longer says what it is waiting for
READY_S = 60.0  # Redis reads its file first: a gigabyte takes about ten seconds
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SECRETS = ("WEBHOOK_SECRET", "DASHBOARD_PASSWORD")
# What supervisord.conf expands; the processes read all other settings themselves.
EXPORTED = (
    "host",
    "port",
    "ingest_processes",
    "workers",
    "state_dir",
    "redis_maxmemory",
    "dashboard_host",
    "dashboard_port",
)

Supervisor = subprocess.Popen[bytes]


def main() -> None:
    try:
        reload() if sys.argv[1:] == ["reload"] else run()
    except KeyboardInterrupt:  # before anything was started
        sys.exit(130)


def reload() -> None:
    """Make every process restart with the current settings. If those are wrong, say so and leave
    everything as it is.
    """
    settings = daemon.load_or_exit(lambda: load(root=daemon.root(), need=("DASHBOARD_PASSWORD",)))
    if problems := daemon.check_handlers(settings):
        daemon.refuse(problems)
    try:
        names = supervisord.reload_all(settings.state_dir)
    except supervisord.NoSupervisor as error:
        stop(f"webhookd does not run with STATE_DIR={settings.state_dir}: {error}.", 1)
    print(
        f"Told {', '.join(names)} to finish what they have and restart. A process that finds "
        "errors in its settings keeps the old ones and logs that."
    )


def run() -> None:
    root = daemon.root()
    os.chdir(root)
    generated = make_secrets(root)
    try:
        settings = load(root=root, need=("DASHBOARD_PASSWORD",))
    except Invalid as error:
        stop("\n".join(error.problems))
    lock = lock_state(settings.state_dir)
    for name, host, port in ports(settings):
        wait_for_port(name, host, port)
    supervisor = start(root, settings)
    stopping = forward_signals(supervisor)
    if ready(settings, supervisor, stopping):
        banner(settings, generated)
        follow(settings, lambda: supervisor.poll() is None)
    code = supervisor.wait()
    # Everything has ended well: one more Ctrl-C, while the interpreter ends, must not make it look
    # otherwise.
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    lock.close()
    if not stopping:
        log = settings.state_dir / "supervisord.log"
        stop(f"supervisord ended by itself with {code}: see {log}.", 1)


def stop(why: str, code: int = EX_SETTINGS) -> NoReturn:
    """End with a sentence."""
    print(why, file=sys.stderr)
    sys.exit(code)


# ---------------- prepare


def make_secrets(root: Path) -> dict[str, str]:
    """Write the secrets that are set nowhere into .env, readable by its owner only; return them."""
    try:
        settings = load(root=root, sources=False)
    except Invalid:
        return {}  # run() says what is wrong
    missing = [name for name in SECRETS if not getattr(settings, name.lower())]
    generated = {
        name: secrets.token_hex(32) if name == "WEBHOOK_SECRET" else secrets.token_urlsafe(12)
        for name in missing
    }
    if generated:
        try:
            _keep_secrets(root / ".env", generated)
        except OSError as error:
            stop(
                f"{' and '.join(generated)} are not set, and .env cannot be written "
                f"({error.strerror}): set them elsewhere, or as NAME_FILE."
            )
    return generated


def _keep_secrets(path: Path, generated: dict[str, str]) -> None:
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.fchmod(file, 0o600)  # the file may have been there already, readable by everybody
    # Each with a line end before it: a file written by hand may lack the last one.
    os.write(
        file, "".join(f"\n{name}={value}" for name, value in generated.items()).encode() + b"\n"
    )
    os.close(file)


def lock_state(folder: Path) -> Any:
    """Return the held lock on STATE_DIR: two instances in one would share a Redis file without
    knowing.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        stop(f"STATE_DIR {folder} cannot be used: {error.strerror}.")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        stop(
            f"webhookd runs already with STATE_DIR={folder}; for a second one set another "
            "STATE_DIR and other ports.",
            1,
        )
    return lock


def ports(settings: Settings) -> list[tuple[str, str, int]]:
    page = ("DASHBOARD_PORT", settings.dashboard_host, settings.dashboard_port)
    return [("PORT", settings.host, settings.port), page] if settings.ingest_processes else [page]


def wait_for_port(name: str, host: str, port: int) -> None:
    """Return once host:port can be bound."""
    end, waiting = time.monotonic() + PORT_WAIT_S, False
    while True:
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
                # Binding alone succeeds alongside another socket that was bound with SO_REUSEADDR.
                probe.listen(1)
                return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # waiting would not help
                stop(
                    f"{host}:{port} cannot be listened on ({error.strerror}): set "
                    f"{name.replace('PORT', 'HOST')} or {name} to what can."
                )
            if time.monotonic() > end:
                stop(f"{host}:{port} is taken by another program: set {name} to a free port.")
            if not waiting:
                waiting = True
                say(f"Waiting for {host}:{port}, which is taken by another program …")
        time.sleep(0.2)


# ---------------- watch


def start(root: Path, settings: Settings) -> Supervisor:
    """Start supervisord with what supervisord.conf expands; it ends with us, however we end."""
    exported = {name.upper(): str(getattr(settings, name)) for name in EXPORTED}
    longest_s = max((source.timeout_s for source in settings.sources.values()), default=0)
    exported["WORKER_STOP_S"] = str(int(longest_s + STOP_GRACE_S))
    exported["REDIS_EMBEDDED"] = "1" if settings.redis_embedded else "0"
    # Passed on only where the environment set it: an exported default would outrank later edits.
    # Made absolute: children would resolve a relative path against another folder.
    if os.environ.get("WEBHOOKS_FILE"):
        exported["WEBHOOKS_FILE"] = str(settings.webhooks_file.absolute())
    packages = {"setpriv": "util-linux"}
    packages |= {"redis-server": "redis-server"} if settings.redis_embedded else {}
    for tool, package in packages.items():
        if not shutil.which(tool):
            stop(f"{tool} is not installed: type `apt-get install {package}`, or set REDIS_URL.")
    command = [str(root / ".venv/bin/supervisord"), "-n", "-c", str(root / "supervisord.conf")]
    # A group of its own: Ctrl-C reaches us only, and we pass on one TERM.
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *command],
        env={**os.environ, **exported},
        stdin=subprocess.DEVNULL,
        process_group=0,
    )


def forward_signals(supervisor: Supervisor) -> list[int]:
    """Pass TERM, INT and HUP (the terminal was closed) on as one TERM; return the list of those
    that came.
    """
    stopping: list[int] = []
    started = time.monotonic()

    def forward(number: int, _frame: object) -> None:
        if not stopping:
            say("Stopping: the job in hand is finished first.")
        stopping.append(number)
        # A child that supervisord has only just forked would lose its TERM, and cost its whole
        # stopwaitsecs.
        time.sleep(max(0.0, started + SETTLED_S - time.monotonic()))
        supervisor.terminate()

    for number in STOPS:
        signal.signal(number, forward)
    return stopping


def ready(settings: Settings, supervisor: Supervisor, stopping: list[int]) -> bool:
    """Tell whether ingestion and dashboard answer within the limit; say what does not."""
    started, explained = time.monotonic(), False
    while time.monotonic() < started + READY_S and supervisor.poll() is None and not stopping:
        late = [f"{host}:{port}" for _, host, port in ports(settings) if not answers(host, port)]
        if not late:
            return True
        if not explained and time.monotonic() > started + SLOW_S:
            explained = True
            why = describe_redis(settings)[1] or [f"see the logs in {settings.state_dir}."]
            say(f"Still waiting for {' and '.join(late)}: {why[0]}")
        time.sleep(0.1)
    if supervisor.poll() is None and not stopping:
        logs = f"see the logs in {settings.state_dir}"
        say(f"Not ready after {READY_S:g} s, and still trying: {logs}.")
    return False


def answers(host: str, port: int) -> bool:
    host = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
