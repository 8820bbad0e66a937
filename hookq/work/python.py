"""Handlers in Python: how they are found, and run within their time limit.

A handler is a function of one argument, the Delivery; how it ends is told in outcome.py. This file
runs it, the worker settles. The other kinds are in url.py and command.py.

The time limit is a signal, so it stops a handler that waits or computes in Python. One that is
stuck in C code does not see signals: the worker's watchdog ends the whole process then (worker.py).
"""

import importlib
import importlib.util
import inspect
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Final

from hookq.job import Delivery
from hookq.outcome import NotJson, TimeLimit

Handler = Callable[[Delivery], Any]
# Runs a handler for so many seconds at most; returns why it failed (None: done), and facts that are
# kept with the attempt.
Runner = Callable[[Delivery, float], tuple[BaseException | None, dict[str, Any]]]

# These are read as JSON or form; a sender that says nothing is taken to mean JSON, as almost all
# do.
_PARSED = re.compile(
    r"|application/(?:[a-z0-9.+-]*\+)?json|text/json|application/x-www-form-urlencoded"
)


class BadHandler(Exception):
    """The handler cannot be loaded; the message is a sentence for the person who wrote the
    settings, `error` what its module raised, if it did.
    """

    def __init__(self, why: str, error: BaseException | None = None) -> None:
        super().__init__(why)
        self.error = error


def parse_body(delivery: Delivery) -> None:
    """Check a body of JSON or form type: the handler of a source that names none. Raises
    NotJson.
    """
    if _PARSED.fullmatch(delivery.content_type):
        try:
            delivery.json()
        except (ValueError, RecursionError) as error:
            raise NotJson(str(error)) from None


def in_process(handler: Handler) -> Runner:
    """Return what runs a handler in Python."""
    return lambda delivery, limit_s: (run(handler, delivery, limit_s), {})


def find_handler(spec: str, base: Path) -> Handler:
    """Return the function that "file.py:function" (relative to `base`) or "package.module:function"
    names.

    Raises BadHandler with a sentence, which has the line where it is known.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise BadHandler('it must be "file.py:function" or "package.module:function".')
    try:
        module = (
            _load_file(base / where) if where.endswith(".py") else importlib.import_module(where)
        )
    except FileNotFoundError:
        raise BadHandler(f"there is no file {base / where}.") from None
    except SyntaxError as error:
        raise BadHandler(f"{error.filename} line {error.lineno}: {error.msg}.") from None
    except BaseException as error:  # SystemExit, too: a file decides about itself only
        frames = traceback.extract_tb(error.__traceback__)
        last = next(
            (f for f in reversed(frames) if not f.filename.startswith("<frozen")), frames[-1]
        )
        why = f"{last.filename} line {last.lineno}: {type(error).__name__}: {error}."
        raise BadHandler(why, error) from None
    handler = getattr(module, name, None)
    if not callable(handler):
        raise BadHandler(f"{where} has no function {name}.")
    if (
        inspect.iscoroutinefunction(handler)
        or inspect.isgeneratorfunction(handler)
        or inspect.isasyncgenfunction(handler)
    ):
        raise BadHandler(
            f"{name} is async or a generator: calling it would run nothing; make it a plain "
            "function."
        )
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        raise BadHandler(f"{name} cannot be called with one argument, the delivery.") from None
    except ValueError:  # written in C: it does not tell
        pass
    return handler  # type: ignore[no-any-return]


def _load_file(path: Path) -> ModuleType:
    # A name of its own: a handlers.py of the user must not take the place of a module that is
    # already imported.
    name = "handler_file_" + re.sub(r"\W", "_", str(path.resolve()))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = (
            module  # before it runs, as import does: dataclasses and pickle look it up there
        )
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


FOREVER: Final = float("inf")
_PID: Final = os.getpid()
_limit_s, _deadline = 0.0, FOREVER  # of the handler that runs
_due = 0.0  # when the timer fires


def watch_time() -> None:
    """Set timer and signal anew for the next handler: now and then, for one of before may have
    taken them for itself.
    """
    global _due
    _due = 0.0


def stop_watch() -> None:
    """Take the timer back. It would outlive an exec, and end the program that begins there."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    watch_time()


def run(handler: Handler, delivery: Delivery, limit_s: float) -> BaseException | None:
    """Run a handler in the main thread, for `limit_s` at most; return what it raised, TimeLimit if
    it ran longer.

    A timer that fires early enough is left as it is, and set anew when it fires: to set one for
    each job and to take it back cost 13 of the 80 µs of a job (a timer is slow to set in a virtual
    machine).
    """
    global _limit_s, _deadline
    now = time.monotonic()
    _limit_s, _deadline = limit_s, now + limit_s
    if not now < _due <= _deadline:
        _set_timer(now, limit_s)
    try:
        try:
            if inspect.isawaitable(
                handler(delivery)
            ):  # nothing of it has run: to call that done would be a lie
                raise TypeError(
                    "the handler returned something to await; it must do its work before it returns"
                )
        finally:
            _deadline = FOREVER
            if (
                os.getpid() != _PID
            ):  # the handler has forked, and this is the child: two of us must not settle
                os._exit(0)
    except (
        BaseException
    ) as error:  # also SystemExit: a handler decides about its job, never about the worker
        # again: the alarm may have come within the line above, and comes no sooner than in a second
        _deadline = FOREVER
        return error
    return None


def _set_timer(now: float, seconds: float) -> None:
    global _due
    _due = now + seconds
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _on_alarm(_signal: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if now >= _deadline:
        _set_timer(now, 1.0)  # code that swallows this, in a bare except, is stopped by the next
        raise TimeLimit(f"the handler ran longer than its timeout_s of {_limit_s:g} s")
    if _deadline < FOREVER:
        _set_timer(now, max(0.001, _deadline - now))
