"""Runs a command for a delivery: the body on standard input, facts in the environment, no shell.

    exit code      the job becomes
    0              done
    75             retry (EX_TEMPFAIL of sysexits.h)
    100            dead: gave_up
    any other, or  retry, as a failure
    a signal

The command has a process group of its own, which is killed whole at the time limit; and it ends
with its worker. The last 4 KB of its output are kept with the attempt.

Promises: none of our settings and secrets are in its environment; it reads the whole body or is
killed. Does not promise to find what it leaves running in the background. Runs in a thread of the
pool (pool.py).
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
from hookq.outcome import Failed, GiveUp, Outcome, Retry, TimeLimit, sendable

MAX_OUTPUT: Final = 4096  # bytes that are kept
DONE, RETRY, DEAD = 0, 75, 100
# What a command gets of our environment. The rest may hold secrets.
PASSED: Final = ("PATH", "HOME", "LANG", "TZ")
# How often to ask whether a silent command has ended: what it started may hold its output open.
LOOK_S: Final = 0.1


def executable(program: str, base: Path) -> str | None:
    """Return the path of a program, None if there is none to execute. One with a slash is relative
    to `base`; any other is looked for in PATH.
    """
    if "/" not in program:
        return shutil.which(program)
    path = (base / program).resolve()
    return str(path) if path.is_file() and os.access(path, os.X_OK) else None


class Command:
    """A command and the folder it runs in."""

    def __init__(self, words: Sequence[str], base: Path) -> None:
        self.words, self.base = words, base

    def run(self, delivery: Delivery, limit_s: float) -> Outcome:
        """Run it; return why it failed, if it did, and its output."""
        deadline, program = time.monotonic() + limit_s, executable(self.words[0], self.base)
        if not program:
            return Failed(f"{self.words[0]} is not there, or not executable", "no command"), {}
        # A file, not a pipe: if we are killed while we fill a pipe, the command would take half a
        # body for all of it.
        with os.fdopen(os.memfd_create("body"), "w+b") as body:
            body.write(delivery.body)
            body.seek(0)
            try:
                process = self._start(program, delivery, body)
            except OSError as error:
                why = f"{self.words[0]} cannot be started: {error.strerror}"
                return Failed(why, "not started"), {}
            return self._await(process, deadline, limit_s)

    def _start(self, program: str, delivery: Delivery, body: Any) -> "subprocess.Popen[bytes]":
        """Start it. It must not outlive a worker that is killed, since another runs the job then;
        nor be bound by our own limit of memory.
        """
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
        prefix = ["setpriv", "--pdeathsig", "KILL", "prlimit", f"--data={limit}", "--"]
        return subprocess.Popen(
            [*prefix, program, *self.words[1:]],
            cwd=self.base,
            env=environment(delivery),
            stdin=body,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )

    def _await(
        self, process: "subprocess.Popen[bytes]", deadline: float, limit_s: float
    ) -> Outcome:
        """Wait for its end, and kill it at its deadline."""
        name = self.words[0]
        try:
            output = read_output(process, deadline)
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as late:
            # Refused if it runs as another user, as by sudo; then it is not waited for either.
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            why = f"{name} ran longer than its timeout_s of {limit_s:g} s"
            return TimeLimit(why), _facts(late.output or b"")
        # Not Popen's own `with`, which waits without a limit for a command that cannot be killed.
        finally:
            if process.stdout:
                process.stdout.close()
        return _error_of(name, code), _facts(output)


def environment(delivery: Delivery) -> dict[str, str]:
    """Return the environment of a command."""
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
    return passed | {f"WEBHOOKD_{name}": value.replace("\0", "") for name, value in facts.items()}


def read_output(process: "subprocess.Popen[bytes]", deadline: float) -> bytes:
    """Read a command's output until it ends or closes it; return the last MAX_OUTPUT bytes. Raises
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
                tail = (tail + data)[-MAX_OUTPUT:]
                if not data:
                    return tail
            elif process.poll() is not None:
                return (tail + _rest(stdout))[-MAX_OUTPUT:]


def _rest(stdout: Any) -> bytes:
    """Return what was written between the last look and the end."""
    try:
        return os.read(stdout.fileno(), 65536)
    except BlockingIOError:
        return b""


def _facts(output: bytes) -> dict[str, Any]:
    return {"output": sendable(output.decode("utf-8", "replace"))} if output else {}


def _error_of(name: str, code: int) -> BaseException | None:
    """Return what an exit code means, None for done."""
    if code == DONE:
        return None
    why = f"{name} exited with {code}" if code > 0 else f"{name} was ended by {_signal(-code)}"
    if code == RETRY:
        return Retry(why)
    if code == DEAD:
        return GiveUp(why).because(f"exit {code}")
    return Failed(why, f"exit {code}" if code > 0 else _signal(-code))


def _signal(number: int) -> str:
    """Return a signal's name; those for real time have none."""
    named = number in signal.valid_signals() and number < signal.SIGRTMIN
    return signal.Signals(number).name if named else f"signal {number}"
