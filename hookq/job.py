"""A job: the work owed for one delivery, its states, and the moves between them.

Rules of this file: it is pure (no clock, no I/O, no Redis), and MOVES is the law. The store makes
no move that is not in the table; tests/test_job.py walks every verb from every state against a real
Redis to see that it holds.

Promises: a job is in exactly one state, and only a verb moves it. Does not promise: order between
jobs, or that a handler runs only once (a worker may die after its work and before it could say so;
the job then runs again, with the same `id` and `delivery_id` to be idempotent with).
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

# The one drawing of the life of a job. README shows the same; tests/test_readme.py compares the
# two.
DRAWING: Final = """\
    accept ──▶ READY ──lease──▶ LEASED ──┬── complete ────▶ DONE
                 ▲                 │     ├── reschedule ──▶ RETRY ──promote──▶ READY
                 └─reclaim,release─┘     └── bury ────────▶ DEAD ──redrive──▶ READY
                                                              │
                                                    discard   ▼   restore (within 24 h)
                                                          DISCARDED ──▶ DEAD
"""

ABSENT, READY, LEASED, RETRY, DEAD, DONE, DISCARDED = (
    "absent",
    "ready",
    "leased",
    "retry",
    "dead",
    "done",
    "discarded",
)

# If you change this table, also change DRAWING above, the verb's script in hookq/store/lua, and
# README's drawing.
MOVES: Final = {
    (ABSENT, "accept"): READY,
    (READY, "lease"): LEASED,
    (LEASED, "complete"): DONE,
    (LEASED, "reschedule"): RETRY,
    (LEASED, "bury"): DEAD,
    (LEASED, "release"): READY,  # leased, not started, and the worker drains
    (LEASED, "reclaim"): READY,  # its worker is gone
    (RETRY, "promote"): READY,
    (DEAD, "redrive"): READY,
    (DEAD, "discard"): DISCARDED,
    (DISCARDED, "restore"): DEAD,
}

# Why a job is dead. `killed_worker`: three workers died of it (R9). `no_source`: the settings no
# longer name its source.
REASONS: Final = ("max_attempts", "gave_up", "not_json", "killed_worker", "no_source")

# The third death makes a dead letter: once is bad luck, twice is suspicious, and every further
# start costs a worker.
MAX_DEATHS: Final = 3

FORMAT: Final = "1"  # of a job in Redis


class Field(NamedTuple):
    """A field of a job. `first` is its value in a new job; None: the delivery brings it."""

    name: str
    kind: type
    first: str | None = None


# The one table of a job's fields: their names in Redis, in the spool, and of a Delivery. Made from
# it at import: what accept sends (hookq/store/accept.py), FIELDS of the scripts and the names of
# their places (scripts.py), decoding (records.py), and the columns of the spool (ingest/spool.py).
#
# To add a field: a row at the end, and the script that uses it. A delivery's field is an attribute
# of Delivery, too, and a new column, so a new format of the spool. The order is that of entries in
# Redis and never changes: jobs of older versions lack the last fields, which then read as empty.
FIELDS: Final = (
    Field("v", str, FORMAT),
    Field("id", str),
    Field("source", str),  # of an entry, the name of its stream
    Field("delivery_id", str),
    Field("event_type", str),
    Field("received_at", float),
    Field("attempt", int, "0"),
    Field("deaths", int, "0"),
    Field("suspect", int, "0"),
    Field("head", bytes),
    Field("body", bytes),
    Field("secret", int),
)
ENTRY: Final = tuple(field for field in FIELDS if field.name != "source")
BROUGHT: Final = tuple(field for field in FIELDS if field.first is None)

# One field is looked for in a quarter of the time that `headers` takes to cut all of them.
_CONTENT_TYPE: Final = re.compile(rb"(?im)^content-type:([^;\r\n]*)")
_TRACEPARENT: Final = re.compile(
    rb"(?im)^traceparent:[ \t]*([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})[ \t]*\r?$"
)

# Ids count from 2020: 50 bits of microseconds then last until 2055.
ID_EPOCH: Final = 1_577_836_800
ID_LENGTH: Final = 16

_ALPHABET: Final = (
    "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base32 in lower case: no i, l, o, u to misread
)
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]


class JobIds:
    """Makes job ids: 16 characters, 50 bits of microseconds and 30 bits that tell processes apart.

    They sort by time of arrival to the microsecond. Within a process they are strictly increasing,
    even when the clock is stepped back; between processes the nonce keeps them apart.
    """

    def __init__(self, nonce: int) -> None:
        self._tail = _base32(nonce & (1 << 30) - 1, 6)
        self._last = 0

    def make(self, now: float) -> str:
        """Return the id of a job that arrived at `now` (unix seconds)."""
        self._last = n = max(int((now - ID_EPOCH) * 1e6), self._last + 1)
        # Ten bits at a time: it is made for every request, and _base32 takes four times as long.
        return (
            _PAIRS[n >> 40 & 1023]
            + _PAIRS[n >> 30 & 1023]
            + _PAIRS[n >> 20 & 1023]
            + _PAIRS[n >> 10 & 1023]
            + _PAIRS[n & 1023]
            + self._tail
        )


def arrived_at(begin: str) -> float | None:
    """Return the earliest arrival (unix seconds) of jobs whose id begins so, or None when no id
    does.
    """
    if len(begin) > ID_LENGTH or not set(begin) <= set(_ALPHABET):
        return None
    number = 0
    for character in begin[:10].ljust(10, "0"):
        number = number << 5 | _ALPHABET.index(character)
    return ID_EPOCH + number / 1e6


def cause_of(reason: str, error: BaseException | None, place: str) -> str:
    """Return what groups dead letters: exception type and place; the reason alone where no
    handler's code failed.
    """
    if error is None or reason in ("not_json", "no_source"):
        return reason
    if cause := getattr(error, "cause", ""):  # of a URL or a command
        return str(cause)
    return f"{type(error).__name__} in {place}" if place else type(error).__name__


def _base32(number: int, width: int) -> str:
    return "".join(_ALPHABET[number >> 5 * place & 31] for place in range(width - 1, -1, -1))


class Headers(dict[str, str]):
    """Header fields by name, whatever the case of the name; keys are kept in lower case."""

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


class Delivery(NamedTuple):
    """One verified request, as it is stored and as a handler sees it.

    `received_at` is in unix seconds, `attempt` counts runs of the handler from 1 (0 while nothing
    has run), `body` are the signed bytes exactly as they came (R3), `head` the header lines as they
    came.
    """

    id: str
    source: str
    delivery_id: str
    event_type: str
    received_at: float
    head: bytes
    body: bytes
    attempt: int = 0
    # Which of the source's secrets signed it, from 1, the newest first; 0 is not known.
    secret: int = 0

    def __repr__(self) -> str:
        """Never head or body: what is printed ends in a log."""
        return (
            f"Delivery({self.id} of {self.source}, attempt {self.attempt}, {len(self.body)} bytes)"
        )

    @property
    def headers(self) -> Headers:
        """The sender's header fields; of a repeated one the values are joined with a comma (RFC
        9110 section 5.3).
        """
        found = Headers()
        for name, value in header_lines(self.head):
            name = name.lower()
            found[name] = f"{found[name]}, {value}" if name in found else value
        return found

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; "" if the sender named none."""
        found = _CONTENT_TYPE.search(self.head)
        return found[1].decode("latin-1").strip().lower() if found else ""

    @property
    def traceparent(self) -> str | None:
        """Return the trace this delivery belongs to (W3C Trace Context, section 3.2), None if the
        sender gave none.
        """
        found = _TRACEPARENT.search(self.head)
        return found[1].decode() if found else None

    def json(self) -> Any:
        """Return the parsed body: JSON, or the `payload` of a form, or the form's own fields.

        Raises ValueError, with the parser's message, when it is neither.
        """
        if self.content_type != "application/x-www-form-urlencoded":
            return json.loads(self.body)
        form = parse_qs(
            self.body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=1000
        )
        return json.loads(form["payload"][0]) if "payload" in form else form


def header_lines(head: bytes) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of header lines that `wire.parse_head` has already found to be well
    formed.
    """
    for line in head.decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            yield name, value.strip(" \t")
