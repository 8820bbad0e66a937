"""What the store takes and returns, and how it is decoded. Pure.

Times are unix seconds. A record has what Redis holds of a thing, never more: what an older or a
newer version left out reads as empty.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from hookq.job import FIELDS, FORMAT, Delivery
from hookq.store.keys import key

Facts = Mapping[str, Any]  # JSON that a worker or an operator wrote, of whatever version

_FORMAT: Final = FORMAT.encode()
# Made once: json.dumps makes a new encoder for each call with separators, at 3 µs a job.
packed: Final = json.JSONEncoder(separators=(",", ":")).encode


class Lease(NamedTuple):
    """The right to run and settle one job, for as long as it is renewed."""

    entry: bytes
    delivery: Delivery
    deaths: int
    suspect: bool
    # False for a newer format: the delivery is empty then, and must not be settled.
    known: bool = True

    @property
    def ready_at(self) -> float:
        """When the job became ready, by Redis' clock."""
        return entry_time(self.entry)


class Times(NamedTuple):
    """How long an attempt took: the bucket of its histogram, and microseconds. `wait` was for the
    worker, `run` is the handler's, `all` is since the delivery came.
    """

    wait: int = 0
    wait_us: int = 0
    run: int = 0
    run_us: int = 0
    all: int = 0
    all_us: int = 0


class Settled(NamedTuple):
    """What ends an attempt. `outcome` is done, retry (after `delay_s`), dead (for `reason`), or
    ready (given back). `label` is how the attempt is counted (done, retry, dead or timeout), ""
    for a job that did not run: its times are not counted.
    """

    lease: Lease
    outcome: str
    facts: Facts = {}
    delay_s: float = 0.0
    reason: str = ""
    cause: str = ""
    trace: str = ""
    label: str = ""
    times: Times = Times()


class Reclaimed(NamedTuple):
    """A job whose worker is dead. `outcome` is ready or dead."""

    source: str
    id: str
    outcome: str
    deaths: int


class Parked(NamedTuple):
    """A job outside the streams, without its body. `at` is when it died or is due; `facts` are of
    its last attempt.
    """

    id: str
    source: str
    delivery_id: str
    event_type: str
    received_at: float
    attempt: int
    deaths: int
    reason: str
    cause: str
    batch: str
    at: float
    size: int
    facts: dict[str, Any]


# What Redis is asked for to make a Parked: its own fields but the four that come otherwise.
PARKED: Final = (*Parked._fields[1:10], "error")


class Act(NamedTuple):
    """An operator's act: `by` is page or command, `act` its id (and the batch, if it discards),
    `what` the selection in words.
    """

    by: str
    who: str
    act: str
    what: str = ""


NEVER: Final = 1e12  # a time long after everything


class Search(NamedTuple):
    """Which dead letters are meant; what is empty matches all. `ids` are whole ids.

    `event_type` matches as a whole; `error`, and `text` (in id, delivery id, event type or error),
    match anywhere and in any case.
    """

    source: str = ""
    cause: str = ""
    event_type: str = ""
    error: str = ""
    text: str = ""
    since: float = 0.0
    until: float = NEVER
    ids: tuple[str, ...] = ()


class Cause(NamedTuple):
    """Dead letters that failed alike. `first_at` and `last_at` are when they died; `sample` is the
    last one's id.
    """

    id: str
    source: str
    cause: str
    total: int
    first_at: float
    last_at: float
    sample: str


class Event(NamedTuple):
    """An entry of the history: what happened to a job, and the facts of it."""

    id: str
    at: float
    event: str
    source: str
    facts: Facts

    def as_json(self) -> dict[str, Any]:
        """Return the event as it is printed within the story of its job."""
        return {"at": self.at, "event": self.event, "source": self.source, **self.facts}


class Deed(NamedTuple):
    """What an operator did: retry, discard or restore `total` dead letters."""

    at: float
    name: str
    total: int
    act: Act
    restorable: bool


class SourceLedger(NamedTuple):
    """One source's part of the ledger; `oldest_…` is 0 when there is none."""

    ready: int = 0
    leased: int = 0
    retry: int = 0
    dead: int = 0
    oldest_ready: float = 0.0
    oldest_dead: float = 0.0


class Ledger(NamedTuple):
    """What was accepted and where it is, all of one moment. The gap is 0, or something is wrong.

    `spooled` and `spool_bytes` are of one machine's spool, None while they are not known;
    `spool_why` is what keeps them from being read. Redis knows nothing of them.
    """

    accepted: int
    ready: int
    leased: int
    retry: int
    dead: int
    done: int
    discarded: int
    gap: int
    sources: Mapping[str, SourceLedger]
    spooled: int | None = None
    spool_bytes: int | None = None
    spool_why: str = ""


