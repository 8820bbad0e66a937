"""Dead letters, as an operator acts on them: select, then redrive, discard or restore.

The dashboard and dlqctl both go select → ids → act: the selection is made once, and the act moves
the ids it returned. So they select, count and do the same. This module neither prints nor renders.

Promises: every act is counted, remembered (who, from where, what, how many) and logged (R8). It
moves nothing that was not selected; an id that somebody else has moved meanwhile is left out.
"""

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from hookq import log
from hookq.operate import phrases
from hookq.store import dead, reading
from hookq.store.client import Client
from hookq.store.dead import CHUNK
from hookq.store.records import NEVER, Act, Cause, Parked, Search

# 8 characters of hex: people type this to restore, so it is short; 24 h of acts do not collide.
ACT_BYTES: Final = 4
# One act of the page: what a browser waits for, and a person can oversee.
PAGE_LIMIT: Final = 1000
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

    @property
    def ids(self) -> list[str]:
        return list(self.numbers)


# ---------------- select


def search_of(texts: Mapping[str, str], now: float, ids: Sequence[str] = ()) -> Search:
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
        ids=tuple(ids),
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


def frozen(search: Search, now: float) -> Search:
    """Return the selection up to now: what dies while a person reads a question is not touched."""
    return search._replace(until=min(search.until, now))


def select(
    store: Client,
    search: Search,
    passed: int = 0,
    limit: int = 0,
    *,
    newest: bool = False,
    within_s: float = 1e9,
) -> Selected:
    """Return the dead letters that match, after the first `passed` of them; all if `limit` is 0.

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
    page = matches[passed : passed + limit if limit else None]
    return Selected(dict(page), total, max(0, everything - at))


def jobs(store: Client, selected: Selected) -> Iterator[tuple[int, Parked]]:
    """Yield (number, job) of those selected; those that have left meanwhile are missing."""
    ids = selected.ids
    for start in range(0, len(ids), CHUNK):
        for job in reading.parked(store, ids[start : start + CHUNK]):
            yield selected.numbers[job.id], job


def whole_ids(store: Client, beginnings: Sequence[str]) -> list[str]:
    """Return the dead letters meant by these beginnings of ids; each must mean exactly one. Raises
    NoSuch.
    """
    ids: list[str] = []
    for begin in beginnings:
        matches = dead.dead_beginning(store, begin) if begin else []
        if len(matches) != 1:
            some = f"{len(matches)} dead letters begin" if matches else "No dead letter begins"
            raise NoSuch(f"{some} with {log.printable(begin) or 'nothing'}; see `dlqctl --view`.")
        ids += matches
    return ids


def by_cause(store: Client, search: Search) -> list[Cause]:
    """Return the causes of the dead letters that match, largest first, counted by what matches."""
    rows = []
    for cause in dead.causes(store):
        if search.cause in ("", cause.id) and search.source in ("", cause.source):
            if search != Search(source=search.source, cause=search.cause):
                ids = select(store, search._replace(cause=cause.id)).ids
                ends = reading.parked(store, [ids[0], ids[-1]]) if ids else []
                if len(ends) < 2:
                    continue
                # Ids that were named come in the order in which they were named.
                ends.sort(key=lambda job: job.at)
                cause = cause._replace(
                    total=len(ids), first_at=ends[0].at, last_at=ends[1].at, sample=ends[1].id
                )
            rows.append(cause)
    return sorted(rows, key=lambda cause: (-cause.total, cause.first_at))


# ---------------- act


def actor(by: str, who: str) -> Act:
    """Return a new act of `who`, who uses the page or the command."""
    return Act(by, log.printable(who), secrets.token_hex(ACT_BYTES))


def redrive_number(store: Client, number: int, act: Act) -> str:
    """Redrive dead letter `number` (the oldest is 0); return its id. Raises NoSuch.

    The number is read and the job moved in one transaction: of two people only one moves it.
    """
    try:
        id = dead.redrive_rank(store, number, act._replace(what=f"number {number}"))
    except LookupError as error:
        raise NoSuch(
            f"Somebody else has just put back or discarded {error}; see `dlqctl --view`."
        ) from None
    if id is None:
        raise no_number(number)
    _log("act.retry", act, 1, id=id)
    return id


def no_number(number: int) -> NoSuch:
    return NoSuch(f"There is no dead letter number {number}; see `dlqctl --view`.")


def redrive(store: Client, ids: Sequence[str], search: Search, act: Act) -> list[str]:
    """Put these dead letters, selected by `search`, back; return the ids of those that were."""
    what = phrases.words(search)
    moved = dead.redrive(store, ids, act._replace(what=what))
    _log("act.retry", act, len(moved), what=what)
    return moved


def discard(store: Client, ids: Sequence[str], search: Search, act: Act) -> list[str]:
    """Discard these dead letters, selected by `search`; return the ids of those that were. They can
    be restored for 24 h as the batch `act.act`.
    """
    what = phrases.words(search)
    moved = dead.discard(store, ids, act._replace(what=what))
    _log("act.discard", act, len(moved), what=what, batch=act.act)
    return moved


def restore(store: Client, batch: str, act: Act) -> tuple[str, list[str]]:
    """Restore a batch, the last one if none is named; return (batch, ids). Raises NoSuch."""
    batch = batch or dead.last_batch(store) or ""
    moved = (
        dead.restore(store, dead.batch(store, batch), act._replace(what=f"batch {batch}"))
        if batch
        else []
    )
    if not moved:
        which = f"batch {log.printable(batch)}" if batch else "discarded batch"
        raise NoSuch(
            f"There is no {which} to bring back: it was restored already, or discarded more "
            "than 24 h ago."
        )
    _log("act.restore", act, len(moved), batch=batch)
    return batch, moved


def restore_one(store: Client, id: str, act: Act) -> str:
    """Restore one discarded delivery; return its id. Raises NoSuch."""
    if not dead.restore(store, [id], act._replace(what=id)):
        raise NoSuch(
            f"{log.printable(id) or 'That'} is not discarded: it was restored already, or "
            "discarded more than 24 h ago."
        )
    _log("act.restore", act, 1, id=id)
    return id


def _log(event: str, act: Act, count: int, **facts: Any) -> None:
    log.event(event, by=act.by, who=act.who, count=count, **facts)
