"""Ingestion: one thread serves all connections. Each turn of its loop reads what has arrived,
verifies it, and commits all deliveries of the turn at once; while Redis syncs them to disk, the
next turn is read. That is what makes it fast: most of the cost of a delivery is round trips and
system calls, and they are shared.

    poll ─▶ clients ─▶ judge (routes) ─▶ take (signing) ─▶ journal ─▶ Redis or spool
              ▲                                               │
              └───────────── answer, counted once ◀───────────┘

Promises: 202 and 200 are sent after the delivery is on disk, in Redis or in the spool (R1); every
refusal has its reason and is counted (R8). A stop or reload first makes /readyz fail, then takes
nobody new, then completes what is in progress. Does not promise that a sender hears the answer: it
comes again, and is answered as a duplicate.
"""

import functools
import os
import secrets
import socket
import time
from typing import Final

from hookq import daemon, log
from hookq.arrival import Arrival, Rejected
from hookq.ingest.clients import Clients
from hookq.ingest.connection import Connection
from hookq.ingest.door import Door
from hookq.ingest.journal import Journal
from hookq.ingest.listener import Listener
from hookq.ingest.poll import Poll
from hookq.ingest.routes import Deliver, Pages, Refusal, refusal, route
from hookq.ingest.tally import Tally
from hookq.job import Delivery, JobIds
from hookq.settings import Settings
from hookq.signing import verify
from hookq.sources import Source
from hookq.store.boot import boot_check
from hookq.wire import Request

SWEEP_S: Final = 0.5  # between two looks at deadlines
DRAIN_TURN_S: Final = 0.05  # the same while draining
HEARTBEAT_S: Final = 2.0
# Before a stop /readyz fails for so long, so that a balancer can notice while its requests are
# still taken. It watches if it has polled within ASKED_S; polls in the first SETTLED_S are
# `make run`'s own.
LEAVE_S, ASKED_S, SETTLED_S = 5.0, 30.0, 10.0
DRAIN_S: Final = 10.0  # a drain ends then, whatever is left
# At the start Redis gets so long before connections are taken: until then all would be spooled.
FIRST_REDIS_S: Final = 1.0


