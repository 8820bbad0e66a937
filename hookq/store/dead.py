"""What an operator does with dead letters: find them, redrive, discard, restore.

Functions of a client, so that a program which may not do these does not import them. Ids that are
dead letters no longer are passed over: two people who act on the same ones move each once.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, Final

import redis

from hookq.store.client import Client
from hookq.store.connection import reaching
from hookq.store.keys import key
from hookq.store.records import Act, Cause, Search, packed

BATCH_KEPT_S: Final = 86_400
# Scripts are atomic: while one runs nobody else is served. 500 rows take about 5 ms.
CHUNK: Final = 500


def redrive_rank(client: Client, rank: int, act: Act) -> str | None:
    """Put back the dead letter at `rank` (0 is the oldest); return its id, or None when there is no
    such rank.

    WATCH, read the rank, MULTI, script, EXEC. When the dead set changed in between, the same id is
    tried again as long as it is dead: whoever loses that race gets LookupError, and never moves a
    neighbour.
    """
    with reaching():
        id = next(iter(client.redis.zrange(key("dead"), rank, rank)), None)
        while id is not None:
            with client.redis.pipeline() as pipe:
                pipe.watch(key("dead"))
                if pipe.zscore(key("dead"), id) is None:
                    raise LookupError(id.decode())
                pipe.multi()
                with contextlib.suppress(redis.WatchError):
                    if not client.exec(pipe, "redrive", packed(act._asdict()), id):
                        raise LookupError(id.decode())  # an orphan: it has no job to put back
                    return str(id.decode())
    return None


def redrive(client: Client, ids: Sequence[str], act: Act) -> list[str]:
    """Put these dead letters back; return those that were."""
    return _in_chunks(client, "redrive", ids, act)


def discard(client: Client, ids: Sequence[str], act: Act) -> list[str]:
    """Remove these dead letters, restorable for 24 h as the batch `act.act`; return those that
    were.
    """
    return _in_chunks(client, "discard", ids, act, BATCH_KEPT_S)


def restore(client: Client, ids: Sequence[str], act: Act) -> list[str]:
    """Make these discarded jobs dead letters again; return those that are."""
    return _in_chunks(client, "restore", ids, act)


def batch(client: Client, name: str) -> list[str]:
    """Return the ids of what one act discarded and can still be restored."""
    with reaching():
        return [id.decode() for id in client.redis.zrange(key("batch", name), 0, -1)]


def last_batch(client: Client) -> str | None:
    """Return the batch that was discarded last and can still be restored."""
    with reaching():
        for name in client.redis.zrevrange(key("batches"), 0, -1):
            if client.redis.exists(key("batch", name.decode())):
                return str(name.decode())
    return None


def _in_chunks(client: Client, script: str, ids: Sequence[str], act: Act, *args: Any) -> list[str]:
    """Run a script on `ids`, each chunk within MULTI/EXEC; return the ids it moved."""
    moved: list[str] = []
    who = packed(act._asdict())
    for start in range(0, len(ids), CHUNK):
        with reaching(), client.redis.pipeline() as pipe:
            chunk = ids[start : start + CHUNK]
            moved += [id.decode() for id in client.exec(pipe, script, who, *args, *chunk)]
    return moved


# ---------------- which ones


def count_dead(client: Client, search: Search) -> int | None:
    """Return how many match, or None when only reading them all could tell."""
    if search.event_type or search.error or search.text or search.ids:
        return None
    with reaching():
        return int(client.redis.zcount(_dead_set(search), search.since, search.until))


def search_dead(
    client: Client, search: Search, passed: int, look: int, *, newest: bool = False
) -> tuple[int, list[tuple[str, int]]]:
    """Pass over `passed` dead letters and look at the next `look`; return how many those were, and
    (id, rank) of the matches.
    """
    window = (repr(search.since), repr(search.until), passed, look)
    looked, *flat = client.run(
        "select",
        _dead_set(search),
        int(newest),
        *window,
        search.event_type,
        search.error,
        search.text,
        *search.ids,
    )
    return looked, list(zip((id.decode() for id in flat[::2]), flat[1::2], strict=True))


def _dead_set(search: Search) -> str:
    """Return the smallest set that has all that match: a cause is of one source."""
    if search.cause:
        return key("cause", search.cause)
    return key("dead", search.source) if search.source else key("dead")


def dead_beginning(client: Client, begin: str) -> list[str]:
    """Return the ids of dead letters that begin with `begin`."""
    with reaching():
        rows = client.redis.zscan_iter(key("dead"), match=glob(begin) + "*", count=1000)
        return sorted(id.decode() for id, _ in rows)


def causes(client: Client) -> list[Cause]:
    """Return the causes that have dead letters."""
    with reaching():
        known = [
            (id.decode(), *text.decode().split("\n", 1))
            for id, text in client.redis.hgetall(key("causes")).items()
        ]
        pipe = client.redis.pipeline(transaction=False)
        for id, _, _ in known:
            pipe.zcard(key("cause", id))
            pipe.zrange(key("cause", id), 0, 0, withscores=True)
            pipe.zrange(key("cause", id), -1, -1, withscores=True)
        replies = pipe.execute()
    rows = zip(known, replies[::3], replies[1::3], replies[2::3], strict=True)
    return [
        Cause(id, source, cause, total, first[0][1], last[0][1], last[0][0].decode())
        for (id, source, cause), total, first, last in rows
        if first and last  # its last dead letter may have left between the two reads
    ]


def glob(text: str) -> str:
    """Return the pattern that matches `text` itself."""
    return "".join("\\" + c if c in "*?[]^-\\" else c for c in text)
