"""The store: whatever is done with jobs. One verb, one atomic step (R4), most of them a script in
lua/.

An entry of a stream never changes hands: whoever takes a job over makes a new entry and removes the
old one. So the entry is the fence: a worker that is late finds nothing to settle (R5). Names of
keys are in keys.py, connections in connection.py.

Promises: a verb that raised Away has done all of its work or none. Does not promise which: ask
again.
"""

import contextlib
import json
import secrets as random_bytes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import redis

from hookq.job import ID_LENGTH, MAX_DEATHS, Delivery, arrived_at
from hookq.store.accept import accept_packed, accepted
from hookq.store.connection import Away, connect, reaching
from hookq.store.keys import PREFIX, SCRIPTS, key

GROUP: Final = "workers"
# Over a network, whoever was connected to the server that failed may hang for a client's whole
# limit, twice, and comes late.
REMOTE_GRACE_S: Final = 12.0
FORMAT: Final = b"1"  # of jobs, as in lua/prelude.lua: a field more at the end is still this one
BATCH_KEPT_S: Final = 86_400
# How much earlier than a job id says its entries and events may be dated: ids have the clock of
# their host.
CLOCKS_APART_S: Final = 120.0
# Of bodies that one step of a search may have in memory at once.
FIND_BYTES: Final = 4 << 20
# A lease lasts this long without a renewal. Renewed every 10 s, so three renewals may fail.
LEASE_S: Final = 30.0
RENEW_S: Final = 10.0
# Scripts are atomic: while one runs nobody else is served. 500 rows take about 5 ms.
CHUNK: Final = 500

# Made once: json.dumps makes a new encoder for each call with separators, at 3 µs a job.
_FACTS: Final = json.JSONEncoder(separators=(",", ":"))


class Lease(NamedTuple):
    """The right to run and settle one job, for as long as it is renewed."""

    entry: bytes
    delivery: Delivery
    deaths: int
    suspect: bool
    known: bool = True  # its format is; else the delivery is empty, and it is not to be settled

    @property
    def ready_at(self) -> float:
        """When the job became ready, by Redis' clock."""
        return int(self.entry.split(b"-")[0]) / 1000


class Settled(NamedTuple):
    """What ends an attempt. `outcome` is done, retry (after `delay_s`), dead (for `reason`), or
    ready (given back).
    """

    lease: Lease
    outcome: str
    facts: Mapping[str, Any] = {}
    delay_s: float = 0.0
    reason: str = ""
    cause: str = ""
    trace: str = ""
    counted: str = ""  # as settle.lua says


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


class Act(NamedTuple):
    """Who does something: `by` is page or command, `act` names it (and the batch, if it discards),
    `what` is the selection.
    """

    by: str
    who: str
    act: str
    what: str = ""


NEVER: Final = 1e12  # of a time: long after everything


