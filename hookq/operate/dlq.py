"""Dead letters, as an operator acts on them: select, put back, discard, restore, and the story of
one delivery.

One module under both the dashboard and dlqctl, so that page and command select, count and do the
same. It neither prints nor renders. Every act is counted, remembered (who, from where, what, how
many) and logged (R8).
"""

import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from hookq import log
from hookq.ingest.spool import Spool, SpoolFailed
from hookq.job import Delivery, Headers, header_lines
from hookq.store import dead, reading
from hookq.store.client import Client
from hookq.store.dead import CHUNK
from hookq.store.records import NEVER, Act, Cause, Event, Ledger, Parked, Search

# 8 characters of hex: an act is undone by typing this, so it is short; 24 h of acts do not collide.
ACT_BYTES: Final = 4
# Headers that could let somebody in.
HIDDEN: Final = re.compile(
    r"auth|cookie|signature|hmac|digest|token|secret|password|jwt|assertion|-key$"
)
PAGE_LIMIT: Final = (
    1000  # moved by one act of the page: what a browser waits for, and a person can oversee
)
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class NoSuch(Exception):
    """There is no such dead letter, batch or delivery; the message says which and what to do."""


class Nonsense(Exception):
    """A selection that cannot be understood; the message says what would be right."""


class Selected(NamedTuple):
    """Dead letters that match: id → number, in order. `total` is None where only a search through
    all could tell; `left` were not looked at.
    """

    numbers: dict[str, int]
    total: int | None
    left: int


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of one delivery. `delivery` is None once its body is gone (done, or
    discarded for 24 h).
    """

    id: str
    state: str
    delivery: Delivery | None
    parked: Parked | None
    trace: str
    events: list[Event]


def audit(store: Client, state_dir: Path) -> Ledger:
    """Return the ledger of Redis and this machine's spool together: `accepted` counts both. A spool
    that cannot be read is never called empty.
    """
    ledger = reading.audit(store)
    try:
        spooled, spool_bytes = spool_size(state_dir)
    except SpoolFailed as error:
        return ledger._replace(spool_why=str(error))
    accepted = ledger.accepted + spooled
    return ledger._replace(accepted=accepted, spooled=spooled, spool_bytes=spool_bytes)


def spool_size(state_dir: Path) -> tuple[int, int]:
    """Return (deliveries, bytes) of this machine's spool. Raises SpoolFailed."""
    return Spool(state_dir / "spool.db", 0).size() if state_dir.exists() else (0, 0)


# ---------------- select


def search_of(texts: Mapping[str, str], now: float, ids: tuple[str, ...] = ()) -> Search:
    """Return the Search that these texts mean: source, cause, event_type, error, text, since,
    until. Raises Nonsense.
    """
    since, until = texts.get("since", ""), texts.get("until", "")
    cause = texts.get("cause", "").lower()
    if cause and not re.fullmatch(r"[0-9a-f]{8}", cause):
        raise Nonsense(
            f"{log.printable(cause)} is no cause: they have 8 characters, and `dlqctl --view "
            "--by-cause` lists them."
        )
    return Search(
        source=texts.get("source", ""),
        cause=cause,
        event_type=texts.get("event_type", ""),
        error=texts.get("error", ""),
        text=texts.get("text", ""),
        since=when(since, now) if since else 0.0,
        until=when(until, now) if until else NEVER,
        ids=ids,
    )


def when(text: str, now: float) -> float:
    """Return the unix time that `text` means: "90s", "2h", "3d" ago, or an ISO date. Raises
    Nonsense.
    """
    ago = re.fullmatch(r"([0-9]{1,9})([smhd])", text.strip())
    if ago:
        return max(0.0, now - int(ago[1]) * UNITS[ago[2]])
    try:
        at = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        raise Nonsense(
            f"{log.printable(text)} is no time: write 90s, 15m, 2h or 3d for so long ago, or "
            "2026-01-31T12:00."
        ) from None
    return max(0.0, at)


