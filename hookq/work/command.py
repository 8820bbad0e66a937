"""Starts a command for a delivery: its body on standard input, facts in the environment, and no
shell.

The exit code says what becomes of the job: 0 done, 75 (EX_TEMPFAIL of sysexits.h) retry, 100 dead
letter, anything else a failure that is retried. It runs in a process group of its own, which is
killed whole at the time limit, and it ends with its worker. The last 4 KB of its output are kept
with the attempt.

Promises: nothing of our settings or secrets is in its environment. Does not promise that what it
leaves running in the background after its end is found. Runs in a thread of its own for each job
(worker.py).
"""

import contextlib
import os
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from hookq.job import Delivery
from hookq.outcome import Failed, GiveUp, Retry, TimeLimit, sendable

KEPT: Final = 4096  # bytes of output
DONE, RETRY, DEAD = 0, 75, 100
PASSED: Final = ("PATH", "HOME", "LANG", "TZ")  # of our environment; the rest may hold secrets
# at a command that is silent: has it ended, though something it started holds its output open?
LOOK_S: Final = 0.1


def found(program: str, base: Path) -> str | None:
    """Return the path of a program: one with a slash is relative to `base`, any other is looked for
    in PATH.
    """
    if "/" not in program:
        return shutil.which(program)
    path = (base / program).resolve()
    return str(path) if path.is_file() and os.access(path, os.X_OK) else None


class Command:
    """A command and its folder."""

    def __init__(self, words: Sequence[str], base: Path) -> None:
        self.words, self.base = words, base

    def run(
        self, delivery: Delivery, limit_s: float
    ) -> tuple[BaseException | None, dict[str, Any]]:
        """Run it; return why that failed, if it did, and what it said."""
        deadline, program = time.monotonic() + limit_s, found(self.words[0], self.base)
        if not program:
            return Failed(f"{self.words[0]} is not there, or not executable", "no command"), {}
        # It must not outlive a worker that is killed, whose job another takes over, nor be bound by
        # our limit of memory.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        begin = ["setpriv", "--pdeathsig", "KILL", "prlimit", f"--data={limit}", "--"]
        # Not a pipe: if we are killed while we fill it, the command would take half a body for all
        # of it.
        with os.fdopen(os.memfd_create("body"), "w+b") as body:
            body.write(delivery.body)
            body.seek(0)
            return self._start(
                [*begin, program, *self.words[1:]], delivery, body, deadline, limit_s
            )

    def _start(
        self, words: Sequence[str], delivery: Delivery, body: Any, deadline: float, limit_s: float
    ) -> tuple[BaseException | None, dict[str, Any]]:
        try:
            process = subprocess.Popen(
                words,
                cwd=self.base,
                env=self._environment(delivery),
                stdin=body,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            return Failed(f"{self.words[0]} cannot be started: {error.strerror}", "not started"), {}
        try:
            try:
                output = heard(process, deadline)
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired as late:
                with contextlib.suppress(
                    OSError
                ):  # of another user, as sudo makes it: we may not, and do not wait for it
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                return TimeLimit(
                    f"{self.words[0]} ran longer than its timeout_s of {limit_s:g} s"
                ), _said(late.output or b"")
        finally:  # Popen's own way would wait without a limit for one that cannot be ended
            if process.stdout:
                process.stdout.close()
        return _verdict(self.words[0], code), _said(output)

    def _environment(self, delivery: Delivery) -> dict[str, str]:
        facts = {
            "ID": delivery.id,
            "SOURCE": delivery.source,
            "DELIVERY_ID": delivery.delivery_id,
            "EVENT_TYPE": delivery.event_type,
            "CONTENT_TYPE": delivery.content_type,
            "RECEIVED_AT": f"{delivery.received_at:.6f}",
            "ATTEMPT": str(delivery.attempt),
        }
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        return passed | {
            f"WEBHOOKD_{name}": value.replace("\0", "") for name, value in facts.items()
        }


def heard(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """Read what it says until it ends, or says no more; return the end of that. Raises
    TimeoutExpired.
    """
    stdout: Any = process.stdout
    tail = b""
    os.set_blocking(stdout.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            wait_s = deadline - time.monotonic()
            if wait_s <= 0:
                raise subprocess.TimeoutExpired(process.args, 0, tail)
            if selector.select(min(wait_s, LOOK_S)):
                data = os.read(stdout.fileno(), 65536)
                tail = (tail + data)[-KEPT:]
                if not data:
                    return tail
            elif process.poll() is not None:
                return (tail + _rest(stdout))[-KEPT:]


def _rest(stdout: Any) -> bytes:
    """Return what was said between the last look and the end."""
    try:
        return os.read(stdout.fileno(), 65536)
    except BlockingIOError:
        return b""


def _said(output: bytes) -> dict[str, Any]:
    return {"output": sendable(output.decode("utf-8", "replace"))} if output else {}


def _verdict(name: str, code: int) -> BaseException | None:
    if code == DONE:
        return None
    told = f"{name} exited with {code}" if code > 0 else f"{name} was ended by {_signal(-code)}"
    if code == RETRY:
        return Retry(told)
    if code == DEAD:
        return GiveUp(told).because(f"exit {code}")
    return Failed(told, f"exit {code}" if code > 0 else _signal(-code))


def _signal(number: int) -> str:
    return (
        signal.Signals(number).name
        if number in signal.valid_signals() and number < signal.SIGRTMIN
        else f"signal {number}"
    )