class Search(NamedTuple):
    """Which dead letters are meant; what is empty matches all. Times are unix seconds, `ids` whole
    ids.

    `event_type` matches whole, `error` and `text` (in id, delivery id, event type or error)
    anywhere, whatever the case.
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


class Store:
    """The verbs. One instance per thread: a blocked lease must not hold up a renewal."""

    def __init__(self, url: str, name: str, *, timeout_s: float = 5.0) -> None:
        self.name, self.local = name, url.startswith("unix:")
        self.redis = connect(url, timeout_s, name)
        for command in ("XREADGROUP", "XCLAIM"):  # their replies are wanted as they come
            self.redis.set_response_callback(command, lambda reply, **_: reply)
        self._groups: set[str] = set()
        self._asked: Any = None  # the connection whose answer is still to be read
        self._rows: Sequence[Settled] = ()  # and what it was asked to settle
        self._reads_asked = 0

    def close(self) -> None:
        self.redis.close()

    # ---------------- ingestion

    def accept(self, batch: Sequence[tuple[Delivery, int]]) -> list[str]:
        """Make a job of each (delivery, dedupe_s) unless it was seen; return the ids of their jobs.

        Another id than the delivery's own says that it is a duplicate of that job.
        """
        with reaching():
            link = self.redis.connection_pool.get_connection()
            try:
                link.send_packed_command([accept_packed(batch)])
                *_, ids = [link.read_response() for _ in range(len(batch) + 3)]
            except BaseException:
                link.disconnect()  # replies may be left in it
                raise
            finally:
                self.redis.connection_pool.release(link)
        return accepted(ids)

    # ---------------- workers

    def lease(
        self, wants: Mapping[str, int], block_ms: int = 0, *, again: bool = False
    ) -> list[Lease]:
        """Return up to so many jobs of each source, waiting up to `block_ms` for the first.

        `again` returns what this worker holds already: after a lost reply nobody else knows of it.
        """
        commands = self._reads(wants, "0" if again else ">")
        wait = ["BLOCK", block_ms] if block_ms and not again else []
        if not commands:
            return []
        try:
            with reaching():
                if len(commands) == 1:
                    return _leases(self.redis.execute_command(*_blocking(commands[0], wait)))
                pipe = self.redis.pipeline(transaction=False)
                for command in commands:
                    pipe.execute_command(*command)
                leases = [lease for found in pipe.execute() for lease in _leases(found)]
                if leases or not wait:
                    return leases
                one = self._reads(dict.fromkeys(wants, 1), ">")[0]
                return _leases(self.redis.execute_command(*_blocking(one, wait)))
        except Away as error:
            if "NOGROUP" in str(error):  # Redis came back empty: the groups are made again
                self._groups.clear()
            raise

    def _reads(self, wants: Mapping[str, int], since: str) -> list[tuple[Any, ...]]:
        """Return an XREADGROUP for each number that is wanted: COUNT is of every stream in it."""
        by_count: dict[int, list[str]] = {}
        for name in sorted(wants):
            if self._has_group(name):
                by_count.setdefault(wants[name], []).append(key("ready", name))
        return [
            ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", count, "STREAMS", *names)
            + (since,) * len(names)
            for count, names in by_count.items()
        ]

    def settle(self, settled: Sequence[Settled]) -> list[bool]:
        """End the attempts; False for each whose lease was lost meanwhile: nothing was changed for
        it (R5).
        """
        return [bool(done) for done in self._run("settle", *_settle_args(settled))]

    def ask(self, settled: Sequence[Settled], wants: Mapping[str, int]) -> None:
        """Settle and lease in one go, without waiting: Redis does it while the caller works.
        `answer` has the outcome.
        """
        reads = self._reads(wants, ">")
        settle = ("EVALSHA", SCRIPTS["settle"][0], 1, PREFIX, *_settle_args(settled))
        with reaching():
            self._asked, self._rows = self.redis.connection_pool.get_connection(), settled
            self._reads_asked = len(reads)
            self._asked.send_packed_command(self._asked.pack_commands([settle, *reads]))

    def answer(self) -> tuple[list[bool], list[Lease]]:
        """Return what settle and lease would have. After Away both may have been done: ask again,
        by settle and lease.
        """
        try:
            with reaching():
                try:
                    outcomes = self._asked.read_response()
                except redis.exceptions.NoScriptError:  # Redis was started anew: nothing ran
                    outcomes = None
                found = [self._asked.read_response() for _ in range(self._reads_asked)]
        except BaseException:
            self.forget()
            raise
        self.redis.connection_pool.release(self._asked)
        self._asked = None
        leases = [lease for reply in found for lease in _leases(reply)]
        if outcomes is None:
            return self.settle(self._rows), leases
        return [bool(done) for done in outcomes], leases

    def forget(self) -> None:
        """Give up what was asked, if anything was: its answer will not be read."""
        if self._asked:
            self._asked.disconnect()
            self.redis.connection_pool.release(self._asked)
            self._asked = None

    def promote(self, limit: int = 100) -> list[tuple[str, str]]:
        """Make due retries ready; return their (source, id)."""
        found = [value.decode() for value in self._run("promote", limit)]
        return list(zip(found[::2], found[1::2], strict=True))

    def renew(self, leases: Mapping[str, Sequence[bytes]]) -> None:
        """Extend the leases of these entries, by source. XCLAIM does nothing for an entry that is
        gone.
        """
        with reaching():
            pipe = self.redis.pipeline(transaction=False)
            for source, entries in leases.items():
                if entries:
                    pipe.execute_command(
                        "XCLAIM", key("ready", source), GROUP, self.name, 0, *entries, "JUSTID"
                    )
            pipe.execute()

    def announce(self, lease: Lease | None) -> None:
        """Write down which suspect job is run next, so that its death is charged to it alone
        (R9).
        """
        self._run("announce", self.name, lease.entry if lease else "")

    def reclaim(
        self, worker: str, *, idle_s: float = 0.0, hand: bytes | None = None
    ) -> list[tuple[str, str, str, int]]:
        """Take the leases of a worker that is gone, or those idle for `idle_s`; return (source, id,
        outcome, deaths).

        `hand` is the entry it was running, b"" if it ran none, None if nobody saw: only that one is
        charged (R9).
        """
        seen = b"?" if hand is None else hand
        found = self._run(
            "reclaim", worker, int(idle_s * 1000), MAX_DEATHS, "0" if idle_s else "1", seen
        )
        flat = [value.decode() for value in found]
        return [
            (flat[i], flat[i + 1], flat[i + 2], int(flat[i + 3])) for i in range(0, len(flat), 4)
        ]

    def holders(self) -> set[str]:
        """Return every worker that Redis knows: by heartbeat, or as a consumer of a group."""
        with reaching():
            names = {name.decode() for name in self.redis.hkeys(key("workers"))}
            for source in self.sources():
                with contextlib.suppress(redis.ResponseError):  # no group yet
                    names |= {
                        c["name"].decode()
                        for c in self.redis.xinfo_consumers(key("ready", source), GROUP)
                    }
            return names

    def gone(self, holders: set[str]) -> set[str] | None:
        """Return those of `holders` that were without a connection in two looks, a second apart;
        None if nobody may look.
        """
        with reaching():
            try:
                run = self.redis.info("server")["run_id"]
                grace_s = 1.0 if self.local else REMOTE_GRACE_S
                connected = {client["name"] for client in self.redis.client_list()}
            except redis.ResponseError:  # not allowed, or no such command there
                return None
            return {
                name.decode()
                for name in self._run("gone", run, grace_s, *sorted(holders - connected))
            }

    def beat(self, heartbeat: Mapping[str, Any], counters: Mapping[str, int] | None = None) -> None:
        """Say that this worker lives, and what it does; raise counters."""
        self._run("beat", self.name, json.dumps(heartbeat), *_pairs(counters))

    def raise_counters(self, counters: Mapping[str, int]) -> None:
        """Raise counters. Not claimed by an id: a lost reply is not asked for again."""
        self._run("beat", "", "", *_pairs(counters))

    def sources(self) -> set[str]:
        """Return every source that ever had a delivery, also those the settings no longer have."""
        with reaching():
            return {name.decode() for name in self.redis.smembers(key("sources"))}

    def _has_group(self, source: str) -> bool:
        """Make the group of a source's stream, so that its first job can be waited for; False when
        memory is full.
        """
        if source not in self._groups:
            with reaching():
                try:
                    self.redis.xgroup_create(key("ready", source), GROUP, id="0", mkstream=True)
                    self.redis.sadd(
                        key("sources"), source
                    )  # so that its consumers are found and removed one day
                except redis.exceptions.OutOfMemoryError:
                    return bool(
                        self.redis.exists(key("ready", source))
                    )  # accept made the group with the stream
                except redis.ResponseError as error:
                    if "BUSYGROUP" not in str(error):
                        raise
            self._groups.add(source)
        return True

    # ---------------- operators

    def redrive_rank(self, rank: int, act: Act) -> str | None:
        """Put back the dead letter at `rank` (0 is the oldest); return its id, or None when there
        is no such rank.

        WATCH, read the rank, MULTI, script, EXEC. When the dead set changed in between, the same id
        is tried again as long as it is dead: whoever loses that race is told with LookupError, and
        never moves a neighbour.
        """
        with reaching():
            id = next(iter(self.redis.zrange(key("dead"), rank, rank)), None)
            while id is not None:
                with self.redis.pipeline() as pipe:
                    pipe.watch(key("dead"))
                    if pipe.zscore(key("dead"), id) is None:
                        raise LookupError(id.decode())
                    pipe.multi()
                    with contextlib.suppress(redis.WatchError):
                        if not self._exec(pipe, "redrive", _FACTS.encode(act._asdict()), id):
                            raise LookupError(id.decode())  # an orphan: it has no job to put back
                        return str(id.decode())
        return None

    def redrive(self, ids: Sequence[str], act: Act) -> list[str]:
        """Put these dead letters back; return those that were."""
        return self._in_chunks("redrive", ids, act)

    def discard(self, ids: Sequence[str], act: Act) -> list[str]:
        """Remove these dead letters, restorable for 24 h as the batch `act.act`; return those that
        were.
        """
        return self._in_chunks("discard", ids, act, BATCH_KEPT_S)

    def restore(self, ids: Sequence[str], act: Act) -> list[str]:
        """Make these discarded jobs dead letters again; return those that are."""
        return self._in_chunks("restore", ids, act)

    def batch(self, name: str) -> list[str]:
        """Return the ids of what one act discarded and can still be restored."""
        with reaching():
            return [id.decode() for id in self.redis.zrange(key("batch", name), 0, -1)]

    def last_batch(self) -> str | None:
        """Return the batch that was discarded last and can still be restored."""
        with reaching():
            for batch in self.redis.zrevrange(key("batches"), 0, -1):
                if self.redis.exists(key("batch", batch.decode())):
                    return str(batch.decode())
        return None

    def _in_chunks(self, verb: str, ids: Sequence[str], act: Act, *args: Any) -> list[str]:
        """Run a script on `ids`, each chunk within MULTI/EXEC; return the ids it moved."""
        moved: list[str] = []
        for start in range(0, len(ids), CHUNK):
            with reaching(), self.redis.pipeline() as pipe:
                who = _FACTS.encode(act._asdict())
                moved += [
                    id.decode()
                    for id in self._exec(pipe, verb, who, *args, *ids[start : start + CHUNK])
                ]
        return moved

    def _exec(self, pipe: Any, verb: str, *args: Any) -> Any:
        """Run a script within MULTI/EXEC. Redis 7.0 refuses any MULTI while memory is full, and
        then an operator must still be able to make room: the script alone is as atomic.
        """
        try:
            pipe.eval(SCRIPTS[verb][1], 1, PREFIX, *args)
            return pipe.execute()[0]
        except redis.exceptions.OutOfMemoryError:
            pipe.reset()
            return self._run(verb, *args)

    # ---------------- dead letters, by what they have in common

    def count_dead(self, search: Search) -> int | None:
        """Return how many match, or None when only reading them all could tell."""
        if search.event_type or search.error or search.text or search.ids:
            return None
        with reaching():
            return int(self.redis.zcount(self._dead_set(search), search.since, search.until))

    def search_dead(
        self, search: Search, passed: int, look: int, *, newest: bool = False
    ) -> tuple[int, list[tuple[str, int]]]:
        """Pass over `passed` dead letters and look at the next `look`: return how many that were,
        and (id, rank) of matches.
        """
        name = self._dead_set(search).removeprefix(PREFIX)
        window = (repr(search.since), repr(search.until), passed, look)
        found = self._run(
            "select",
            name,
            int(newest),
            *window,
            search.event_type,
            search.error,
            search.text,
            *search.ids,
        )
        return found[0], list(zip((id.decode() for id in found[1::2]), found[2::2], strict=True))

    def _dead_set(self, search: Search) -> str:
        """Return the smallest set that has all that match: a cause is of one source."""
        if search.cause:
            return key("cause", search.cause)
        return key("dead", search.source) if search.source else key("dead")

    def dead_beginning(self, begin: str) -> list[str]:
        """Return the ids of dead letters that begin with `begin`."""
        with reaching():
            return sorted(
                id.decode()
                for id, _ in self.redis.zscan_iter(
                    key("dead"), match=_glob(begin) + "*", count=1000
                )
            )

    def causes(self) -> list[Cause]:
        """Return the causes that have dead letters."""
        with reaching():
            known = [
                (id.decode(), *text.decode().split("\n", 1))
                for id, text in self.redis.hgetall(key("causes")).items()
            ]
            pipe = self.redis.pipeline(transaction=False)
            for id, _, _ in known:
                pipe.zcard(key("cause", id))
                pipe.zrange(key("cause", id), 0, 0, withscores=True)
                pipe.zrange(key("cause", id), -1, -1, withscores=True)
            told = pipe.execute()
        rows = zip(known, told[::3], told[1::3], told[2::3], strict=True)
        return [
            Cause(id, source, cause, total, first[0][1], last[0][1], last[0][0].decode())
            for (id, source, cause), total, first, last in rows
            if first and last  # its last dead letter may have left between the two reads
        ]

    # ---------------- reading

    def audit(self) -> dict[str, Any]:
        """Return the ledger: totals, `gap`, and `sources` (name → ready, leased, retry, dead,
        oldest_ready, oldest_dead: unix seconds or 0), all from one moment."""
        found = self._run("audit")
        totals = dict(
            zip(("accepted", "done", "discarded", "retry", "dead"), found[:5], strict=True)
        )
        names = ("ready", "leased", "retry", "dead", "oldest_ready", "oldest_dead")
        sources = {
            found[i].decode(): dict(zip(names, found[i + 1 : i + 7], strict=True))
            for i in range(5, len(found), 7)
        }
        for source in sources.values():
            source |= {name: source[name] / 1000 for name in names[4:]}
        ready, leased = (
            sum(source[name] for source in sources.values()) for name in ("ready", "leased")
        )
        held = (
            ready + leased + totals["retry"] + totals["dead"] + totals["done"] + totals["discarded"]
        )
        return {
            **totals,
            "ready": ready,
            "leased": leased,
            "gap": totals["accepted"] - held,
            "sources": sources,
        }

    def orphans(self) -> list[str]:
        """Return a line for each member of a set without its job, each parked job in no set, each
        entry that nobody will run.

        What looks wrong is looked at again: between two reads it may just have been moved on.
        """
        with reaching():
            seen = self._odd()
            return sorted(seen & self._odd()) if seen else []

    def _odd(self) -> set[str]:
        lines, members = set(), set()
        for name in ("retry", "dead"):
            ids = {id for id, _ in self.redis.zscan_iter(key(name), count=1000)}
            members |= ids
            lines |= {
                f"{id.decode()} is in {name} without its job"
                for id in ids
                if not self.redis.exists(key("job", id.decode()))
            }
        for found in self.redis.scan_iter(key("job", "*"), count=1000):
            id = found.removeprefix(key("job", "").encode())
            if id not in members and self.redis.ttl(found) == -1:
                lines.add(f"{id.decode()} is a parked job in neither retry nor dead")
        for source in self.sources():
            lines |= {
                f"{id} of {source} is neither ready nor leased: nobody will run it"
                for id in self._stranded(source)
            }
        return lines

    def _stranded(self, source: str) -> Iterator[str]:
        """Yield the ids of entries that were taken once and are in no pending list: those before
        the last one taken.
        """
        groups = (
            self.redis.xinfo_groups(key("ready", source))
            if self.redis.exists(key("ready", source))
            else []
        )
        if not groups:
            return
        taken = _entry_number(groups[0]["last-delivered-id"])
        pending = {
            row["message_id"]
            for row in self.redis.xpending_range(key("ready", source), GROUP, "-", "+", 100_000)
        }
        for entry, id in self._scan(source, b"-", ""):
            if _entry_number(entry) > taken:
                return
            if entry not in pending:
                yield id.decode()

    def parked(self, ids: Sequence[str]) -> list[Parked]:
        """Return these parked jobs without their bodies, in one round trip; those that have left
        are missing.
        """
        names = (
            "source",
            "delivery_id",
            "event_type",
            "received_at",
            "attempt",
            "deaths",
            "reason",
            "cause",
            "batch",
            "error",
        )
        with reaching():
            pipe = self.redis.pipeline(transaction=False)
            for id in ids:
                pipe.hmget(key("job", id), names)
                pipe.hstrlen(key("job", id), "body")
                pipe.zscore(key("dead"), id)
                pipe.zscore(key("retry"), id)
            found = pipe.execute()
        rows = zip(ids, found[::4], found[1::4], found[2::4], found[3::4], strict=True)
        return [
            _parked(id, values, size, died_at or due_at or 0.0)
            for id, values, size, died_at, due_at in rows
            if values[0] is not None
        ]

    def trace(self, id: str) -> str:
        """Return the traceback of a dead letter's last attempt, "" if there is none."""
        with reaching():
            return (self.redis.hget(key("job", id), "trace") or b"").decode("utf-8", "replace")

    def locate(self, text: str) -> dict[str, str]:
        """Return id → state of every job whose id begins with `text`, or whose delivery id is
        `text`.
        """
        found: dict[str, str] = {}
        with reaching():
            seen = [self.redis.get(key("seen", source, text)) for source in self.sources()]
            for begin in {text, *(id.decode() for id in seen if id)}:
                for id, event in self.events(begin):
                    if event["event"] != "delivery.duplicate":  # which moves nothing
                        found[id] = {"job.complete": "done", "job.discard": "discarded"}.get(
                            event["event"], "gone"
                        )
                if self.redis.exists(key("job", begin)):
                    found[begin] = "discarded"
                for state in ("retry", "dead"):
                    if len(begin) >= ID_LENGTH:  # a whole one: no need to look through all
                        found |= (
                            {begin: state}
                            if self.redis.zscore(key(state), begin) is not None
                            else {}
                        )
                        continue
                    for id, _ in self.redis.zscan_iter(
                        key(state), match=_glob(begin) + "*", count=1000
                    ):
                        found[id.decode()] = state
                for source, entry, id in self._entries(begin):
                    found[id] = "ready"
                    with contextlib.suppress(
                        redis.ResponseError
                    ):  # no group yet: nobody has leased anything
                        if self.redis.xpending_range(key("ready", source), GROUP, entry, entry, 1):
                            found[id] = "leased"
                if begin != text:
                    found.setdefault(begin, "done")
        return found

    def _entries(self, begin: str) -> Iterator[tuple[str, bytes, str]]:
        """Yield (source, entry, id) of ready and leased jobs whose id begins so."""
        start = arrived_at(begin)
        if start is None:
            return
        for source in self.sources():
            first = f"{max(0, int(1000 * (start - CLOCKS_APART_S)))}".encode()
            yield from (
                (source, entry, id.decode()) for entry, id in self._scan(source, first, begin)
            )

    def _scan(self, source: str, after: bytes, begin: str) -> Iterator[tuple[bytes, bytes]]:
        """Yield (entry, id). Few at a time where bodies are long: the script has them all in memory
        at once.
        """
        count = 16
        while after:
            after, size, *found = self._run("find", source, after, count, begin)
            yield from zip(found[::2], found[1::2], strict=True)
            after = b"(" + after if after else b""
            count = max(1, min(2 * count, 1000, count * FIND_BYTES // max(size, 1)))

    def delivery(self, id: str) -> Delivery | None:
        """Return the delivery of a job that is not done, body included, or None when it is not kept
        any more.
        """
        with reaching():
            found = self.redis.hgetall(key("job", id))
            if found:
                return _delivery(found[b"source"].decode(), found)
            for source, entry, _ in self._entries(id):
                for _, values in self.redis.xrange(key("ready", source), entry, entry):
                    return _delivery(source, values)
        return None

    def events(self, begin: str) -> list[tuple[str, dict[str, Any]]]:
        """Return (id, event) of jobs whose id begins so, the oldest first; an event has at, event,
        source and its facts.
        """
        start = arrived_at(begin)
        if start is None:
            return []
        found: list[tuple[str, dict[str, Any]]] = []
        after, end = b"+", max(0, int(1000 * (start - CLOCKS_APART_S)))
        while after:
            after, *flat = self._run("story", after, end, 1000, begin)
            found += [_event(*flat[i : i + 5]) for i in range(0, len(flat), 5)]
            after = b"(" + after if after else b""
        return found[::-1]

    def latest_events(self, count: int) -> list[tuple[str, dict[str, Any]]]:
        """Return (id, event) of the last events of all jobs, the latest first."""
        with reaching():
            found = self.redis.xrevrange(key("history"), count=count)
        return [
            _event(entry, v[b"event"], v[b"source"], v[b"id"], v[b"facts"]) for entry, v in found
        ]

    def events_after(
        self, entry: bytes, count: int
    ) -> tuple[bytes, list[tuple[str, dict[str, Any]]]]:
        """Return the last entry of the history, and (id, event) of those after `entry`, the oldest
        first; none after b"".
        """
        with reaching():
            last = self.redis.xrevrange(key("history"), count=1)
            found = (
                self.redis.xrange(key("history"), b"(" + entry, "+", count=count) if entry else []
            )
        return last[0][0] if last else b"0-0", [
            _event(e, v[b"event"], v[b"source"], v[b"id"], v[b"facts"]) for e, v in found
        ]

    def recent(self) -> list[tuple[str, str, str]]:
        """Return (id, source, event type) of the deliveries accepted last, the latest first."""
        with reaching():
            found = [
                row.decode("utf-8", "replace").split("\n", 2)
                for row in self.redis.lrange(key("recent"), 0, -1)
            ]
        return [(id, source, event_type) for id, source, event_type in found]

    def acts(self, count: int) -> list[tuple[float, str, int, Act, bool]]:
        """Return (at, name, how many, who, can be restored) of what operators did last, the latest
        first.
        """
        with reaching():
            chunks = self.redis.xrevrange(key("acts"), count=1000)
            found: dict[tuple[str, str], tuple[float, int, Act]] = {}
            for entry, values in chunks:  # a large act has an entry for each chunk
                act, name = Act(**json.loads(values[b"who"])), values[b"name"].decode()
                at, before, _ = found.get(
                    (act.act, name), (int(entry.split(b"-")[0]) / 1000, 0, act)
                )
                found[act.act, name] = at, before + int(values[b"count"]), act
            rows = list(found.items())[:count]
            kept = [
                bool(name == "discard" and self.redis.exists(key("batch", act)))
                for (act, name), _ in rows
            ]
        return [
            (at, name, n, act, back)
            for ((_, name), (at, n, act)), back in zip(rows, kept, strict=True)
        ]

    def minutes(self, count: int) -> list[tuple[int, dict[str, int]]]:
        """Return (minute, counters) of the last `count` minutes by Redis' clock, the oldest first,
        the running one last.
        """
        with reaching():
            last = int(self.redis.time()[0]) // 60
            wanted = range(last - count + 1, last + 1)
            pipe = self.redis.pipeline(transaction=False)
            for minute in wanted:
                pipe.hgetall(key("minute", str(minute)))
            found = pipe.execute()
        return [
            (m, {name.decode(): int(n) for name, n in row.items()})
            for m, row in zip(wanted, found, strict=True)
        ]

    def last(self) -> dict[str, float]:
        """Return when the counters of the minutes were raised last, by name, in unix seconds."""
        with reaching():
            return {
                name.decode(): float(at) for name, at in self.redis.hgetall(key("last")).items()
            }

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        """Return id → retry or dead, "" for a job that is neither."""
        with reaching():
            pipe = self.redis.pipeline(transaction=False)
            for id in ids:
                pipe.zscore(key("retry"), id)
                pipe.zscore(key("dead"), id)
            found = pipe.execute()
        rows = zip(ids, found[::2], found[1::2], strict=True)
        return {
            id: "retry" if retry is not None else "dead" if dead is not None else ""
            for id, retry, dead in rows
        }

    def now(self) -> float:
        """Return the time by Redis' clock, unix seconds: the one that dead letters are dated by."""
        with reaching():
            seconds, micros = self.redis.time()
            return float(seconds + micros / 1e6)

    def metrics(self) -> dict[str, int]:
        """Return every counter; names are as in keys.py."""
        with reaching():
            return {
                name.decode(): int(value)
                for name, value in self.redis.hgetall(key("metrics")).items()
            }

    def workers(self) -> dict[str, dict[str, Any]]:
        """Return the last heartbeat of each worker by its name; `at` is when it came, by Redis'
        clock.
        """
        with reaching():
            beats = {
                name.decode(): value.split(b"\n", 1)
                for name, value in self.redis.hgetall(key("workers")).items()
            }
        return {name: {**json.loads(beat), "at": float(at)} for name, (at, beat) in beats.items()}

    def ingestion(self) -> dict[str, dict[str, Any]]:
        """Return the last heartbeat of each ingestion process by its name, those of hosts that are
        silent included.
        """
        with reaching():
            rows = {
                name.decode(): value.split(b"\n", 2)
                for name, value in self.redis.hgetall(key("ingestion")).items()
            }
        found = {
            name: {**json.loads(beat), "at": float(at), "host": host.decode()}
            for name, (at, host, beat) in rows.items()
        }
        # Another version may say it otherwise: what the page needs is there, or the row is not
        # shown.
        return {
            name: b
            for name, b in found.items()
            if all(type(b.get(key)) is int for key in ("pid", "up_s", "connections", "spooled"))
        }

    def ping(self) -> None:
        """Return when Redis answers, else raise Away."""
        with reaching():
            self.redis.ping()

    def epoch(self, known: str = "") -> str:
        """Return the mark that this Redis carries; a new one after it came back empty, counted once
        by whoever made it.
        """
        with reaching():
            fresh = random_bytes.token_hex(8)
            there = self.redis.set(key("epoch"), fresh, nx=True, get=True)
        if there is None and known:
            self.raise_counters({"epoch_changes": 1})
        return str((there or fresh.encode()).decode())

    def memory(self) -> tuple[int, int]:
        """Return (bytes used, maxmemory)."""
        with reaching():
            info = self.redis.info("memory")
            return int(info["used_memory"]), int(info["maxmemory"])

    def health(self, replicas: int = 0) -> tuple[dict[str, str], list[str]]:
        """Return what the boot check found (version, appendonly …), and a sentence for each setting
        that can lose jobs, or that keeps deliveries out since `replicas` are asked for.
        """
        with reaching():
            info = self.redis.info()
            found = {
                "version": str(info["redis_version"]),
                "maxmemory-policy": str(info["maxmemory_policy"]),
            }
            found["appendonly"] = "yes" if info["aof_enabled"] else "no"
            with contextlib.suppress(redis.ResponseError):  # CONFIG is often not allowed
                found["appendfsync"] = self.redis.config_get("appendfsync").get("appendfsync", "")
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
                f"appendfsync is {found['appendfsync']}: a crash can lose the last second; set "
                "always."
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

    def _run(self, verb: str, *args: Any) -> Any:
        """Run a script; loads it where Redis does not know it (NOSCRIPT says that nothing ran)."""
        sha, text = SCRIPTS[verb]
        with reaching():
            try:
                return self.redis.evalsha(sha, 1, PREFIX, *args)
            except redis.exceptions.NoScriptError:
                return self.redis.eval(text, 1, PREFIX, *args)


def _pairs(counters: Mapping[str, int] | None) -> list[str | int]:
    return [value for pair in (counters or {}).items() for value in pair]


def _settle_args(settled: Sequence[Settled]) -> list[Any]:
    """Return the ARGV of settle.lua."""
    args: list[Any] = []
    for row in settled:
        lease, facts = row.lease, _FACTS.encode(row.facts)
        # A job that is done is known to the history by its id; that place of the row is free then.
        reason = lease.delivery.id if row.outcome == "done" else row.reason
        attempt = row.facts.get("attempt", "")
        args += (
            lease.delivery.source,
            lease.entry,
            row.outcome,
            row.delay_s,
            attempt,
            reason,
            row.cause,
            row.trace,
            facts,
            row.counted,
        )
    return args


def _blocking(read: tuple[Any, ...], wait: list[Any]) -> tuple[Any, ...]:
    at = read.index("STREAMS")
    return (*read[:at], *wait, *read[at:])


def _leases(found: Any) -> list[Lease]:
    """Return the leases of a reply of XREADGROUP."""
    prefix = key("ready", "")
    streams = [(stream.decode().removeprefix(prefix), entries) for stream, entries in found or ()]
    return [
        _lease(source, entry, values)
        for source, entries in streams
        for entry, values in entries
        if values
    ]


def _lease(source: str, entry: bytes, values: Sequence[bytes]) -> Lease:
    if values[1] != FORMAT:
        return Lease(entry, Delivery("", source, "", "", 0.0, b"", b""), 0, False, False)
    found = dict(zip(values[::2], values[1::2], strict=True))
    return Lease(entry, _delivery(source, found), int(found[b"deaths"]), found[b"suspect"] == b"1")


def _delivery(source: str, found: Mapping[bytes, bytes]) -> Delivery:
    return Delivery(
        found[b"id"].decode(),
        source,
        found[b"delivery_id"].decode(),
        found[b"event_type"].decode(),
        float(found[b"received_at"]),
        found[b"head"],
        found[b"body"],
        int(found[b"attempt"]),
        int(found.get(b"secret") or 0),
    )


def _event(
    entry: bytes, name: bytes, source: bytes, id: bytes, facts: bytes
) -> tuple[str, dict[str, Any]]:
    told = {
        "at": int(entry.split(b"-")[0]) / 1000,
        "event": name.decode(),
        "source": source.decode(),
    }
    return id.decode(), {**told, **json.loads(facts)}


def _parked(id: str, values: Sequence[bytes | None], size: int, at: float) -> Parked:
    source, delivery_id, event_type, received_at, attempt, deaths, reason, cause, batch, facts = [
        (value or b"").decode("utf-8", "replace") for value in values
    ]
    numbers = float(received_at), int(attempt), int(deaths)
    return Parked(
        id,
        source,
        delivery_id,
        event_type,
        *numbers,
        reason,
        cause,
        batch,
        at,
        size,
        json.loads(facts or "{}"),
    )


def _entry_number(entry: bytes | str) -> tuple[int, int]:
    text = entry.decode() if isinstance(entry, bytes) else entry
    ms, _, number = text.partition("-")
    return int(ms), int(number)


def _glob(text: str) -> str:
    return "".join("\\" + c if c in "*?[]^-\\" else c for c in text)