class InHand(NamedTuple):
    """The job a worker was running at its last heartbeat, for how long."""

    id: str
    source: str
    for_s: float


class Beat(NamedTuple):
    """A worker's last heartbeat; `at` is when it came, by Redis' clock."""

    at: float
    pid: int
    up_s: float
    done: int
    job: InHand | None


class IngestionBeat(NamedTuple):
    """An ingestion process's last heartbeat; `at` is when it came, by Redis' clock."""

    at: float
    host: str
    pid: int
    up_s: int
    connections: int
    spooled: int


def entry_time(entry: bytes) -> float:
    """Return when an entry of a stream was added."""
    return int(entry.split(b"-")[0]) / 1000


def leases(reply: Any) -> list[Lease]:
    """Return the leases of a reply of XREADGROUP."""
    prefix = key("ready", "")
    streams = [(stream.decode().removeprefix(prefix), entries) for stream, entries in reply or ()]
    return [
        lease(source, entry, values)
        for source, entries in streams
        for entry, values in entries
        if values
    ]


def lease(source: str, entry: bytes, values: Sequence[bytes]) -> Lease:
    if values[1] != _FORMAT:
        return Lease(entry, Delivery("", source, "", "", 0.0, b"", b""), 0, False, False)
    fields = dict(zip(values[::2], values[1::2], strict=True))
    return Lease(
        entry, delivery(source, fields), int(fields[b"deaths"]), fields[b"suspect"] == b"1"
    )


def _decoder() -> Callable[[str, Mapping[bytes, bytes]], Delivery]:
    """Return what makes a Delivery of (source, fields): one expression, made of the table. A loop
    over the fields would cost a job 0.9 µs more.
    """
    read = {
        str: "fields.get(b'{0}', b'').decode()",
        float: "float(fields.get(b'{0}') or 0)",
        int: "int(fields.get(b'{0}') or 0)",
        bytes: "fields.get(b'{0}', b'')",
    }
    texts = {field.name: read[field.kind].format(field.name) for field in FIELDS}
    values = ", ".join((texts | {"source": "source"})[name] for name in Delivery._fields)
    made: Callable[[str, Mapping[bytes, bytes]], Delivery] = eval(  # noqa: S307
        f"lambda source, fields: Delivery({values})", {"Delivery": Delivery}
    )
    return made


delivery: Final = _decoder()


def event(entry: bytes, name: bytes, source: bytes, id: bytes, facts: bytes) -> Event:
    return Event(id.decode(), entry_time(entry), name.decode(), source.decode(), json.loads(facts))


def ledger(reply: Sequence[Any]) -> Ledger:
    """Return the ledger of a reply of audit.lua."""
    accepted, done, discarded, retry, dead, *flat = reply
    sources = {}
    for at in range(0, len(flat), 7):
        name, *counts, ready_ms, dead_ms = flat[at : at + 7]
        row = SourceLedger._make([*counts, ready_ms / 1000, dead_ms / 1000])
        sources[name.decode()] = row
    ready = sum(source.ready for source in sources.values())
    leased = sum(source.leased for source in sources.values())
    gap = accepted - (ready + leased + retry + dead + done + discarded)
    return Ledger(accepted, ready, leased, retry, dead, done, discarded, gap, sources)


def beat(value: bytes) -> Beat:
    """Return a worker's heartbeat; what another version leaves out reads as 0."""
    at, text = value.split(b"\n", 1)
    row = json.loads(text)
    job = row.get("job")
    hand = InHand(job["id"], job["source"], job["for_s"]) if job else None
    return Beat(float(at), row.get("pid", 0), row.get("up_s", 0), row.get("done", 0), hand)


def ingestion_beat(value: bytes) -> IngestionBeat | None:
    """Return an ingestion process's heartbeat, None when another version wrote it otherwise."""
    at, host, text = value.split(b"\n", 2)
    row = json.loads(text)
    numbers = [row.get(name) for name in IngestionBeat._fields[2:]]
    if any(type(number) is not int for number in numbers):
        return None
    return IngestionBeat(float(at), host.decode(), *numbers)


def parked(id: str, values: Sequence[bytes | None], size: int, at: float) -> Parked:
    source, delivery_id, event_type, received_at, attempt, deaths, reason, cause, batch, facts = [
        (value or b"").decode("utf-8", "replace") for value in values
    ]
    numbers = float(received_at), int(attempt), int(deaths)
    names = id, source, delivery_id, event_type
    return Parked(*names, *numbers, reason, cause, batch, at, size, json.loads(facts or "{}"))
