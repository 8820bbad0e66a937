"""Handlers in Python: how they are found, and how they run within their time limit.

A handler is a function of one argument, the Delivery; outcome.py says how it may end. This file
runs it and settles nothing. The other kinds of handlers are in url.py and command.py.

The time limit is a signal, so it stops a handler that waits or computes in Python. Code in C that
does not return sees no signal: then the watchdog ends the process (watchdog.py).

Promises: `run` returns whatever the handler does, and a signal that comes late harms nobody. Does
not promise that a handler which catches TimeLimit stops: it is raised again each second.
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
from hookq.outcome import NotJson, Outcome, TimeLimit

Handler = Callable[[Delivery], Any]
# Runs a handler for so many seconds at most.
Runner = Callable[[Delivery, float], Outcome]

# Content types that are read as JSON or form. None at all is taken for JSON, since almost every
# sender means that.
_PARSED = re.compile(
    r"|application/(?:[a-z0-9.+-]*\+)?json|text/json|application/x-www-form-urlencoded"
)


class BadHandler(Exception):
    """The handler cannot be loaded. The message is a sentence for the person who wrote the
    settings; `error` is what its module raised, if it did.
    """

    def __init__(self, why: str, error: BaseException | None = None) -> None:
        super().__init__(why)
        self.error = error


def parse_body(delivery: Delivery) -> None:
    """Check a body of JSON or form type. This is the handler of a source that names none. Raises
    NotJson.
    """
    if _PARSED.fullmatch(delivery.content_type):
        try:
            delivery.json()
        except (ValueError, RecursionError) as error:
            raise NotJson(str(error)) from None


def in_process(handler: Handler) -> Runner:
    """Return a runner of a handler in Python."""
    return lambda delivery, limit_s: (run(handler, delivery, limit_s), {})


def find_handler(spec: str, base: Path) -> Handler:
    """Return the function named by "file.py:function" (relative to `base`) or
    "package.module:function".

    Raises BadHandler with a sentence, which has the line where it is known.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise BadHandler('it must be "file.py:function" or "package.module:function".')
    handler = getattr(_import(where, base), name, None)
    if not callable(handler):
        raise BadHandler(f"{where} has no function {name}.")
    _check_signature(handler, name)
    return handler  # type: ignore[no-any-return]


def _import(where: str, base: Path) -> ModuleType:
    """Import a file or a module; whatever it raises becomes BadHandler."""
    try:
        if where.endswith(".py"):
            return _import_file(base / where)
        return importlib.import_module(where)
    except FileNotFoundError:
        raise BadHandler(f"there is no file {base / where}.") from None
    except SyntaxError as error:
        raise BadHandler(f"{error.filename} line {error.lineno}: {error.msg}.") from None
    # SystemExit, too: a module may decide about itself, never about the worker.
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = (f for f in reversed(frames) if not f.filename.startswith("<frozen"))
        last = next(own, frames[-1])
        why = f"{last.filename} line {last.lineno}: {type(error).__name__}: {error}."
        raise BadHandler(why, error) from None


def _import_file(path: Path) -> ModuleType:
    """Import a file under a name of its own: a user's handlers.py must not take the place of a
    module of that name, nor of another folder's handlers.py.
    """
    name = "handler_file_" + re.sub(r"\W", "_", str(path.resolve()))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(path)
        module = importlib.util.module_from_spec(spec)
        # Before it runs, as import does: dataclasses and pickle look their module up there.
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _check_signature(handler: Handler, name: str) -> None:
    """Refuse what would run nothing, or could not be called with a delivery."""
    lazy = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
    if any(is_lazy(handler) for is_lazy in lazy):
        raise BadHandler(
            f"{name} is async or a generator: calling it would run nothing; make it a plain "
            "function."
        )
    try:
        inspect.signature(handler).bind(None)
    except TypeError:
        raise BadHandler(f"{name} cannot be called with one argument, the delivery.") from None
    except ValueError:  # written in C, without a signature
        pass


# ---------------- the time limit
#
# Setting a timer and taking it back cost 13 of the 80 µs of a job (a system call each, and slow in
# a virtual machine). So one timer is left armed from job to job, and the alarm decides what it
# means. `_due` is when it fires; `_deadline` belongs to the running handler, FOREVER between two.
#
#   when a handler starts                      now
#     the timer is still to come, in time       ├─── _due ──── _deadline      it is left
#     the timer is still to come, too late      ├─── _deadline ──── _due      it is set to _deadline
#     the timer has fired, or never was set     ├                             it is set to _deadline
#
#   when the alarm comes
#     no handler runs                           nothing; the next start sets it
#     one runs, before its _deadline            it is set to the _deadline
#     one runs, at or after its _deadline       TimeLimit is raised in the handler, and it is set to
#                                               one second later: a handler that swallows TimeLimit
#                                               (`except:` in a loop) gets the next
#
# So a timer that fires before the deadline costs one alarm more, and none fires after it. What a
# handler does to the signal or the timer holds until the next batch (`watch_time`).
# A race remains: the alarm may come when the handler has just returned. Then the job took all of
# its time, and is counted as over it; `run` returns that, and nothing escapes.

FOREVER: Final = float("inf")
_PID: Final = os.getpid()
_limit_s, _deadline = 0.0, FOREVER
_due = 0.0


def watch_time() -> None:
    """Have the next handler set timer and signal again. Called once per batch, in case an earlier
    handler has replaced either.
    """
    global _due
    _due = 0.0


def stop_watch() -> None:
    """Disarm the timer. It would survive an exec, and kill the program that starts there before
    that has a handler for it.
    """
    signal.setitimer(signal.ITIMER_REAL, 0)
    watch_time()


def run(handler: Handler, delivery: Delivery, limit_s: float) -> BaseException | None:
    """Run a handler in the main thread for `limit_s` at most; return what it raised, or TimeLimit
    if it ran longer.
    """
    global _limit_s, _deadline
    now = time.monotonic()
    _limit_s, _deadline = limit_s, now + limit_s
    if not now < _due <= _deadline:
        _set_timer(now, limit_s)
    try:
        try:
            # Of something to await nothing has run yet. To call that done would lose the job.
            if inspect.isawaitable(handler(delivery)):
                raise TypeError(
                    "the handler returned something to await; it must do its work before it returns"
                )
        finally:
            _deadline = FOREVER
            # The handler has forked, and this is the child: only one of the two may settle.
            if os.getpid() != _PID:
                os._exit(0)
    # SystemExit, too: a handler decides about its job, never about the worker.
    except BaseException as error:
        # Again: the alarm may have come before the line above was done. Another comes no sooner
        # than in a second.
        _deadline = FOREVER
        if isinstance(error, MemoryError):
            # What filled the memory hangs on the frames: there would be none left to report it.
            traceback.clear_frames(error.__traceback__)
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
        _set_timer(now, 1.0)
        raise TimeLimit(f"the handler ran longer than its timeout_s of {_limit_s:g} s")
    if _deadline < FOREVER:
        _set_timer(now, max(0.001, _deadline - now))