class Loop:
    """The event loop, and what it wires together. `run` returns when everything is answered."""

    def __init__(self, settings: Settings, inherited: socket.socket | None = None) -> None:
        self.settings = settings
        self.ids = JobIds(int.from_bytes(secrets.token_bytes(4)))
        self.poll = Poll(self._on_wake)
        self.tally = Tally(lambda: self.ids.make(time.time()), settings.trusted_proxies)
        pages: Pages = {
            "/": lambda: (200, b"webhookd is running.\n"),
            "/livez": lambda: (200, b"ok\n"),
            "/readyz": self._readiness,
        }
        deliveries = {name: Deliver(source) for name, source in settings.sources.items()}
        judge = functools.partial(route, deliveries, pages, settings.max_body)
        self.clients = Clients(self.poll, self.tally, settings.max_held, judge, self._take)
        listener = Listener((settings.host, settings.port), inherited)
        self.door = Door(self.poll, listener, self.clients, settings.max_connections)
        self.journal = Journal(settings, self.poll, self.tally, daemon.name_of("ingest"))
        self.journal.on_durable, self.journal.on_failed = self._on_durable, self._on_failed
        self.started_at = self.leaving_since = self.draining_since = self.said_at = 0.0
        self.asked_at = float("-inf")  # for /readyz
        self.reload = self.checking = False

    def run(self, signals: daemon.Signals) -> None:
        # Redis first: whoever connects before it would only go through the spool.
        self.journal.start()
        swept, self.started_at = 0.0, time.monotonic()
        while not (self.draining_since and self._drained()):
            self.poll.turn(self._wait_s())
            self.clients.turn()
            self.tally.flush(time.monotonic(), at_once=bool(self.draining_since))
            self.journal.commit()
            now = time.monotonic()
            if now - swept >= SWEEP_S or self.draining_since:
                swept = now
                self._sweep(now)
            self._obey(signals, now)

    def _wait_s(self) -> float:
        if self.clients.more or self.journal.urgent:
            return 0.0
        return DRAIN_TURN_S if self.draining_since else SWEEP_S

    def _on_wake(self) -> None:
        if self.journal.adopt():
            settings = self.settings
            look = (settings.redis_url, self.journal.intake.heartbeat.name, settings.durability)
            daemon.in_background(boot_check, *look)  # the loop waits for nobody
            self.door.open(not self.draining_since)

    # ---------------- one request

    def _take(
        self, client: Connection, request: Request, source: Source, body: bytes
    ) -> Refusal | None:
        """Verify a request that is here whole, and hand it to the journal; return why not."""
        at, ahead_s = time.time(), self.journal.intake.heartbeat.ahead_s
        arrival = Arrival(source.name, request.head, request.fields, request.query, body, at)
        verified = verify(source.verifier, arrival, self.ids.make(at + ahead_s), ahead_s)
        if isinstance(verified, Rejected):
            return refusal(verified.reason, verified.why)
        self.journal.put(client, verified, source.dedupe_s)
        return None

    def _on_durable(
        self, client: Connection | None, delivery: Delivery, id: str, now: float
    ) -> None:
        """Answer a delivery that is on disk. `id` is its job's: another than its own tells that it
        is a duplicate.
        """
        duplicate = id != delivery.id
        if duplicate:
            log.event(
                "delivery.duplicate",
                source=delivery.source,
                id=id,
                delivery_id=delivery.delivery_id,
                event_type=delivery.event_type,
                traceparent=delivery.traceparent,
            )
        if client is None:  # it was answered when the spool took it
            return
        status, word = (200, b"duplicate") if duplicate else (202, b"accepted")
        self.tally.answered(delivery.source, status, now - delivery.received_at)
        body = b'{"status": "%s", "id": "%s", "reason": null}' % (word, id.encode())
        self.clients.durable(client, status, body)

    def _on_failed(self, client: Connection | None) -> None:
        if client:
            why = "Redis is away, and the spool failed"
            self.clients.failed(client, refusal("overloaded", why))

    def _readiness(self) -> tuple[int, bytes]:
        now = time.monotonic()
        if now - self.started_at > SETTLED_S:
            self.asked_at = now
        if self.leaving_since or self.draining_since:
            return 503, b"draining\n"
        return self.journal.readiness()

    # ---------------- time, and the end

    def _sweep(self, now: float) -> None:
        self.clients.sweep(now)
        self.journal.sweep(now)
        if now - self.said_at >= HEARTBEAT_S:
            self._say(now)
        if not self.draining_since and now - self.started_at > FIRST_REDIS_S:
            self.door.open(True)

    def _say(self, now: float) -> None:
        """Publish this process' heartbeat; on exit delete it, unless its spool still holds
        deliveries: the pages of other hosts are to know of those.
        """
        self.said_at, spooled = now, self.journal.spool.count
        facts = {
            "pid": os.getpid(),
            "up_s": round(now - self.started_at),
            "connections": len(self.clients.connections),
            "spooled": spooled,
        }
        self.journal.say(None if self.draining_since and not spooled else facts)

    def _obey(self, signals: daemon.Signals, now: float) -> None:
        """Restart in place, or stop: /readyz fails first, then nobody new is taken, then what is in
        progress is completed.
        """
        if signals.reload and not (signals.stop or self.checking or self.reload):
            self.checking = True
            if not daemon.in_background(self._check_reload, signals):
                self.checking = signals.reload = False
        if signals.stop and not self.leaving_since:
            self.leaving_since = now
            log.event("process.leave")
        watched = self.asked_at > self.leaving_since - ASKED_S
        stop = signals.stop and not (watched and now - self.leaving_since < LEAVE_S)
        if (stop or self.reload) and not self.draining_since:
            log.event("process.drain")
            self.draining_since = now
            self.door.open(False)  # on a reload the next process goes on with what waits in it
            self.clients.drain(now)  # before anything that may close a client, and so open the door
            self._say(now)
        if stop and not self.door.listener.closed:
            self.door.close_socket()

    def _check_reload(self, signals: daemon.Signals) -> None:
        """Let the loop drain and restart if the new settings allow it; in a thread, since trying
        them takes a while.
        """
        try:
            self.reload = daemon.reload_wanted(signals)
        finally:
            self.checking = False
            self.poll.wake()

    def _drained(self) -> bool:
        if time.monotonic() - self.draining_since > DRAIN_S:
            return True
        return not self.clients.connections and self.journal.settled
