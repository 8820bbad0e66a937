"""The life of a daemon: its signals, and starting anew in place.

TERM and INT: finish what is in hand, then end. HUP: check the new settings, finish, then start anew
(exec) with the same process id and the same inherited socket. Handlers only set flags; the loops
look at them.
"""

import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from hookq import config, log
from hookq.link import Away
from hookq.store import Store

_HUP: Final = {signal.SIGHUP}
CHECK_S: Final = 30.0  # for a check of the settings: it imports the handlers and all that they need


class Signals:
    """What was asked of this process. `wake` may be set: the handler calls it to end a wait, so it
    must not block.
    """

    def __init__(self) -> None:
        self.stop = self.reload = False
        self.wake: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._noted)
        # HUP came in ignored (supervisord.conf) or blocked (reexec): before this line it would have
        # killed us. One that came meanwhile is delivered now, before the settings are read: nothing
        # it announced is missed.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HUP)

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self.stop = True
        self.wake()

    @property
    def asked(self) -> bool:
        return self.stop or self.reload


def load_or_exit(load: Callable[[], config.Config], *, check: bool = False) -> config.Config:
    """Return the settings; wrong ones are told, one line each, and end the process with 78.
    `check`: end it with 0 else.
    """
    try:
        settings = load()
        if check:
            print(
                "The settings are good. Sources: "
                f"{', '.join(sorted(settings.sources)) or 'not needed here'}."
            )
            sys.exit(0)
        return settings
    except config.Invalid as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(config.EX_SETTINGS)


def settings_hold() -> bool:
    """Tell whether this program would start with the settings of now, by trying it in a process of
    its own.

    Here it would prove nothing: the handlers, and all that they import, are loaded already.
    """
    command = [sys.executable, *sys.orig_argv[1:], "--check"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHECK_S,
            check=False,
        )
        problems = done.stderr.splitlines() if done.returncode else []
    except (OSError, subprocess.SubprocessError) as error:
        problems = [f"the settings cannot be checked: {error}"]
    if problems:
        log.event("settings.refused", "error", problems=problems, then="going on with the old ones")
    return not problems


def reload_wanted(signals: Signals) -> bool:
    """Tell whether to start anew now: not with settings that would only end the new process."""
    if not signals.reload or signals.stop:
        return False
    signals.reload = False  # before reading: a HUP that comes meanwhile means another reading
    signals.reload = settings_hold() or signals.reload
    return signals.reload


def in_background(work: Callable[..., None], *args: object) -> None:
    """Run `work` in a thread that nobody waits for; not at all where no thread can be had."""
    try:
        threading.Thread(target=work, args=args, daemon=True).start()
    except RuntimeError as error:
        log.event("thread.refused", "error", error=str(error))


def inherited_socket() -> socket.socket | None:
    """Return the listening socket supervisord has put on fd 0, or None when fd 0 is something
    else.
    """
    try:
        if stat.S_ISSOCK(Path("/dev/fd/0").stat().st_mode):
            sock = socket.socket(fileno=0)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return sock
            sock.detach()
    except OSError:
        pass
    return None


def reexec(listening: socket.socket | None = None) -> None:
    """Start this program anew in the same process; open files but 0, 1 and 2 are closed by the
    kernel. The next of us finds the listening socket where supervisord would put it, with those who
    wait in it.
    """
    log.event("process.reexec")
    if listening and listening.fileno():
        os.dup2(listening.fileno(), 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _HUP)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def boot_check(settings: config.Config, name: str) -> None:
    """Write a line about this Redis, and one for each of its settings that can lose jobs. Never a
    refusal.
    """
    try:
        store = Store(settings.redis_url, name)
        found, risks = store.health(settings.durability)
        store.close()
    except Away:
        return  # whoever needs it says so, again and again
    log.event("redis.check", **{key.replace("-", "_"): value for key, value in found.items()})
    for risk in risks:
        log.event("redis.risk", "warning", why=risk)


def name_of(kind: str) -> str:
    """Return a name unique to this start of this process: a consumer, and a client, is never
    mistaken for an older one.
    """
    return f"{kind}-{host()}-{os.getpid()}-{secrets.token_hex(4)}"


def host() -> str:
    """Return this machine's name, as names of processes have it."""
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())


def root() -> Path:
    """Return the folder of the programs, where .env and webhooks.toml are looked for."""
    return Path(__file__).resolve().parent.parent
