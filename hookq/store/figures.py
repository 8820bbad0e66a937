"""How much and how well: counters, heartbeats, what was done last, and the health of Redis.

Functions of a client, none of which changes anything. Each is one round trip or two.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence

import redis

from hookq.store import records
from hookq.store.client import Client
from hookq.store.connection import reaching
from hookq.store.keys import key
from hookq.store.records import Act, Beat, Deed, Event, IngestionBeat, entry_time


def latest_events(client: Client, count: int) -> list[Event]:
    """Return the last events of all jobs, the latest first."""
    with reaching():
        entries = client.redis.xrevrange(key("history"), count=count)
    return [_event(*entry) for entry in entries]


def events_after(client: Client, entry: bytes, count: int) -> tuple[bytes, list[Event]]:
    """Return the last entry of the history, and the events after `entry`, the oldest first; none
    after b"".
    """
    with reaching():
        newest = client.redis.xrevrange(key("history"), count=1)
        since = b"(" + entry
        entries = client.redis.xrange(key("history"), since, "+", count=count) if entry else []
    return newest[0][0] if newest else b"0-0", [_event(*entry) for entry in entries]


def _event(entry: bytes, fields: Mapping[bytes, bytes]) -> Event:
    names = (b"event", b"source", b"id", b"facts")
    return records.event(entry, *(fields[name] for name in names))


def recent(client: Client) -> list[tuple[str, str, str]]:
    """Return (id, source, event type) of the deliveries accepted last, the latest first."""
    with reaching():
        found = [
            row.decode("utf-8", "replace").split("\n", 2)
            for row in client.redis.lrange(key("recent"), 0, -1)
        ]
    return [(id, source, event_type) for id, source, event_type in found]


def acts(client: Client, count: int) -> list[Deed]:
    """Return what operators did last, the latest first."""
    with reaching():
        chunks = client.redis.xrevrange(key("acts"), count=1000)
        deeds: dict[tuple[str, str], Deed] = {}
        for entry, values in chunks:  # a large act has an entry for each chunk
            act, name = Act(**json.loads(values[b"who"])), values[b"name"].decode()
            first = Deed(entry_time(entry), name, 0, act, False)
            deed = deeds.get((act.act, name), first)
            deeds[act.act, name] = deed._replace(total=deed.total + int(values[b"count"]))
        return [
            deed._replace(
                restorable=deed.name == "discard"
                and bool(client.redis.exists(key("batch", deed.act.act)))
            )
            for deed in list(deeds.values())[:count]
        ]


def states(client: Client, ids: Sequence[str]) -> dict[str, str]:
    """Return id → retry or dead, "" for a job that is neither."""
    with reaching():
        pipe = client.redis.pipeline(transaction=False)
        for id in ids:
            pipe.zscore(key("retry"), id)
            pipe.zscore(key("dead"), id)
        found = pipe.execute()
    rows = zip(ids, found[::2], found[1::2], strict=True)
    return {
        id: "retry" if retry is not None else "dead" if dead is not None else ""
        for id, retry, dead in rows
    }


def minutes(client: Client, count: int) -> list[tuple[int, dict[str, int]]]:
    """Return (minute, counters) of the last `count` minutes by Redis' clock, the oldest first,
    the running one last.
    """
    with reaching():
        current = int(client.redis.time()[0]) // 60
        wanted = range(current - count + 1, current + 1)
        pipe = client.redis.pipeline(transaction=False)
        for minute in wanted:
            pipe.hgetall(key("minute", str(minute)))
        found = pipe.execute()
    return [
        (m, {name.decode(): int(n) for name, n in row.items()})
        for m, row in zip(wanted, found, strict=True)
    ]


def last(client: Client) -> dict[str, float]:
    """Return when the counters of the minutes were raised last, by name, in unix seconds."""
    with reaching():
        return {name.decode(): float(at) for name, at in client.redis.hgetall(key("last")).items()}


def metrics(client: Client) -> dict[str, int]:
    """Return every counter; names are as in keys.py."""
    with reaching():
        return {
            name.decode(): int(value)
            for name, value in client.redis.hgetall(key("metrics")).items()
        }


def workers(client: Client) -> dict[str, Beat]:
    """Return the last heartbeat of each worker by its name."""
    with reaching():
        rows = client.redis.hgetall(key("workers"))
    return {name.decode(): records.beat(value) for name, value in rows.items()}


def ingestion(client: Client) -> dict[str, IngestionBeat]:
    """Return the last heartbeat of each ingestion process by its name, those of silent hosts
    included.
    """
    with reaching():
        rows = client.redis.hgetall(key("ingestion"))
    beats = ((name.decode(), records.ingestion_beat(value)) for name, value in rows.items())
    return {name: beat for name, beat in beats if beat}


def health(client: Client, replicas: int = 0) -> tuple[dict[str, str], list[str]]:
    """Return what the boot check found (version, appendonly …), and a sentence for each setting
    that can lose jobs, or that keeps deliveries out since `replicas` are asked for.
    """
    with reaching():
        info = client.redis.info()
        found = {
            "version": str(info["redis_version"]),
            "maxmemory-policy": str(info["maxmemory_policy"]),
        }
        found["appendonly"] = "yes" if info["aof_enabled"] else "no"
        with contextlib.suppress(redis.ResponseError):  # CONFIG is often not allowed
            found["appendfsync"] = client.redis.config_get("appendfsync").get("appendfsync", "")
    risks = []
    if found["maxmemory-policy"] != "noeviction":
        risks.append(
            f"maxmemory-policy is {found['maxmemory-policy']}: a full Redis throws jobs "
            "away; set noeviction."
        )
    if found["appendonly"] == "no":
        risks.append("appendonly is no: a restart of Redis loses jobs; set appendonly yes.")
    if found.get("appendfsync", "always") != "always":
        risks.append(
            f"appendfsync is {found['appendfsync']}: a crash can lose the last second; set always."
        )
    if replicas > int(info["connected_slaves"]):
        here = int(info["connected_slaves"])
        risks.append(
            f"DURABILITY asks for {replicas} replicas and {here} are connected: deliveries "
            "stay in the spools until they are."
        )
    limit = int(info.get("maxmemory", 0))
    if limit and int(info["used_memory"]) > 0.9 * limit:
        risks.append("memory is over 90% full: raise maxmemory or discard dead letters.")
    return found, risks
