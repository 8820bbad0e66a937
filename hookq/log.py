"""One JSON object per line on standard output; aligned text when that is a terminal.

An event is `noun.verb` in the words of README. Facts are numbers and short strings: never a body, a signature, a
secret, an Authorization or a cookie. Text from outside is safe here: JSON escapes control characters, and the
terminal's form escapes whatever is not printable.
"""

import json
import os
import sys
import time
from typing import Any

LEVELS = ("debug", "info", "warning", "error", "critical")

# A line longer than this is cut: a log is read by people, and one hostile header must not fill a disk.
MAX_VALUE = 2000

_LINE = json.JSONEncoder(default=str)
_out = 1


def to_nowhere() -> None:
    """Write no lines from now on: for commands, whose standard output is data."""
    global _out
    _out = os.open(os.devnull, os.O_WRONLY)


def event(name: str, /, level: str = "info", **facts: Any) -> None:
    """Write one line. A reader that is gone is no reason to stop: the line is dropped."""
    facts = {key: _short(value) for key, value in facts.items() if value is not None}
    line = _text(name, level, facts) if sys.stdout.isatty() else _json(name, level, facts)
    try:
        os.write(_out, line.encode("utf-8", "replace"))
    except OSError:
        pass


def printable(text: str) -> str:
    """Return `text` with all that could move a cursor, ring a bell or turn the direction of writing made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _short(value: Any) -> Any:
    return value[:MAX_VALUE] + "…" if isinstance(value, str) and len(value) > MAX_VALUE else value


def _json(name: str, level: str, facts: dict[str, Any]) -> str:
    return _LINE.encode({"at": round(time.time(), 3), "level": level, "event": name, **facts}) + "\n"


def _text(name: str, level: str, facts: dict[str, Any]) -> str:
    told = "  ".join(f"{key}={printable(str(value))}" for key, value in facts.items())
    return f"{time.strftime('%H:%M:%S')}  {level:8} {name:18} {told}\n"
