"""The life of a daemon: its signals, and starting anew in place.

TERM and INT: finish what is in hand, then end. HUP: check the new settings, finish, then start anew (exec) with the
same process id and the same inherited socket. Handlers only set flags; the loops look at them.
"""

import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

from hookq import config, log
from hookq.store import Away, Store

_HUP: Final = {signal.SIGHUP}


class Signals:
    """What was asked of this process. `wake` may be set: the handler calls it to end a wait, so it must not block."""

    def __init__(self) -> None:
        self.stop = self.reload = False
        self.wake: Callable[[], None] = lambda: None
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._noted)
        # HUP came in ignored (supervisord.conf) or blocked (reexec): before this line it would have killed us. One
        # that came meanwhile is delivered now, before the settings are read: nothing it announced is missed.
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


def load_or_exit(load: Callable[[], config.Config]) -> config.Config:
    """Return the settings; wrong ones are told, one line each, and end the process with 78."""
    try:
        return load()
    except config.Invalid as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(config.EX_SETTINGS)


def reload_wanted(signals: Signals, load: Callable[[], config.Config]) -> bool:
    """Tell whether to start anew now: not with settings that would only end the new process."""
    if not signals.reload or signals.stop:
        return False
    try:
        load()
    except config.Invalid as error:
        log.event("settings.refused", "error", problems=error.problems, then="going on with the old ones")
        signals.reload = False
        return False
    return True


def reexec() -> None:
    """Start this program anew in the same process; open files but 0, 1 and 2 are closed by the kernel."""
    log.event("process.reexec")
    signal.pthread_sigmask(signal.SIG_BLOCK, _HUP)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def boot_check(url: str, name: str) -> None:
    """Write a line about this Redis, and one for each of its settings that can lose jobs. Never a refusal."""
    try:
        store = Store(url, name)
        found, risks = store.health()
        store.close()
    except Away:
        return  # whoever needs it says so, again and again
    log.event("redis.check", **{key.replace("-", "_"): value for key, value in found.items()})
    for risk in risks:
        log.event("redis.risk", "warning", why=risk)


def name_of(kind: str) -> str:
    """Return a name unique to this start of this process: a consumer, and a client, is never mistaken for an older one."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())[:32]
    return f"{kind}-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def root() -> Path:
    """Return the folder of the programs, where .env and webhooks.toml are looked for."""
    return Path(__file__).resolve().parent.parent
