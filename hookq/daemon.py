"""The life of a daemon: its signals, and starting anew in place.

TERM and INT: finish what is in hand, then end. HUP: check the new settings, finish, then start anew
(exec) with the same process id and the same inherited socket. Handlers only set flags; the loops
look at them.
"""

import argparse
import contextlib
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from hookq import log
from hookq.settings import EX_SETTINGS, Invalid, Settings

_HUP: Final = {signal.SIGHUP}
CHECK_S: Final = 30.0  # for a check: it may import the handlers, and all that they need


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


def load_or_exit(load: Callable[[], Settings]) -> Settings:
    """Return the settings; wrong ones are told, one line each, and end the process with 78."""
    try:
        return load()
    except Invalid as error:
        refuse(error.problems)


def refuse(problems: Sequence[str]) -> NoReturn:
    """End with what is wrong with the settings."""
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(EX_SETTINGS)


def add_check(parser: argparse._ActionsContainer) -> None:
    """Give `parser` the flag --check, which also takes `settings`: those alone."""
    parser.add_argument(
        "--check",
        nargs="?",
        const="all",
        choices=("all", "settings"),
        help="test the settings, import the handlers once, and say what is wrong",
    )


def end_check(settings: Settings, problems: Sequence[str] = ()) -> NoReturn:
    """End `--check` of settings that could be read: with 78 if there are further problems."""
    if problems:
        refuse(problems)
    print(f"The settings are good. Sources: {', '.join(sorted(settings.sources)) or 'not needed'}.")
    sys.exit(0)


def check_handlers(settings: Settings) -> list[str]:
    """Return what is wrong with the handlers, by loading them in a worker that does nothing else.

    Its end is ours to survive: an import may end its process, or never end.
    """
    where = ["--state-dir", str(settings.state_dir)]
    if settings.webhooks_file.exists():
        where += ["--webhooks-file", str(settings.webhooks_file)]
    problems = _tried([sys.executable, str(root() / "worker.py"), "--check", *where])
    if not problems:
        mark = settings.state_dir / "checked"
        with contextlib.suppress(OSError):  # then each worker checks for itself
            mark.touch()
    return problems


def just_checked(settings: Settings) -> bool:
    """Tell whether somebody has loaded the handlers a moment ago: to load them again for each
    worker of a reload would only take longer.
    """
    try:
        return abs(time.time() - (settings.state_dir / "checked").stat().st_mtime) < CHECK_S
    except OSError:
        return False


def _tried(command: Sequence[str]) -> list[str]:
    """Return what a process says is wrong, nothing when it ends well."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CHECK_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"The check did not end within {CHECK_S:g} s: does a handler's import wait?"]
    except OSError as error:
        return [f"The settings cannot be checked: {error.strerror}."]
    if done.returncode in (0, EX_SETTINGS):
        return done.stderr.splitlines() if done.returncode else []
    how = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
    return [*done.stderr.splitlines()[-1:], f"A handler's import ended the check with {how}."]


def settings_hold(what: str = "settings") -> bool:
    """Tell whether this program would start with the settings of now, by trying it in a process of
    its own: here, modules are loaded that may have changed since.
    """
    problems = _tried([sys.executable, *sys.orig_argv[1:], "--check", what])
    if problems:
        log.event("settings.refused", "error", problems=problems, then="going on with the old ones")
    return not problems


def reload_wanted(signals: Signals, what: str = "settings") -> bool:
    """Tell whether to start anew now: not with settings, or with `what` "all" handlers, that would
    only end the new process.
    """
    if not signals.reload or signals.stop:
        return False
    signals.reload = False  # before reading: a HUP that comes meanwhile means another reading
    signals.reload = settings_hold(what) or signals.reload
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
