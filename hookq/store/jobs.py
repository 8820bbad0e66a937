"""What a worker does with jobs: lease, settle, renew; promote what is due, reclaim what is lost.

An entry of a stream never changes hands: whoever reclaims a job makes a new entry and removes the
old one. So the entry is the fence: a worker that is late finds nothing to settle (R5).

Promises: one verb, one atomic step (R4). A verb that raised Away has done all of its work or none;
every verb may be asked again.
"""

import contextlib
import json
import secrets as random_bytes
from collections.abc import Mapping, Sequence
from typing import Any, Final

import redis

from hookq.job import MAX_DEATHS
from hookq.store import records
from hookq.store.client import Client, pairs, raw
from hookq.store.connection import Away, reaching
from hookq.store.keys import GROUP, PREFIX, key
from hookq.store.records import Lease, Reclaimed, Settled
from hookq.store.scripts import SCRIPTS

# A lease lasts this long without a renewal. Renewed every 10 s, so two renewals may fail.
LEASE_S: Final = 30.0
RENEW_S: Final = 10.0
# After a failover a client may spend two full timeouts on the dead server before it reconnects.
REMOTE_GRACE_S: Final = 12.0


class Jobs(Client):
    """A worker's client; `name` is its consumer in every group."""

    def __init__(self, url: str, name: str, *, timeout_s: float = 5.0) -> None:
        super().__init__(url, name, timeout_s=timeout_s)
        for command in ("XREADGROUP", "XCLAIM"):
            self.redis.set_response_callback(command, raw)
        self._groups: set[str] = set()
        # The connection whose answer is still to be read, what it was asked to settle, and how many
        # replies to leases follow.
        self._asked: Any = None
        self._rows: Sequence[Settled] = ()
        self._reads_asked = 0

    # ---------------- lease and settle

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
                    return records.leases(self.redis.execute_command(*_blocking(commands[0], wait)))
                pipe = self.redis.pipeline(transaction=False)
                for command in commands:
                    pipe.execute_command(*command)
                leases = [lease for reply in pipe.execute() for lease in records.leases(reply)]
                if leases or not wait:
                    return leases
                one = self._reads(dict.fromkeys(wants, 1), ">")[0]
                return records.leases(self.redis.execute_command(*_blocking(one, wait)))
        except Away as error:
            if "NOGROUP" in str(error):  # Redis came back empty: make the groups again
                self._groups.clear()
            raise

    def _reads(self, wants: Mapping[str, int], since: str) -> list[tuple[Any, ...]]:
        """Return an XREADGROUP for each number that is wanted: COUNT is per stream."""
        by_count: dict[int, list[str]] = {}
        for name in sorted(wants):
            if self._has_group(name):
                by_count.setdefault(wants[name], []).append(key("ready", name))
        return [
            ("XREADGROUP", "GROUP", GROUP, self.name, "COUNT", count, "STREAMS", *names)
            + (since,) * len(names)
            for count, names in by_count.items()
        ]

    def _has_group(self, source: str) -> bool:
        """Make the group of a source's stream, so that a worker can wait for the first job; return
        False when memory is full.
        """
        if source not in self._groups:
            with reaching():
                try:
                    self.redis.xgroup_create(key("ready", source), GROUP, id="0", mkstream=True)
                    # Its consumers are found, and removed one day, by this set.
                    self.redis.sadd(key("sources"), source)
                except redis.exceptions.OutOfMemoryError:
                    # accept makes the group with the stream.
                    return bool(self.redis.exists(key("ready", source)))
                except redis.ResponseError as error:
                    if "BUSYGROUP" not in str(error):
                        raise
            self._groups.add(source)
        return True

    def settle(self, settled: Sequence[Settled]) -> list[bool]:
        """End the attempts; return False for each whose lease was lost meanwhile: nothing was
        changed for it (R5).
        """
        return [bool(done) for done in self.run("settle", *_settle_args(settled))]

    def ask(self, settled: Sequence[Settled], wants: Mapping[str, int]) -> None:
        """Send a settle and a lease, without waiting: Redis works while the caller does. `answer`
        reads the outcome.
        """
        reads = self._reads(wants, ">")
        settle = ("EVALSHA", SCRIPTS["settle"].sha, 1, PREFIX, *_settle_args(settled))
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
                except redis.exceptions.NoScriptError:  # Redis was restarted: nothing ran
                    outcomes = None
                replies = [self._asked.read_response() for _ in range(self._reads_asked)]
        except BaseException:
            self.forget()
            raise
        self.redis.connection_pool.release(self._asked)
        self._asked = None
        leases = [lease for reply in replies for lease in records.leases(reply)]
        if outcomes is None:
            return self.settle(self._rows), leases
        return [bool(done) for done in outcomes], leases

    def forget(self) -> None:
        """Give up what was asked, if anything was: its answer will not be read."""
        if self._asked:
            self._asked.disconnect()
            self.redis.connection_pool.release(self._asked)
            self._asked = None

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

    # ---------------- due retries, and the jobs of dead workers

    def promote(self, limit: int = 100) -> list[tuple[str, str]]:
        """Make due retries ready; return their (source, id)."""
        flat = [value.decode() for value in self.run("promote", limit)]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def announce(self, lease: Lease | None) -> None:
        """Note which suspect job is run next, so that its death is charged to it alone (R9)."""
        self.run("announce", self.name, lease.entry if lease else "")

    def reclaim(
        self, worker: str, *, idle_s: float = 0.0, hand: bytes | None = None
    ) -> list[Reclaimed]:
        """Take the leases of a dead worker, or those idle for `idle_s`.

        `hand` is the entry it was running, b"" if it ran none, None if nobody saw: only that one is
        charged (R9).
        """
        seen = b"?" if hand is None else hand
        flat = [
            value.decode()
            for value in self.run(
                "reclaim", worker, int(idle_s * 1000), MAX_DEATHS, "0" if idle_s else "1", seen
            )
        ]
        rows = zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
        return [Reclaimed(source, id, outcome, int(deaths)) for source, id, outcome, deaths in rows]

    def holders(self) -> set[str]:
        """Return every worker that Redis knows: by heartbeat, or as a consumer of a group."""
        with reaching():
            names = {name.decode() for name in self.redis.hkeys(key("workers"))}
            for source in self.sources():
                with contextlib.suppress(redis.ResponseError):  # no group yet
                    names |= {
                        consumer["name"].decode()
                        for consumer in self.redis.xinfo_consumers(key("ready", source), GROUP)
                    }
            return names

    def gone(self, holders: set[str]) -> set[str] | None:
        """Return those of `holders` that were without a connection in two looks, a second apart;
        None if this client may not look.
        """
        with reaching():
            try:
                run = self.redis.info("server")["run_id"]
                grace_s = 1.0 if self.local else REMOTE_GRACE_S
                connected = {client["name"] for client in self.redis.client_list()}
            except redis.ResponseError:  # not allowed, or no such command there
                return None
            missing = sorted(holders - connected)
            return {name.decode() for name in self.run("gone", run, grace_s, *missing)}

    # ---------------- heartbeats

    def beat(self, heartbeat: Mapping[str, Any], counters: Mapping[str, int] | None = None) -> None:
        """Report that this worker lives, and what it does; raise counters."""
        self.run("beat_worker", self.name, json.dumps(heartbeat), *pairs(counters or {}))

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


def _settle_args(settled: Sequence[Settled]) -> list[Any]:
    """Return the ARGV of settle.lua."""
    args: list[Any] = []
    for row in settled:
        delivery = row.lease.delivery
        args += (
            delivery.source,
            row.lease.entry,
            row.outcome,
            row.delay_s,
            row.facts.get("attempt", ""),
            delivery.id,
            row.reason,
            row.cause,
            row.trace,
            records.packed(row.facts),
            row.label,
            " ".join(map(str, row.times)),
        )
    return args


def _blocking(read: tuple[Any, ...], wait: list[Any]) -> tuple[Any, ...]:
    at = read.index("STREAMS")
    return (*read[:at], *wait, *read[at:])
