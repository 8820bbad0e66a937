"""What is where: the ledger, what is wrong with it, and what is known of one job or delivery.

Functions of a client, none of which changes anything. Lists never read a body; what searches
through many does it in pieces, so that nobody waits long.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

import redis

from hookq.job import ID_LENGTH, Delivery, arrived_at
from hookq.store import records
from hookq.store.client import Client
from hookq.store.connection import reaching
from hookq.store.dead import glob
from hookq.store.keys import GROUP, key
from hookq.store.records import PARKED, Event, Ledger, Parked

# Ids carry the clock of their host: entries and events of a job may be dated this much earlier.
CLOCKS_APART_S: Final = 120.0
# Bodies that one step of a search may have in memory at once.
FIND_BYTES: Final = 4 << 20
PARKED_SETS: Final = {"retry": key("retry"), "dead": key("dead")}
# What became of a job that Redis no longer holds, by its last event.
ENDED: Final = {"job.complete": "done", "job.discard": "discarded"}


def audit(client: Client) -> Ledger:
    """Return the ledger of Redis, all of one moment."""
    return records.ledger(client.run("audit"))


def orphans(client: Client) -> list[str]:
    """Return a line for each member of a set without its job, each parked job in no set, each
    entry that nobody will run.

    What looks wrong is looked at again: between two reads it may just have been moved on.
    """
    with reaching():
        seen = _odd(client)
        return sorted(seen & _odd(client)) if seen else []


def _odd(client: Client) -> set[str]:
    lines, members = set(), set()
    for name, parked_set in PARKED_SETS.items():
        ids = {id for id, _ in client.redis.zscan_iter(parked_set, count=1000)}
        members |= ids
        lines |= {
            f"{id.decode()} is in {name} without its job"
            for id in ids
            if not client.redis.exists(key("job", id.decode()))
        }
    for found in client.redis.scan_iter(key("job", "*"), count=1000):
        id = found.removeprefix(key("job", "").encode())
        if id not in members and client.redis.ttl(found) == -1:
            lines.add(f"{id.decode()} is a parked job in neither retry nor dead")
    for source in client.sources():
        lines |= {
            f"{id} of {source} is neither ready nor leased: nobody will run it"
            for id in _stranded(client, source)
        }
    return lines


def _stranded(client: Client, source: str) -> Iterator[str]:
    """Yield the ids of entries that were taken once and are in no pending list: those before
    the last one taken.
    """
    groups = (
        client.redis.xinfo_groups(key("ready", source))
        if client.redis.exists(key("ready", source))
        else []
    )
    if not groups:
        return
    taken = _entry_number(groups[0]["last-delivered-id"])
    pending = {
        row["message_id"]
        for row in client.redis.xpending_range(key("ready", source), GROUP, "-", "+", 100_000)
    }
    for entry, id in _scan(client, source, b"-", ""):
        if _entry_number(entry) > taken:
            return
        if entry not in pending:
            yield id.decode()


def parked(client: Client, ids: Sequence[str]) -> list[Parked]:
    """Return these parked jobs without their bodies, in one round trip; those that have left
    are missing.
    """
    with reaching():
        pipe = client.redis.pipeline(transaction=False)
        for id in ids:
            pipe.hmget(key("job", id), PARKED)
            pipe.hstrlen(key("job", id), "body")
            pipe.zscore(key("dead"), id)
            pipe.zscore(key("retry"), id)
        found = pipe.execute()
    rows = zip(ids, found[::4], found[1::4], found[2::4], found[3::4], strict=True)
    return [
        records.parked(id, values, size, died_at or due_at or 0.0)
        for id, values, size, died_at, due_at in rows
        if values[0] is not None
    ]


def trace(client: Client, id: str) -> str:
    """Return the traceback of a dead letter's last attempt, "" if there is none."""
    with reaching():
        return (client.redis.hget(key("job", id), "trace") or b"").decode("utf-8", "replace")


def locate(client: Client, text: str) -> dict[str, str]:
    """Return id → state of every job whose id begins with `text`, or whose delivery id is
    `text`.
    """
    found: dict[str, str] = {}
    with reaching():
        seen = [client.redis.get(key("seen", source, text)) for source in client.sources()]
        for begin in {text, *(id.decode() for id in seen if id)}:
            for event in events(client, begin):
                if event.event != "delivery.duplicate":  # which moves nothing
                    found[event.id] = ENDED.get(event.event, "gone")
            if client.redis.exists(key("job", begin)):
                found[begin] = "discarded"
            found |= dict(_parked_beginning(client, begin))
            for source, entry, id in _entries(client, begin):
                found[id] = "ready"
                # Without a group nobody has leased anything yet.
                with contextlib.suppress(redis.ResponseError):
                    if client.redis.xpending_range(key("ready", source), GROUP, entry, entry, 1):
                        found[id] = "leased"
            if begin != text:
                found.setdefault(begin, "done")
    return found


def _parked_beginning(client: Client, begin: str) -> Iterator[tuple[str, str]]:
    """Yield (id, state) of retries and dead letters whose id begins so."""
    for state, parked_set in PARKED_SETS.items():
        if len(begin) >= ID_LENGTH:  # a whole id: no need to look through all
            if client.redis.zscore(parked_set, begin) is not None:
                yield begin, state
            continue
        for id, _ in client.redis.zscan_iter(parked_set, match=glob(begin) + "*", count=1000):
            yield id.decode(), state


def _entries(client: Client, begin: str) -> Iterator[tuple[str, bytes, str]]:
    """Yield (source, entry, id) of ready and leased jobs whose id begins so."""
    start = arrived_at(begin)
    if start is None:
        return
    for source in client.sources():
        first = f"{max(0, int(1000 * (start - CLOCKS_APART_S)))}".encode()
        yield from (
            (source, entry, id.decode()) for entry, id in _scan(client, source, first, begin)
        )


def _scan(client: Client, source: str, after: bytes, begin: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (entry, id). Few at a time where bodies are long: the script has them all in memory
    at once.
    """
    count = 16
    while after:
        after, size, *found = client.run("find", source, after, count, begin)
        yield from zip(found[::2], found[1::2], strict=True)
        after = b"(" + after if after else b""
        count = max(1, min(2 * count, 1000, count * FIND_BYTES // max(size, 1)))


def delivery(client: Client, id: str) -> Delivery | None:
    """Return the delivery of a job that is not done, body included, or None when it is not kept
    any more.
    """
    with reaching():
        found = client.redis.hgetall(key("job", id))
        if found:
            return records.delivery(found[b"source"].decode(), found)
        for source, entry, _ in _entries(client, id):
            for _, values in client.redis.xrange(key("ready", source), entry, entry):
                return records.delivery(source, values)
    return None


def events(client: Client, begin: str) -> list[Event]:
    """Return the events of jobs whose id begins so, the oldest first."""
    start = arrived_at(begin)
    if start is None:
        return []
    latest: list[Event] = []
    after, end = b"+", max(0, int(1000 * (start - CLOCKS_APART_S)))
    while after:
        after, *flat = client.run("story", after, end, 1000, begin)
        latest += [records.event(*flat[i : i + 5]) for i in range(0, len(flat), 5)]
        after = b"(" + after if after else b""
    return latest[::-1]


def _entry_number(entry: bytes | str) -> tuple[int, int]:
    text = entry.decode() if isinstance(entry, bytes) else entry
    ms, _, number = text.partition("-")
    return int(ms), int(number)
