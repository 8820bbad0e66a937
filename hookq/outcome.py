"""How an attempt of a handler ends: what a handler raises, and how that is told to people.

It returns: the job is done. It raises Retry: again, when it says. GiveUp: a dead letter at once.
Anything else is retried. Handlers import the first two from `hookq`.

Promises: what is told is valid UTF-8, of bounded length, and needs nothing of the exception but its
class when its own code fails. Settling is the worker's.
"""

import math
import sysconfig
import traceback
from pathlib import Path

# An error deep in a library is the handler's: it is told by the line that called the library.
_NOT_OWN = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib")),
    str(Path(__file__).parent),
)
MAX_TRACE = 4000  # characters; a recursion has thousands of frames that say the same


class Retry(Exception):
    """Raised by a handler: run this job again, `after_s` seconds from now if given."""

    after_s: float | None = None  # also of a subclass that does not call __init__

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
        """Say which dead letters it is like, where no line of Python is the cause."""
        self.cause = cause
        return self


class Failed(Exception):
    """An attempt outside Python failed: a sentence, and the cause that groups it."""

    def __init__(self, why: str, cause: str) -> None:
        super().__init__(why)
        self.cause = cause


class NotJson(Exception):
    """The default handler could not parse the body."""


class TimeLimit(BaseException):
    """A handler ran longer than its timeout_s. Not an Exception, so that `except Exception` in it
    does not swallow it.
    """


def place_of(error: BaseException) -> str:
    """Return "file.py:line function" of the innermost frame of the handler's own code, "" if it has
    none.
    """
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_OWN)
    ]
    return (
        sendable(f"{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}")
        if frames
        else ""
    )


def trace_of(error: BaseException) -> str:
    """Return the end of the traceback as text, for the story of a dead letter: the part that says
    where it broke.
    """
    if error.__traceback__ is None:  # it happened outside Python
        return ""
    return sendable("".join(traceback.format_exception(error)))[-MAX_TRACE:]


def text_of(error: BaseException) -> str:
    """Return what an exception says of itself, whatever its class does when it is asked."""
    try:
        said = str(error)
    except Exception:  # its __str__ is the handler's code, too
        said = "(its own text cannot be made)"
    if isinstance(error, Failed):
        return sendable(said)
    return sendable(f"{type(error).__name__}: {said}" if said else type(error).__name__)


def sendable(text: str) -> str:
    """Return text that is valid UTF-8: half a surrogate pair, as from a file name, cannot be sent
    to Redis.
    """
    return text.encode("utf-8", "backslashreplace").decode()
