"""One JSON object per line on standard output; aligned text when that is a terminal.

An event is `noun.verb` in the words of README. Facts are numbers and short strings: never a body, a
signature, a secret, an Authorization or a cookie. Text from outside is safe here: JSON escapes
control characters, and the terminal's form escapes whatever is not printable.
"""

import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

# A value longer than this is cut: a log is read by people, and one hostile header must not fill a
# disk.
MAX_VALUE = 2000
# A write of no more than this to a pipe is whole or not at all (POSIX, PIPE_BUF).
MAX_LINE, SHORT_VALUE = 4096, 200

_TERMINAL = bool(sys.stdout) and sys.stdout.isatty()  # asked once: it is a system call
_LINE = json.JSONEncoder(default=str)
_out = 1
_counts: Counter[str] = Counter()


def to_nowhere() -> None:
    """Write no lines from now on: for commands, whose standard output is data."""
    global _out
    _out = os.open(os.devnull, os.O_WRONLY)


def never_wait() -> None:
    """Drop lines from now on rather than wait for a reader that has stopped: for ingestion, which
    waits for nobody.

    The pipe is opened anew for that: whoever else holds it would not expect a write to fail.
    """
    global _out
    try:
        if stat.S_ISFIFO(os.fstat(1).st_mode):
            _out = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass


def take_counts() -> Counter[str]:
    """Return how many lines of each level were written since the last call, as counters of the
    store.
    """
    global _counts
    taken, _counts = _counts, Counter()
    return taken


def event(name: str, /, level: str = "info", **facts: Any) -> None:
    """Write one line. A reader that is gone, or has stopped, is no reason to stop: the line is
    dropped, and counted all the same.
    """
    events([(name, level, facts)])


def events(rows: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
    """Write a line for each (name, level, facts), with as few writes as can be whole: each costs as
    much as the rest of a line.
    """
    write, block = _text if _TERMINAL else _json, b""
    for name, level, facts in rows:
        _counts[f"log:{level}"] += 1
        line = write(name, level, _told(facts, MAX_VALUE)).encode("utf-8", "replace")
        if len(line) > MAX_LINE:
            line = write(name, level, _told(facts, SHORT_VALUE)).encode("utf-8", "replace")
        if block and len(block) + len(line) > MAX_LINE:
            _write(block)
            block = b""
        block += line
    _write(block)


def _write(block: bytes) -> None:
    try:
        os.write(_out, block)
    except OSError:
        pass


def printable(text: str) -> str:
    """Return `text` with all that could move a cursor, ring a bell or turn the direction of writing
    made visible.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _told(facts: dict[str, Any], most: int) -> dict[str, Any]:
    """Return what is known of the facts, long texts cut."""
    known = {key: value for key, value in facts.items() if value is not None}
    return {
        key: value[:most] + "…" if isinstance(value, str) and len(value) > most else value
        for key, value in known.items()
    }


def _json(name: str, level: str, facts: dict[str, Any]) -> str:
    return (
        _LINE.encode({"at": round(time.time(), 3), "level": level, "event": name, **facts}) + "\n"
    )


def _text(name: str, level: str, facts: dict[str, Any]) -> str:
    told = "  ".join(f"{key}={printable(str(value))}" for key, value in facts.items())
    return f"{time.strftime('%H:%M:%S')}  {level:8} {name:18} {told}\n"
