"""Dead letters, as an operator acts on them: select, put back, discard, restore, and the story of one delivery.

One module under both the dashboard and dlqctl, so that page and command select, count and do the same. It neither
prints nor renders. `by` says who acts: "page" or "command"; every act is counted, remembered and logged (R8).
"""

import secrets
from dataclasses import dataclass
from typing import Any

from hookq import log
from hookq.job import Delivery
from hookq.store import Parked, Store

# 8 characters of hex: an act is undone by typing this, so it is short; 24 h of acts do not collide.
BATCH_BYTES = 4


class NoSuch(Exception):
    """There is no such dead letter, batch or delivery; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of one delivery. `delivery` is None once its body is gone (done, or discarded for 24 h)."""

    id: str
    state: str
    delivery: Delivery | None
    parked: Parked | None
    events: list[dict[str, Any]]


def retry_rank(store: Store, rank: int, by: str) -> str:
    """Put back the dead letter number `rank` (the oldest is 0); return its id. Raises NoSuch."""
    try:
        id = store.redrive_rank(rank, by)
    except LookupError as error:
        raise NoSuch(f"Somebody else has just put back or discarded {error}; see `dlqctl --view`.") from None
    if id is None:
        raise NoSuch(f"There is no dead letter number {rank}; see `dlqctl --view`.")
    log.event("job.redrive", id=id, by=by)
    return id


def retry_all(store: Store, by: str) -> list[str]:
    """Put back every dead letter there is now; return their ids."""
    moved = store.redrive(store.dead_ids(), by)
    for id in moved:
        log.event("job.redrive", id=id, by=by)
    return moved


def discard_all(store: Store, by: str) -> tuple[str, list[str]]:
    """Discard every dead letter there is now; return (batch, ids). The batch can be restored for 24 h."""
    batch = secrets.token_hex(BATCH_BYTES)
    moved = store.discard(store.dead_ids(), by, batch)
    log.event("batch.discard", batch=batch, count=len(moved), by=by)
    return batch, moved


def restore(store: Store, batch: str | None, by: str) -> tuple[str, list[str]]:
    """Bring a batch back, the last one if none is named; return (batch, ids). Raises NoSuch."""
    batch = batch or store.last_batch()
    moved = store.restore(batch, by) if batch else []
    if not batch or not moved:
        named = f"batch {batch}" if batch else "discarded batch"
        raise NoSuch(f"There is no {named} to bring back: it was restored already, or discarded more than 24 h ago.")
    log.event("batch.restore", batch=batch, count=len(moved), by=by)
    return batch, moved


def story(store: Store, text: str) -> Story:
    """Return the story of the one delivery whose job id begins with `text`, or whose delivery id it is. Raises NoSuch."""
    states = store.states_of(text)
    if text in states:  # a whole id, which may also be the beginning of nothing else
        states = {text: states[text]}
    if not states:
        raise NoSuch(f"No delivery is known by {log.printable(text)}: its id may be wrong, or it was done too long ago.")
    if len(states) > 1:
        some = ", ".join(sorted(states)[:5])
        raise NoSuch(f"{len(states)} deliveries are known by {log.printable(text)}: {some}, …; give more of the id.")
    id, state = next(iter(states.items()))
    events = [event for _, event in store.history(id)]
    return Story(id, state, store.delivery(id), store.parked_job(id), events)


def act_on(store: Store, act: str, id: str, by: str) -> str:
    """Do one act of the page (retry, discard: on a whole id; restore: of a batch); return what was done. Raises NoSuch."""
    if act == "restore":
        batch, moved = restore(store, id, by)
        return f"Restored {len(moved)} of batch {batch}."
    if act == "retry":
        moved, said = store.redrive([id], by), f"Put back {id}."
    else:
        batch = secrets.token_hex(BATCH_BYTES)
        moved, said = store.discard([id], by, batch), f"Discarded {id} (batch {batch}; back: dlqctl --undo {batch})."
    if not moved:
        raise NoSuch(f"{log.printable(id) or 'That'} is no dead letter any more: somebody else has put it back or discarded it.")
    log.event("job.redrive" if act == "retry" else "job.discard", id=id, by=by)
    return said


# ---------------- how both say it


def counted(count: int) -> str:
    return f"{count:,} dead letter" + ("" if count == 1 else "s")


def why(job: Parked) -> str:
    error = str(job.facts.get("error", ""))
    return error if error.startswith(job.reason) else f"{job.reason}: {error}"


def age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"
