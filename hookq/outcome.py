"""How an attempt ends: what a handler raises, and how that is reported to people.

    returns        the job is done
    Retry          it runs again, when the handler says
    GiveUp         it becomes a dead letter at once
    anything else  it runs again, by the schedule of its source

Handlers import Retry and GiveUp from `hookq`. Settling is the worker's.

Promises: a report is valid UTF-8 of bounded length, and needs no code of the exception's class that
might fail itself.
"""

import math
import sysconfig
import traceback
from pathlib import Path
from typing import Any

# What an attempt came to: why it failed, None if it did not, and facts to be kept with it.
Outcome = tuple[BaseException | None, dict[str, Any]]

# Code that is not the handler's. An error deep in a library is reported with the line of the
# handler that called it.
_NOT_OWN = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib")),
    str(Path(__file__).parent),
)
# Characters of a traceback: a recursion has thousands of frames that say the same.
MAX_TRACE = 4000


class Retry(Exception):
    """Raised by a handler: run this job again, `after_s` seconds from now if given."""

    after_s: float | None = None  # here, for a subclass that does not call __init__

    def __init__(
        self, why: str = "the handler asked for a retry", *, after_s: float | None = None
    ) -> None:
        super().__init__(why)
        if after_s is not None:
            self.after_s = float(after_s)
            if not math.isfinite(self.after_s):
                raise ValueError(f"after_s is {after_s}: it must be a number of seconds")


class GiveUp(Exception):
    """Raised by a handler: no retry can help. The job becomes a dead letter at once."""

    cause = ""

    def because(self, cause: str) -> "GiveUp":
        """Set what groups its dead letter with others, where no line of Python is the cause."""
        self.cause = cause
        return self


class Failed(Exception):
    """An attempt outside Python failed: a sentence, and the cause that groups its dead letter."""

    def __init__(self, why: str, cause: str) -> None:
        super().__init__(why)
        self.cause = cause


class NotJson(Exception):
    """The default handler could not parse the body."""


class TimeLimit(BaseException):
    """A handler ran longer than its timeout_s. Not an Exception, so that a handler's own `except
    Exception` does not swallow it.
    """


def place_of(error: BaseException) -> str:
    """Return "file.py:line function" of the innermost frame in the handler's own code, "" if there
    is none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = next((f for f in reversed(frames) if not f.filename.startswith(_NOT_OWN)), None)
    return sendable(f"{Path(own.filename).name}:{own.lineno} {own.name}") if own else ""


def trace_of(error: BaseException) -> str:
    """Return the end of the traceback as text, which says where it broke; "" for an error outside
    Python.
    """
    if error.__traceback__ is None:
        return ""
    return sendable("".join(traceback.format_exception(error)))[-MAX_TRACE:]


def text_of(error: BaseException) -> str:
    """Return the type and message of an exception, whatever its class does when asked."""
    try:
        message = str(error)
    except Exception:  # its __str__ is the handler's code, too
        message = "(its own text cannot be made)"
    if isinstance(error, Failed):
        return sendable(message)
    return sendable(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def sendable(text: str) -> str:
    """Return text as valid UTF-8. Half a surrogate pair, as a file name may have, cannot be sent to
    Redis.
    """
    return text.encode("utf-8", "backslashreplace").decode()
