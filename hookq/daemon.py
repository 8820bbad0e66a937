"""The life of a daemon: its settings at the start, its signals, and its restart in place.

TERM and INT: finish the work in progress, then exit. HUP: check the new settings, finish, then
re-exec, with the same process id and the same inherited socket. Signal handlers only set flags; the
loops look at them.

Promises: settings that do not hold never end a running process, and a HUP is never missed.
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

_OURS: Final = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# The limit of a check: it may import the handlers, and everything they need.
CHECK_S: Final = 30.0


class Signals:
    """The signals this process has received. `wake` may be set: it is called from a signal handler
    to end a wait, so it must not block.
    """

    def __init__(self) -> None:
        self.stop = self.reload = False
        self.wake: Callable[[], None] = lambda: None
        for number in _OURS:
            signal.signal(number, self._received)
        # Until here HUP was ignored (supervisord.conf) or all were blocked (reexec), since they
        # would have killed us. One that arrived blocked is delivered now, before the settings are
        # read: what a HUP announced is in them.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self.stop = True
        self.wake()

    @property
    def asked(self) -> bool:
        return self.stop or self.reload


def load_or_exit(load: Callable[[], Settings]) -> Settings:
    """Return the settings. Mistakes are printed, one line each, and end the process with 78."""
    try:
        return load()
    except Invalid as error:
        refuse(error.problems)


def refuse(problems: Sequence[str]) -> NoReturn:
    """Exit, printing what is wrong with the settings."""
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(EX_SETTINGS)


def refuse_newer(why: str) -> NoReturn:
    """End beside the data of a newer version; `why` says what to do."""
    log.event("redis.newer", "critical", why=why)
    refuse([why])


def add_check(parser: argparse._ActionsContainer) -> None:
    """Give `parser` the flag --check; with `settings` it checks those alone, not the handlers."""
    parser.add_argument(
        "--check",
        nargs="?",
        const="all",
        choices=("all", "settings"),
        help="test the settings, import the handlers once, and say what is wrong",
    )


def end_check(settings: Settings, problems: Sequence[str] = ()) -> NoReturn:
    """Exit from `--check` of settings that could be read: with 78 if there are other problems."""
    if problems:
        refuse(problems)
    print(f"The settings are good. Sources: {', '.join(sorted(settings.sources)) or 'not needed'}.")
    sys.exit(0)


def check_handlers(settings: Settings) -> list[str]:
    """Return what is wrong with the handlers, by loading them in a worker that does nothing else.

    In a process of its own, since an import may end its process, or never return.
    """
    where = ["--state-dir", str(settings.state_dir)]
    if settings.webhooks_file.exists():
        where += ["--webhooks-file", str(settings.webhooks_file)]
    problems = _problems_of([sys.executable, str(root() / "worker.py"), "--check", *where])
    if not problems:
        mark = settings.state_dir / "checked"
        # Without the mark each worker checks for itself.
        with contextlib.suppress(OSError):
            mark.touch()
    return problems


def just_checked(settings: Settings) -> bool:
    """Whether the handlers were checked a moment ago: the workers of a reload need not each load
    them once more.
    """
    return abs(time.time() - checked_at(settings)) < CHECK_S


def checked_at(settings: Settings) -> float:
    """Return when all handlers were last found to load, in unix seconds; 0.0 if never."""
    try:
        return (settings.state_dir / "checked").stat().st_mtime
    except OSError:
        return 0.0


def _problems_of(command: Sequence[str]) -> list[str]:
    """Run a check; return the problems it prints, none when it exits with 0."""
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
    """Whether this program would start with the current settings. A process of its own tries it,
    since the modules loaded in this one may have changed.
    """
    problems = _problems_of([sys.executable, *sys.orig_argv[1:], "--check", what])
    if problems:
        log.event("settings.refused", "error", problems=problems, then="going on with the old ones")
    return not problems


def reload_wanted(signals: Signals, what: Callable[[], str] = lambda: "settings") -> bool:
    """Whether to re-exec now: a HUP was received, and the new process would not end at once over
    its settings, nor (`what` returns "all") over its handlers. A HUP during the check means another
    one, of the settings as they are then.
    """
    holds = False
    while signals.reload and not signals.stop:
        signals.reload = False  # before the check: what comes now is another HUP
        holds = settings_hold(what())
    return holds


def in_background(work: Callable[..., None], *args: object) -> bool:
    """Run `work` in a thread that nobody waits for; return False, and log it, where no thread can
    be started.
    """
    try:
        threading.Thread(target=work, args=args, daemon=True).start()
    except RuntimeError as error:
        log.event("thread.refused", "error", error=str(error))
        return False
    return True


def inherited_socket() -> socket.socket | None:
    """Return the listening socket that supervisord put on fd 0, or None when fd 0 is not one."""
    try:
        if stat.S_ISSOCK(Path("/dev/fd/0").stat().st_mode):
            sock = socket.socket(fileno=0)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return sock
            sock.detach()
    except OSError:
        pass
    return None


def reexec(signals: Signals, listening: socket.socket | None = None) -> None:
    """Replace this process by a fresh start of its program; the kernel closes all files but 0, 1
    and 2. The new one finds the listening socket on fd 0, with the connections that wait in it.
    Returns only where a stop was asked for: the new one would know nothing of that.
    """
    log.event("process.reexec")
    if listening and listening.fileno():
        os.dup2(listening.fileno(), 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)  # one that comes from now on waits for it
    if signals.stop:
        return
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def name_of(kind: str) -> str:
    """Return a name unique to this start of this process, so that a consumer or a client is never
    taken for an earlier one.
    """
    return f"{kind}-{host()}-{os.getpid()}-{secrets.token_hex(4)}"


def host() -> str:
    """Return this machine's name, as it stands in the names of processes."""
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname())


def root() -> Path:
    """Return the folder of the programs, where .env and webhooks.toml are looked for."""
    return Path(__file__).resolve().parent.parent