def words(search: Search) -> str:
    """Return the selection in words, for the list of acts and for questions."""
    told = [
        f"{name} {value}"
        for name, value in search._asdict().items()
        if value and name not in ("since", "until", "ids")
    ]
    told += [
        f"{name} {stamp(at)}"
        for name, at in (("since", search.since), ("until", search.until))
        if 0 < at < NEVER
    ]
    told += [f"{len(search.ids)} by id"] if search.ids else []
    return ", ".join(told).replace("event_type", "event type") or "all"


def select(
    store: Client,
    search: Search,
    passed: int = 0,
    limit: int = 0,
    *,
    newest: bool = False,
    within_s: float = 1e9,
) -> Selected:
    """Return the dead letters that match, after passing over the first `passed` of them; all if
    `limit` is 0.

    A search through many stops after `within_s` and says how many it did not look at.
    """
    total, end = dead.count_dead(store, search), time.monotonic() + within_s
    at = 0
    matches: list[tuple[str, int]] = []
    if total is not None:  # every one matches: no need to look at those passed over
        at, passed = passed, 0
    while not limit or len(matches) < passed + limit:
        look = CHUNK if total is None or not limit else min(CHUNK, passed + limit - len(matches))
        looked, more = dead.search_dead(store, search, at, look, newest=newest)
        at += looked
        matches += more
        if looked < look or time.monotonic() > end:
            break
    everything = (
        len(search.ids)
        or dead.count_dead(store, search._replace(event_type="", error="", text=""))
        or 0
    )
    return Selected(
        dict(matches[passed : passed + limit if limit else None]), total, max(0, everything - at)
    )


def jobs(store: Client, selected: Selected) -> Iterator[tuple[int, Parked]]:
    """Yield (number, job) of those selected; those that have left meanwhile are missing."""
    ids = list(selected.numbers)
    for start in range(0, len(ids), CHUNK):
        for job in reading.parked(store, ids[start : start + CHUNK]):
            yield selected.numbers[job.id], job


def whole_ids(store: Client, beginnings: list[str]) -> tuple[str, ...]:
    """Return the dead letters meant by these beginnings of ids; each must mean exactly one. Raises
    NoSuch.
    """
    found = []
    for begin in beginnings:
        matches = dead.dead_beginning(store, begin) if begin else []
        if len(matches) != 1:
            some = f"{len(matches)} dead letters begin" if matches else "No dead letter begins"
            raise NoSuch(f"{some} with {log.printable(begin) or 'nothing'}; see `dlqctl --view`.")
        found += matches
    return tuple(found)


def by_cause(store: Client, search: Search) -> list[Cause]:
    """Return the causes of the dead letters that match, the most first, counted by what matches."""
    rows = []
    for cause in dead.causes(store):
        if search.cause in ("", cause.id) and search.source in ("", cause.source):
            if search != Search(source=search.source, cause=search.cause):
                ids = list(select(store, search._replace(cause=cause.id)).numbers)
                ends = reading.parked(store, [ids[0], ids[-1]]) if ids else []
                if len(ends) < 2:
                    continue
                ends.sort(
                    key=lambda job: job.at
                )  # ids that were named come in the order of the naming
                cause = cause._replace(
                    total=len(ids), first_at=ends[0].at, last_at=ends[1].at, sample=ends[1].id
                )
            rows.append(cause)
    return sorted(rows, key=lambda cause: (-cause.total, cause.first_at))


# ---------------- act


def actor(by: str, who: str) -> Act:
    """Return a new act of `who`, who uses the page or the command."""
    return Act(by, log.printable(who), secrets.token_hex(ACT_BYTES))


def retry_rank(store: Client, rank: int, act: Act) -> str:
    """Put back the dead letter number `rank` (the oldest is 0); return its id. Raises NoSuch."""
    try:
        id = dead.redrive_rank(store, rank, act._replace(what=f"number {rank}"))
    except LookupError as error:
        raise NoSuch(
            f"Somebody else has just put back or discarded {error}; see `dlqctl --view`."
        ) from None
    if id is None:
        raise NoSuch(f"There is no dead letter number {rank}; see `dlqctl --view`.")
    _log("act.retry", act, 1, id=id)
    return id


