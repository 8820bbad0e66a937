"""Words for people: durations, times, numbers, and why a job died. The dashboard, dlqctl and the
launcher share these, so one thing reads the same everywhere.

Pure. Text that comes from outside is not made printable here: whoever writes it to a terminal or
a page does that.
"""

import time
from datetime import UTC, datetime
from typing import Final

from hookq.store.records import NEVER, Parked, Search

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


def age(seconds: float) -> str:
    """Return a duration in whole units of the largest that fits."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else age(value)


def millis(value: float) -> str:
    return f"{value:.1f} ms" if value < 1000 else seconds(value / 1000)


def ago(at: float, now: float) -> str:
    return f"{seconds(max(0.0, now - at))} ago"


def stamp(at: float) -> str:
    """Return a time that people in any time zone can compare."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def iso(at: float, precision: str = "auto") -> str:
    """Return a time for machines: in a link, a form, or the `datetime` of markup."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec=precision)


def plural(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"


def counted(count: int) -> str:
    return plural(count, "dead letter")


def why(job: Parked) -> str:
    """Return the reason and the error of a dead letter."""
    error = str(job.facts.get("error", ""))
    return error if error.startswith(job.reason) else f"{job.reason}: {error}"


def attempts(job: Parked) -> str:
    return f"{job.attempt}/{job.facts.get('of', '?')}"


def words(search: Search) -> str:
    """Return a selection in words, for the list of acts and for questions."""
    parts = [
        f"{name} {value}"
        for name, value in search._asdict().items()
        if value and name not in ("since", "until", "ids")
    ]
    parts += [
        f"{name} {stamp(at)}"
        for name, at in (("since", search.since), ("until", search.until))
        if 0 < at < NEVER
    ]
    parts += [f"{len(search.ids)} by id"] if search.ids else []
    return ", ".join(parts).replace("event_type", "event type") or "all"
