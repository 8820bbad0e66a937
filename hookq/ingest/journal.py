"""The way to durability: deliveries gather in a turn, and are on disk before the answer (R1).

    put ─▶ pending ──▶ Redis, as one transaction, two under way ──▶ durable
              ▲   └──▶ the spool, while Redis is unavailable ─────▶ durable
              └─────── what was under way when Redis failed

What was under way when Redis failed goes into the spool, too: it may be in Redis already, and is
then found by its job id (R6). When Redis is back, the spool is drained through the same transaction
as everything else, with what was left over of a turn.

Promises: each delivery that was put is reported as durable or failed exactly once. Failed means
that neither Redis nor the spool took it. Does not promise which of the two has it.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from hookq import log
from hookq.ingest.connection import Connection
from hookq.ingest.intake import Intake
from hookq.ingest.poll import IN, OUT, Poll
from hookq.ingest.spool import Spool, SpoolFailed
from hookq.ingest.spooling import Spooling
from hookq.ingest.tally import Flush, Tally
from hookq.job import Delivery
from hookq.settings import Settings
from hookq.store.connection import Away

BATCH, BATCH_BYTES = 64, 4 << 20  # of one commit: they bound how long Redis is busy with it
SPOOLED: Final = 16  # commits to the spool in a turn: each answer may let the next request through
RETRY_SOON_S, RETRY_S = 0.1, 0.5  # after a failure, before Redis is connected to again


# A delivery on its way: who waits for the answer (None when it comes from the spool), what, and its
# dedupe_s. A plain tuple: one is made for each request.
Waiting = tuple[Connection | None, Delivery, int]


class Batch(NamedTuple):
    """One commit to Redis: deliveries, the rows of the spool they stand in, and counters."""

    waiting: list[Waiting]
    rows: list[int]
    flush: Flush | None


# Who waits, what, its job's id (another than its own: it is a duplicate), and when.
Durable = Callable[[Connection | None, Delivery, str, float], None]
Failed = Callable[[Connection | None], None]


class Journal:
    """Deliveries that are not durable yet, the connection to Redis, and the spool."""

    def __init__(self, settings: Settings, poll: Poll, tally: Tally, name: str) -> None:
        self.poll, self.tally = poll, tally
        self.intake = Intake(settings.redis_url, name, poll.wake, replicas=settings.durability)
        self.spool = Spooling(Spool(settings.state_dir / "spool.db", settings.max_spool))
        self.on_durable: Durable = lambda *_: None
        self.on_failed: Failed = lambda *_: None
        self.pending: deque[Waiting] = deque()
        self.watching = 0  # the events of Redis' socket that are watched
        self.retry_at = 0.0
        self.why = ""  # of the last failure that was logged

    def put(self, client: Connection, delivery: Delivery, dedupe_s: int) -> None:
        """Make this delivery durable with the next commit."""
        self.pending.append((client, delivery, dedupe_s))

    def start(self) -> None:
        """Connect to Redis in the background."""
        self.intake.start()

    def adopt(self) -> bool:
        """Take the connection to Redis that was made in the background; True if there is one."""
        if not self.intake.adopt():
            return False
        log.event("redis.up")
        self.why = ""
        self.watching = 0
        self._watch()
        return True

    @property
    def urgent(self) -> bool:
        """There is something to commit that waits for nobody."""
        return bool(self.pending) and not self.intake.up

    @property
    def settled(self) -> bool:
        """Nothing waits or is under way. Counters are lost when Redis is unavailable at the end."""
        counted = self.tally.empty or not self.intake.up
        return counted and not (self.pending or self.intake.under_way)

    # ---------------- Redis

    def commit(self) -> None:
        """Make durable what the turn gathered: in Redis as one batch, unless enough is under way
        already, else in the spool.
        """
        if not self.intake.up:
            for _ in range(SPOOLED):
                waiting, self.pending = list(self.pending), deque()
                if not waiting:
                    break
                self._into_spool(waiting)
            return
        while not self.intake.busy and self.intake.up:
            if self.pending or self.tally.flushes:
                self._submit(Batch(self._next(), [], None))
            elif self.spool.to_drain:
                self._drain()
            else:
                return

    def _next(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self.pending and len(batch) < BATCH and size < BATCH_BYTES:
            batch.append(self.pending.popleft())
            size += len(batch[-1][1].body)
        return batch

    def _submit(self, batch: Batch) -> None:
        flush = self.tally.flushes.popleft() if self.tally.flushes else None
        deliveries = [(delivery, dedupe_s) for _, delivery, dedupe_s in batch.waiting]
        try:
            self.intake.submit(deliveries, flush, batch._replace(flush=flush))
            self._watch()
        except Away as error:
            self._lost(str(error))

    def _on_intake(self, _of: None, events: int) -> None:
        try:
            if events & OUT:
                self.intake.flush()
                self._watch()
            for batch, ids in self.intake.received():
                now = time.time() + self.intake.ahead_s
                for (client, delivery, _), id in zip(batch.waiting, ids, strict=True):
                    self.on_durable(client, delivery, id, now)
                if batch.rows:
                    self._removed(self.spool.drained(batch.rows))
        except Away as error:
            self._lost(str(error))

    def _watch(self) -> None:
        wanted = IN | (OUT if self.intake.wants_write else 0)
        if wanted != self.watching:
            self.poll.want(self.intake.sock, self.watching, wanted, self._on_intake)
            self.watching = wanted

    def _lost(self, why: str) -> None:
        """Give the connection up: what waits goes into the spool, and a new one is made in the
        background.
        """
        log.event("redis.away", "error", why=why)
        self.why = why
        if self.watching:
            self.poll.forget(self.intake.sock)
            self.watching = 0
        batches: list[Batch] = self.intake.failed(why)
        self.retry_at = time.monotonic() + RETRY_SOON_S
        self.spool.interrupted()
        self.tally.flushes.extendleft(batch.flush for batch in reversed(batches) if batch.flush)
        under_way = [waiting for batch in batches for waiting in batch.waiting if waiting[0]]
        waiting, self.pending = under_way + list(self.pending), deque()
        self._into_spool(waiting)

    # ---------------- the spool

    def _into_spool(self, waiting: list[Waiting]) -> None:
        """Commit to the local disk. Where that fails, too, the sender must come again."""
        try:
            self.spool.accept([(delivery, dedupe_s) for _, delivery, dedupe_s in waiting])
        except SpoolFailed:
            for client, _, _ in waiting:
                self.on_failed(client)
            return
        now = time.time() + self.intake.ahead_s
        for client, delivery, _ in waiting:
            self.on_durable(client, delivery, delivery.id, now)

    def _drain(self) -> None:
        """Send the oldest of the spool as one batch. Another process may do the same: whoever is
        second changes nothing (R6).
        """
        rows = self.spool.oldest(BATCH, BATCH_BYTES)
        if rows:
            waiting: list[Waiting] = [(None, row.delivery, row.dedupe_s) for row in rows]
            self._submit(Batch(waiting, [row.row for row in rows], None))

    def _removed(self, rows: int) -> None:
        if rows:
            self.tally.counters["spooled"] += rows

    # ---------------- time

    def sweep(self, now: float) -> None:
        """Give up a Redis that does not answer, connect to one that is back, look at the spool."""
        if self.intake.overdue(now):
            self._on_intake(None, IN)  # the turn may have been long: the answer may be here already
            if self.intake.overdue(time.monotonic()):
                self._lost(f"no answer within {self.intake.limit_s:g} s")
        if not self.intake.up and now >= self.retry_at:
            self.retry_at = now + RETRY_S
            if self.intake.why != self.why:
                self.why = self.intake.why
                log.event("redis.unreachable", "error", why=self.why, then="trying again")
            self.intake.start()
        self._removed(self.spool.look())

    def say(self, facts: dict[str, int] | None) -> None:
        """Publish this process' heartbeat; None deletes it."""
        try:
            self.intake.say(facts)
            if self.intake.up:
                self._watch()
        except Away as error:
            self._lost(str(error))

    def readiness(self) -> tuple[int, bytes]:
        """Tell whether a delivery could be made durable now, as /readyz does."""
        if self.intake.up:
            return 200, b"ok\n"
        if self.spool.why:
            return 503, f"Redis is away. {self.spool.why}\n".encode()
        return 200, b"Redis takes nothing now; the spool takes all\n"