def retry(store: Client, search: Search, act: Act, limit: int = 0) -> list[str]:
    """Put back the dead letters that match, at most `limit` if given; return their ids."""
    moved = dead.redrive(
        store, list(select(store, search, limit=limit).numbers), act._replace(what=words(search))
    )
    _log("act.retry", act, len(moved), what=words(search))
    return moved


def discard(store: Client, search: Search, act: Act, limit: int = 0) -> list[str]:
    """Discard the dead letters that match; return their ids. They can be restored for 24 h as the
    batch `act.act`.
    """
    moved = dead.discard(
        store, list(select(store, search, limit=limit).numbers), act._replace(what=words(search))
    )
    _log("act.discard", act, len(moved), what=words(search), batch=act.act)
    return moved


def restore(store: Client, batch: str, act: Act) -> tuple[str, list[str]]:
    """Bring a batch back, the last one if none is named; return (batch, ids). Raises NoSuch."""
    named = batch or dead.last_batch(store) or ""
    moved = (
        dead.restore(store, dead.batch(store, named), act._replace(what=f"batch {named}"))
        if named
        else []
    )
    if not moved:
        told = f"batch {log.printable(named)}" if named else "discarded batch"
        raise NoSuch(
            f"There is no {told} to bring back: it was restored already, or discarded more "
            "than 24 h ago."
        )
    _log("act.restore", act, len(moved), batch=named)
    return named, moved


def restore_one(store: Client, id: str, act: Act) -> str:
    """Bring one discarded delivery back; return its id. Raises NoSuch."""
    if not dead.restore(store, [id], act._replace(what=id)):
        raise NoSuch(
            f"{log.printable(id) or 'That'} is not discarded: it was restored already, or "
            "discarded more than 24 h ago."
        )
    _log("act.restore", act, 1, id=id)
    return id


def _log(event: str, act: Act, count: int, **facts: Any) -> None:
    log.event(event, by=act.by, who=act.who, count=count, **facts)


# ---------------- one delivery


def said(found: Story) -> str:
    """Return what the target answered, or the command printed, in the last attempt that is known;
    "" if nothing.
    """
    facts = [event.facts for event in reversed(found.events)]
    facts += [found.parked.facts] if found.parked else []
    answer = next(
        (
            f["answer"]["body"] if "answer" in f else f["output"]
            for f in facts
            if "answer" in f or "output" in f
        ),
        "",
    )
    return str(answer)


def story(store: Client, text: str) -> Story:
    """Return the story of the one delivery whose job id begins with `text`, or whose delivery id it
    is. Raises NoSuch.
    """
    states = reading.locate(store, text) if text else {}
    if text in states:  # a whole id, which may also be the beginning of nothing else
        states = {text: states[text]}
    if not states:
        raise NoSuch(
            f"No delivery is known by {log.printable(text) or 'nothing'}: its id may be wrong, "
            "or it was done too long ago."
        )
    if len(states) > 1:
        some = ", ".join(sorted(states)[:5])
        raise NoSuch(
            f"{len(states)} deliveries are known by {log.printable(text)}: {some}, …; give "
            "more of the id."
        )
    id, state = next(iter(states.items()))
    events = reading.events(store, id)
    return Story(
        id,
        state,
        reading.delivery(store, id),
        next(iter(reading.parked(store, [id])), None),
        reading.trace(store, id),
        events,
    )


def shown_headers(delivery: Delivery | None) -> Headers:
    """Return the sender's headers; what could let somebody in is not shown."""
    shown = Headers()
    for name, value in header_lines(delivery.head) if delivery else ():
        name = name.lower()
        value = "(hidden)" if HIDDEN.search(name) else value
        shown[name] = f"{shown[name]}, {value}" if name in shown else value
    return shown


# ---------------- how both say it


def counted(count: int) -> str:
    return f"{count:,} dead letter" + ("" if count == 1 else "s")


def why(job: Parked) -> str:
    error = str(job.facts.get("error", ""))
    return error if error.startswith(job.reason) else f"{job.reason}: {error}"


def age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def stamp(at: float) -> str:
    """Return a time as people in any place can compare it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
