#!/usr/bin/env python3
"""Takes deliveries in: bounded HTTP, the signature, a durable job, then the answer (R1).

One thread serves all connections through epoll. Each turn of the loop reads what has arrived,
verifies it, and commits all deliveries of the turn with one transaction; while Redis syncs it to
disk the next turn is read. That is what makes it fast: most of the cost of a delivery is round
trips and system calls, and they are shared.

Of http.server it keeps HTTPServer: the life of the listening socket. It replaces the rest:
BaseHTTPRequestHandler parses leniently (two Content-Lengths, bare CR, a body by Transfer-Encoding:
each a way to smuggle a request), waits without an absolute limit, answers errors so that senders do
not get to read them, and wants a thread for each connection.

While Redis is away, slow past its limit, full or read-only, a turn's deliveries are committed to
the spool instead, on this machine's disk, and drained into Redis when it is back, through the same
step. What was under way when Redis failed goes there too: it may be in Redis already, and is then
found by its job id (R6).

Promises: 202 and 200 are sent after the delivery is on disk, in Redis or in the spool; every
refusal has its reason; memory, time and connections are bounded; 503 with Retry-After only when
neither can take it.
"""

import argparse
import heapq
import http.server
import json
import os
import resource
import secrets
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from email.utils import formatdate

from hookq import daemon, log, selftest, wire
from hookq.config import VERSION, Config, add_flags, load
from hookq.ingest.intake import Intake
from hookq.ingest.spool import Spool, SpoolFailed
from hookq.job import Delivery, JobIds
from hookq.metrics import Durations
from hookq.operate.sample import send_sample
from hookq.signing import Rejected, verify
from hookq.store.boot import boot_check
from hookq.store.connection import Away
from hookq.wire import BadRequest, Request

PREFIX = "/api/webhooks/"
JSON, TEXT = "application/json", "text/plain; charset=utf-8"

READ = 256 * 1024  # one read, while a body is expected
READ_AHEAD = (
    64 * 1024
)  # one read otherwise; GitHub's usual request fits, and 2,000 strangers hold no more than 256 MB
LARGE_PART = 15 / 16  # of MAX_HELD, that bodies longer than READ_AHEAD may fill
ACCEPTS = 64  # new connections per turn, so that a burst of them does not starve those already here
# to one connection per turn: whoever pipelines thousands of requests waits like everybody else
ANSWERS = 16
BATCH, BATCH_BYTES = 64, 4 << 20  # of one commit: bounds how long Redis is busy with it
EVICT_S = 1.0  # a connection may be here without a request, before it can lose its place to another
SAY_S = 2.0  # between two heartbeats
SWEEP_S = 0.5  # how often deadlines are looked at
RETRY_AFTER_S = 5
REFUSALS_PER_S = 20  # log lines; the counters are exact
# before a stop: so long a balancer that asks for /readyz has to notice, while its requests are
# still taken
LEAVE_S = 5.0
ASKED_S, SETTLED_S = 30.0, 10.0  # it has asked lately; what asked at the very start was `make run`
DRAIN_NEW_S, DRAIN_KEPT_S, DRAIN_S = 2.0, 0.3, 10.0
FIRST_REDIS_S = (
    1.0  # at the start, before connections are taken whose deliveries can only go to the spool
)
FOREVER = float("inf")
# `selectors` would find out the same for half a microsecond more of each request.
IN, OUT, BROKEN = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR


class Connection:
    """One client. `deadline` is absolute; `request` is set from the head's end to the answer;
    `waiting` says that its delivery is on the way to Redis; `lingering` that the answer is out and
    the rest is thrown away.
    """

    __slots__ = (
        "buffer",
        "close",
        "deadline",
        "ended",
        "forwarded",
        "held",
        "kept",
        "lingering",
        "mask",
        "out",
        "peer",
        "request",
        "since",
        "sock",
        "waiting",
        "wasted",
        "where",
    )

    def __init__(self, sock: socket.socket, peer: str, now: float) -> None:
        self.sock, self.peer = sock, peer
        self.buffer: bytes | bytearray = b""
        self.forwarded = ""  # X-Forwarded-For of the request
        self.out = b""
        self.request: Request | None = None
        self.where = 0  # of the body in the buffer
        self.waiting = self.lingering = self.close = self.kept = self.ended = False
        self.held = self.wasted = 0
        self.mask = IN
        self.since = now
        self.deadline = now + wire.HEAD_S

    @property
    def idle(self) -> bool:
        return not (self.request or self.buffer or self.waiting or self.out)


# A delivery on its way: who waits for the answer (None when it comes from the spool), what, and its
# dedupe_s.
Waiting = tuple[Connection | None, Delivery, int]


class Server(http.server.HTTPServer):
    """The listening socket and the loop. `run` returns when everything that was asked is
    answered.
    """

    request_queue_size = (
        1024  # a burst of connects waits here; the default of 5 turned 46 of 100 away
    )
    allow_reuse_address = True

    def __init__(self, settings: Config, inherited: socket.socket | None = None) -> None:
        address = (settings.host, settings.port)
        super().__init__(address, http.server.BaseHTTPRequestHandler, bind_and_activate=False)
        if inherited:
            self.socket.close()
            self.socket = inherited
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(
                address
            )  # not server_bind(): that asks DNS for our name, which can take a minute
            self.server_activate()
        self.socket.setblocking(
            False
        )  # shared with the other processes: somebody else may take the connection
        self.settings = settings
        self.poll = select.epoll()
        self.watched: dict[int, Connection | Callable[[int], None]] = {}
        self.connections: set[Connection] = set()
        self.pending: deque[Waiting] = deque()
        self.counters: Counter[str] = Counter()
        self.durations = Durations("http")
        self.held = self.lingering = 0
        self.draining_since = self.started_at = self.leaving_since = 0.0
        self.asked_at = float("-inf")  # for /readyz
        self.accepting = self.checking = self.reload = self.crowded = False
        self.flushes: deque[tuple[str, Counter[str]]] = deque()
        self.more: dict[Connection, None] = {}  # with requests left over from the last turn
        self.refusals = (0, 0)
        self.ids = JobIds(int.from_bytes(secrets.token_bytes(4)))
        self.date = (0, "")
        self.waker, self.woken = socket.socketpair()
        self.woken.setblocking(False)
        self.waker.setblocking(False)
        self.intake = Intake(
            settings.redis_url, daemon.name_of("ingest"), self.wake, replicas=settings.durability
        )
        self.retry_at = self.flushed_at = self.said_at = 0.0
        self.why = ""
        self.spool = Spool(settings.state_dir / "spool.db", settings.max_spool)
        self.spooled = 0
        self.spool_why = ""
        self.draining_spool = False
        self.to_remove: list[int] = []
        self.intake_mask = 0

    # ---------------- the loop

    def wake(self) -> None:
        """End a wait in select; called from signal handlers and the connecting thread."""
        try:
            self.waker.send(b"!")
        except OSError:
            pass

    def run(self, signals: daemon.Signals) -> None:
        self._register(self.woken, IN, self._woken)
        # and only then _listen: whoever connects at once would only go through the spool
        self.intake.start()
        swept, self.started_at = 0.0, time.monotonic()
        while not (self.draining_since and self._drained()):
            wait_s = (
                0
                if self.more or (self.pending and not self.intake.up)
                else 0.05
                if self.draining_since
                else SWEEP_S
            )
            for fd, mask in self.poll.poll(wait_s):
                if watched := self.watched.get(fd):  # else it was given up earlier in this turn
                    self._on_connection(watched, mask) if isinstance(
                        watched, Connection
                    ) else watched(mask)
            more, self.more = self.more, {}
            for c in more:
                self._advance(c)
            self._commit()
            now = time.monotonic()
            if now - swept >= SWEEP_S or self.draining_since:
                swept = now
                self._sweep(now)
            self._obey(signals, now)

    def _obey(self, signals: daemon.Signals, now: float) -> None:
        """Start anew in place, or stop: /readyz goes bad first, then nobody new is taken in, then
        what is here is finished.
        """
        if signals.reload and not (self.checking or self.reload):
            self.checking = True
            daemon.in_background(self._check_reload, signals)
        if signals.stop and not self.leaving_since:
            self.leaving_since = now
            log.event("process.leave")
        watched = self.asked_at > self.leaving_since - ASKED_S
        stop = signals.stop and not (watched and now - self.leaving_since < LEAVE_S)
        if (stop or self.reload) and not self.draining_since:
            self._drain(now)
        if stop and self.socket.fileno() >= 0:
            self._stop_listening()

    def _check_reload(self, signals: daemon.Signals) -> None:
        """Tell the loop to drain and start anew, if the settings of now allow it; in a thread,
        since that takes a while.
        """
        self.reload = daemon.reload_wanted(signals)
        self.checking = False
        self.wake()

    def _register(
        self, sock: socket.socket, mask: int, who: "Connection | Callable[[int], None]"
    ) -> None:
        self.poll.register(sock, mask)
        self.watched[sock.fileno()] = who

    def _unregister(self, sock: socket.socket) -> None:
        del self.watched[sock.fileno()]
        self.poll.unregister(sock)

    def _woken(self, _mask: int) -> None:
        self.woken.recv(4096)
        if self.intake.adopt():
            log.event("redis.up")
            self.why = ""
            daemon.in_background(
                boot_check, self.settings.redis_url, self.intake.name, self.settings.durability
            )  # the loop waits for nobody
            self.intake_mask = 0
            self._watch_intake()
            self._listen(not self.draining_since)

    def _listen(self, on: bool) -> None:
        if on != self.accepting:
            self.accepting = on
            if on:
                self._register(self.socket, IN, self._on_listener)
            else:
                self._unregister(self.socket)

    def _on_listener(self, _mask: int = 0) -> None:
        for _ in range(ACCEPTS):
            if (
                len(self.connections) - self.lingering >= self.settings.max_connections
                and not self._evict()
            ):
                # the backlog keeps what waits, until somebody goes or has been here for long enough
                self.crowded = True
                self._listen(False)
                return
            try:
                sock, address = self.socket.accept()
            except (BlockingIOError, ConnectionError):
                return
            # out of files or memory: the backlog keeps what waits, the sweep tries again
            except OSError as error:
                log.event("connections.exhausted", "error", error=error.strerror)
                self._listen(False)
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, address[0], time.monotonic())
            self.connections.add(connection)
            self._register(sock, IN, connection)
            self._on_connection(connection, IN)  # its request is usually here already

    def _evict(self) -> bool:
        """Make room, if anybody can go: whoever has sent nothing complete for the longest; who had
        begun a body is told so.
        """
        before = time.monotonic() - EVICT_S
        candidates = [
            c
            for c in self.connections
            if c.since < before and not (c.waiting or c.out or c.lingering)
        ]
        for connection in heapq.nsmallest(32, candidates, key=lambda c: c.since):
            self.counters["evicted_connections"] += 1
            if connection.request:
                connection.buffer = b""
                self._refuse(
                    connection, Rejected("overloaded", "there are too many connections"), 503
                )
            else:
                self._forget(connection)
        return bool(candidates) and len(self.connections) < 2 * self.settings.max_connections

    # ---------------- one connection

    def _on_connection(self, c: Connection, mask: int) -> None:
        if mask & BROKEN:  # what it was watched for will tell how
            mask = c.mask
        try:
            if mask & OUT:
                self._flush(c)
                self._advance(c)  # what was read ahead has waited for this answer to go out
            if mask & IN and c in self.connections:
                self._read(c)
        except OSError:
            self._forget(c)

    def _read(self, c: Connection) -> None:
        try:
            data = c.sock.recv(READ if c.request else READ_AHEAD)
        except BlockingIOError:
            return
        if not data:
            c.ended = True  # of its own direction, perhaps: whatever it sent is still answered
            self._advance(c)
            return
        if c.lingering:
            c.wasted += len(data)
            if c.wasted > wire.LINGER_BYTES:
                self._forget(c)
            return
        if c.request and not c.waiting and not self._hold(c, c.request.length or 0, len(data)):
            self._watch(c)
            return
        if not c.buffer:
            if not c.request and c.kept:
                c.since = time.monotonic()
                c.deadline = c.since + wire.HEAD_S
            c.buffer = data
        else:
            if isinstance(c.buffer, bytes):
                c.buffer = bytearray(c.buffer)
            c.buffer += data
        self._advance(c)

    def _advance(self, c: Connection) -> None:
        """Answer the complete requests of the buffer, a few per turn; stop at the first that has to
        wait.
        """
        try:
            for _ in range(ANSWERS):
                if not c.buffer or c.waiting or c.out or c.lingering or c not in self.connections:
                    break
                if not self._request(c):
                    break
            else:
                self.more[c] = None
        except OSError:  # reset, or timed out in the kernel: whatever was committed stays committed
            self._forget(c)
        if c.ended and not (c.waiting or c.out or c in self.more):  # nothing more can come
            self._forget(c)
        self._watch(c)

    def _request(self, c: Connection) -> bool:
        """Do what can be done for the first request of the buffer; False when more of it must
        come.
        """
        try:
            if c.request is None and not self._head(c):
                return False
            return not c.request or self._body(c, c.request)
        except BadRequest as bad:
            reason = "too_large" if bad.status == 413 else "bad_request"
            self._refuse(c, Rejected(reason, str(bad)), bad.status)
            return True

    def _head(self, c: Connection) -> bool:
        """Parse the head if it is complete, and check everything that can be checked before the
        body is read.
        """
        end = wire.head_end(c.buffer)
        if end < 0:
            return False
        request = wire.parse_head(bytes(c.buffer[:end]))
        c.forwarded = request.fields.get("x-forwarded-for", "")
        source = self._source_of(c, request)
        if not source:
            c.buffer = c.buffer[end:]
            self._answer_page(c, request) if source is None else None
            return True
        if request.length is None:
            self._refuse(
                c,
                Rejected("bad_request", "a webhook needs a body with Content-Length"),
                411,
                source,
            )
            return True
        if request.length > self.settings.max_body:
            self._refuse(
                c,
                Rejected("too_large", f"the body is longer than {self.settings.max_body} bytes"),
                413,
                source,
            )
            return True
        c.request, c.where = request, end
        if not self._hold(c, request.length, min(len(c.buffer) - end, request.length)):
            return True
        c.close = c.close or not request.keep_alive or bool(self.draining_since)
        c.deadline = time.monotonic() + wire.BODY_S
        if request.expects and len(c.buffer) == end:
            c.sock.send(
                b"HTTP/1.1 100 Continue\r\n\r\n"
            )  # small, and the first of its answer: it fits or the client is gone
        return True

    def _hold(self, c: Connection, length: int, more: int) -> bool:
        """Count `more` bytes of a body of `length` that are here; refuse it, and return False, when
        all are too many.

        What is only announced is not counted, or a few senders of nothing could keep everybody out;
        and large bodies leave a part to those of the usual size.
        """
        if self.held + more > self.settings.max_held * (LARGE_PART if length > READ_AHEAD else 1):
            c.buffer = b""
            self._refuse(c, Rejected("overloaded", "too many bytes are held already"), 503)
            return False
        self.held += more
        c.held += more
        return True

    def _source_of(self, c: Connection, request: Request) -> str | None:
        """Return the source a delivery is for, "" when the request has been refused here, None when
        it is for a page.
        """
        if not request.path.startswith(PREFIX):
            return None
        name = request.path[len(PREFIX) :]
        head_only = request.method == "HEAD"
        if name not in self.settings.sources:
            self._refuse(
                c,
                Rejected("unknown_source", "there is no such source"),
                404,
                "_unknown",
                head_only=head_only,
            )
        elif request.method != "POST":
            why = Rejected("bad_request", f"{request.method} is no way to deliver")
            self._refuse(c, why, 405, name, head_only=head_only, extra="Allow: POST\r\n")
        else:
            return name
        return ""

    def _answer_page(self, c: Connection, request: Request) -> None:
        pages = {"/": (200, b"webhookd is running.\n"), "/livez": (200, b"ok\n")}
        status, text = (
            self._readiness()
            if request.path == "/readyz"
            else pages.get(request.path, (404, b"There is nothing here.\n"))
        )
        extra = ""
        if status != 404 and request.method not in ("GET", "HEAD"):
            status, text, extra = 405, b"Only GET is possible here.\n", "Allow: GET, HEAD\r\n"
        # A body that nobody reads would be taken for the next request: the connection ends after
        # such an answer.
        close = not request.keep_alive or bool(request.length) or request.expects
        self._answer(c, status, text, TEXT, extra, close=close, head_only=request.method == "HEAD")

    def _readiness(self) -> tuple[int, bytes]:
        now = time.monotonic()
        if now - self.started_at > SETTLED_S:
            self.asked_at = now
        if self.leaving_since or self.draining_since:
            return 503, b"draining\n"
        if self.intake.up:
            return 200, b"ok\n"
        if self.spool_why:
            return 503, f"Redis is away. {self.spool_why}\n".encode()
        return 200, b"Redis takes nothing now; the spool takes all\n"

    def _body(self, c: Connection, request: Request) -> bool:
        """Verify the request once its body is complete."""
        length = request.length or 0
        end = c.where + length
        if len(c.buffer) < end:
            return False
        self.held += length - c.held  # what follows the body is read ahead, and bounded by that
        c.held = length
        body = bytes(memoryview(c.buffer)[c.where : end])  # one copy, not two
        c.buffer = c.buffer[end:]
        source = self.settings.sources[request.path[len(PREFIX) :]]
        arrived_at, ahead_s = time.time(), self.intake.ahead_s
        id = self.ids.make(arrived_at + ahead_s)
        found = verify(
            source.signer,
            request.fields,
            request.head,
            body,
            arrived_at,
            id,
            request.query,
            ahead_s,
        )
        if isinstance(found, Rejected):
            self._refuse(c, found, 401, source.signer.name, close=c.close)
        else:
            c.waiting = True
            c.deadline = FOREVER  # the limit of the Redis command holds now
            self.pending.append((c, found, source.dedupe_s))
        return True

    # ---------------- answers

    def _refuse(
        self,
        c: Connection,
        why: Rejected,
        status: int,
        source: str = "",
        *,
        close: bool = True,
        head_only: bool = False,
        extra: str = "",
    ) -> None:
        """Answer a request that is no delivery; count it, and write a line unless there were many
        this second (R8).
        """
        source = source or (c.request.path[len(PREFIX) :] if c.request else "_unknown")
        self.counters[f"rejected:{source}:{why.reason}"] += 1
        self.counters[f"http:{source}:{status}"] += 1
        second = int(time.monotonic())
        lines = self.refusals[1] + 1 if self.refusals[0] == second else 1
        self.refusals = (second, lines)
        if lines <= REFUSALS_PER_S:
            client = wire.client_of(c.peer, c.forwarded, self.settings.trusted_proxies)
            log.event(
                "request.reject",
                "warning",
                source=source,
                client=client,
                code=status,
                reason=why.reason,
                why=why.why,
            )
        body = json.dumps({"status": "rejected", "id": None, "reason": why.reason}).encode()
        extra += f"Retry-After: {RETRY_AFTER_S}\r\n" if status == 503 else ""
        self._answer(c, status, body, JSON, extra, close=close, head_only=head_only)

    def _answer(
        self,
        c: Connection,
        status: int,
        body: bytes,
        kind: str,
        extra: str = "",
        *,
        close: bool,
        head_only: bool = False,
    ) -> None:
        if c.held:
            self.held -= c.held
            c.held = 0
        c.request = None
        c.forwarded = ""  # the next request of a kept connection may be another client's
        c.waiting = False
        c.kept = True
        c.close = c.close or close or bool(self.draining_since)
        second = int(time.time())
        if self.date[0] != second:
            self.date = (second, formatdate(second, usegmt=True))
        c.out += wire.reply(
            status, body, kind, self.date[1], extra=extra, close=c.close, head_only=head_only
        )
        c.since = time.monotonic()
        c.deadline = c.since + wire.WRITE_S
        self._flush(c)

    def _flush(self, c: Connection) -> None:
        try:
            sent = c.sock.send(c.out) if c.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._forget(c)
            return
        c.out = c.out[sent:]
        if c.out:
            self._watch(c)
            return
        if c.close or (c.ended and not c.buffer):
            self._linger(c)
            return
        # What was read ahead is a new request whose time begins now.
        c.deadline = c.since + (wire.HEAD_S if c.buffer else wire.IDLE_S)
        self._watch(c)

    def _linger(self, c: Connection) -> None:
        """Say that no more is coming and read on for a while: closing with unread bytes would reset
        the answer away.
        """
        if c.ended:
            self._forget(c)
            return
        c.lingering, c.buffer = True, b""
        self.lingering += 1
        c.deadline = time.monotonic() + wire.LINGER_S
        try:
            c.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(c)
            return
        self._watch(c)

    def _watch(self, c: Connection) -> None:
        """Ask epoll for what this connection is waiting for; nothing is read ahead without a
        bound.
        """
        wanted = (
            c.request is not None and not c.waiting
        )  # the rest of a body, whose length was checked
        read = not c.ended and (wanted or len(c.buffer) < READ_AHEAD)
        mask = (IN if read else 0) | (OUT if c.out else 0)
        if mask == c.mask or c not in self.connections:
            return
        if not c.mask:
            self._register(c.sock, mask, c)
        elif not mask:
            self._unregister(c.sock)
        else:
            self.poll.modify(c.sock, mask)
        c.mask = mask

    def _forget(self, c: Connection) -> None:
        if c in self.connections:
            self.connections.remove(c)
            self.lingering -= c.lingering
            if self.crowded:
                self.crowded = False
                self._listen(not self.draining_since)
            self.held -= c.held
            c.held = 0
            if c.mask:
                self._unregister(c.sock)
            c.sock.close()

    # ---------------- Redis

    def _watch_intake(self) -> None:
        mask = IN | (OUT if self.intake.wants_write else 0)
        if mask != self.intake_mask:
            if self.intake_mask:
                self.poll.modify(self.intake.sock, mask)
            else:
                self._register(self.intake.sock, mask, self._on_intake)
            self.intake_mask = mask

    def _commit(self) -> None:
        """Make durable what this turn gathered: in Redis as one batch, unless enough is under way
        already, else in the spool.
        """
        now = time.monotonic()
        if now - self.flushed_at >= 1.0 or self.draining_since:
            self.counters.update(log.take_counts())
            self.durations.drain(self.counters)
        if self.counters and (now - self.flushed_at >= 1.0 or self.draining_since):
            # Under an id of its own, so that a flush whose reply was lost is not counted twice when
            # it is sent again.
            self.flushes.append((self.ids.make(time.time()), self.counters))
            self.counters, self.flushed_at = Counter(), now
        if not self.intake.up:
            for _ in range(ANSWERS):  # each answer may let the next of a pipeline through
                waiting, self.pending = list(self.pending), deque()
                if not waiting:
                    break
                self._into_spool(waiting)
            return
        while not self.intake.busy and self.intake.up:
            if self.pending or self.flushes:
                batch: list[Waiting] = []
                size = 0
                while self.pending and len(batch) < BATCH and size < BATCH_BYTES:
                    batch.append(self.pending.popleft())
                    size += len(batch[-1][1].body)
                self._submit(batch, [])
            elif self.spooled and not self.draining_spool:
                self._drain_spool()
            else:
                return

    def _submit(self, batch: list[Waiting], rows: list[int]) -> None:
        flush = self.flushes.popleft() if self.flushes else None
        try:
            self.intake.submit(
                [(delivery, dedupe_s) for _, delivery, dedupe_s in batch],
                flush,
                (batch, rows, flush),
            )
            self._watch_intake()
        except Away as error:
            self._redis_failed(str(error))

    def _on_intake(self, mask: int) -> None:
        try:
            if mask & OUT:
                self.intake.flush()
                self._watch_intake()
            for (batch, rows, _), ids in self.intake.received():
                now = time.time() + self.intake.ahead_s
                for (c, delivery, _), id in zip(batch, ids, strict=True):
                    self._accepted(c, delivery, id, now)
                if rows:
                    self._drained_rows(rows)
        except Away as error:
            self._redis_failed(str(error))

    def _accepted(self, c: Connection | None, delivery: Delivery, id: str, now: float) -> None:
        """Answer a delivery that is durable. `id` is its job's: another than its own says that it
        is a duplicate.
        """
        duplicate = id != delivery.id
        if duplicate:
            told = {
                "source": delivery.source,
                "id": id,
                "delivery_id": delivery.delivery_id,
                "event_type": delivery.event_type,
            }
            log.event("delivery.duplicate", **told, traceparent=delivery.traceparent)
        if c is None:  # it was answered when the spool took it
            return
        code = 200 if duplicate else 202
        self.counters[f"http:{delivery.source}:{code}"] += 1
        self.durations.observe(delivery.source, max(0.0, now - delivery.received_at))
        if c in self.connections:
            word = "duplicate" if duplicate else "accepted"
            body = b'{"status": "%s", "id": "%s", "reason": null}' % (word.encode(), id.encode())
            self._answer(c, code, body, JSON, close=c.close)
            if c.buffer:
                self._advance(c)

    def _redis_failed(self, why: str) -> None:
        """Give up the connection to Redis: what waits goes into the spool, and a new one is made in
        the background.
        """
        log.event("redis.away", "error", why=why)
        self.why = why  # told: the sweep says what else it finds
        if self.intake_mask:
            self._unregister(self.intake.sock)
            self.intake_mask = 0
        tokens = self.intake.failed(why)
        self.retry_at = time.monotonic() + 0.1
        self.draining_spool = bool(self.to_remove)
        self.flushes.extendleft(reversed([flush for _, _, flush in tokens if flush]))
        under_way = [entry for batch, _, _ in tokens for entry in batch if entry[0]]
        waiting, self.pending = under_way + list(self.pending), deque()
        self._into_spool(waiting)

    # ---------------- the spool

    def _into_spool(self, waiting: list[Waiting]) -> None:
        """Commit to the local disk, then answer; where that fails too, 503: never a 4xx, the sender
        must come again.
        """
        try:
            self.spool.accept([(delivery, dedupe_s) for _, delivery, dedupe_s in waiting])
            self._spool_state("")
        except SpoolFailed as error:
            self._spool_state(str(error))
            for c, delivery, _ in waiting:
                if c in self.connections:
                    self._refuse(
                        c,
                        Rejected("overloaded", "Redis is away, and the spool failed"),
                        503,
                        delivery.source,
                        close=c.close,
                    )
                    self._advance(c)
            return
        if waiting and not self.spooled:
            log.event(
                "spool.begin", "warning", why="Redis is away: deliveries are kept on the local disk"
            )
        self.spooled += len(waiting)
        now = time.time() + self.intake.ahead_s
        for c, delivery, _ in waiting:
            self._accepted(c, delivery, delivery.id, now)

    def _spool_state(self, why: str) -> None:
        if why != self.spool_why:
            self.spool_why = why
            log.event("spool.failed", "critical", why=why) if why else log.event("spool.mended")

    def _drain_spool(self) -> None:
        """Send the oldest of the spool as one batch. Another process may do the same: whoever is
        second changes nothing (R6).
        """
        try:
            found = self.spool.oldest(BATCH, BATCH_BYTES)
        except SpoolFailed as error:
            self._spool_state(str(error))
            self.spooled = 0  # the sweep looks again
            return
        if not found:
            self.spooled = 0
            log.event("spool.end")
            return
        self.draining_spool = True
        self._submit(
            [(None, spooled.delivery, spooled.dedupe_s) for spooled in found],
            [spooled.row for spooled in found],
        )

    def _drained_rows(self, rows: list[int]) -> None:
        """Forget rows that are in Redis now. Where that fails nothing more is drained: they would
        only come again.
        """
        try:
            self.counters["spooled"] += self.spool.remove(rows)
            self.to_remove, self.draining_spool = [], False
        except SpoolFailed as error:
            self.to_remove = rows
            self._spool_state(str(error))

    def _look_at_spool(self) -> None:
        """Find out what other processes, or an earlier life of this one, left in it; and whether it
        can be written again.
        """
        try:
            if self.spool_why:
                self.spool.accept([])
            if self.to_remove:
                self._drained_rows(self.to_remove)
            elif not self.draining_spool:
                self.spooled, _ = self.spool.size()
            if not self.to_remove:
                self._spool_state("")
        except SpoolFailed as error:
            self._spool_state(str(error))

    # ---------------- time

    def _sweep(self, now: float) -> None:
        """End what is past its deadline; look after Redis and the listener."""
        for c in [c for c in self.connections if c.deadline < now]:
            if c.request or (c.buffer and not c.lingering and not c.out):
                self._refuse(
                    c, Rejected("bad_request", "the request was not complete in time"), 408
                )
            else:
                self._forget(c)
        if self.intake.overdue(now):
            self._on_intake(IN)  # the turn may have been long: the answer may be here already
            if self.intake.overdue(time.monotonic()):
                self._redis_failed(f"no answer within {self.intake.limit_s:g} s")
        if not self.intake.up and now >= self.retry_at:
            self.retry_at = now + 0.5
            if self.intake.why != self.why:
                self.why = self.intake.why
                log.event("redis.unreachable", "error", why=self.why, then="trying again")
            self.intake.start()
        self._look_at_spool()
        if now - self.said_at >= SAY_S:
            self._say(now)
        if not self.draining_since and now - self.started_at > FIRST_REDIS_S:
            self._listen(True)

    def _say(self, now: float) -> None:
        """Tell the pages of all hosts what this process does; or that it ends, unless they are to
        know what is left in its spool.
        """
        self.said_at, up_s = now, round(now - self.started_at)
        facts = {
            "pid": os.getpid(),
            "up_s": up_s,
            "connections": len(self.connections),
            "spooled": self.spooled,
        }
        try:
            self.intake.say(None if self.draining_since and not self.spooled else facts)
            if self.intake.up:
                self._watch_intake()
        except Away as error:
            self._redis_failed(str(error))

    def _drain(self, now: float) -> None:
        """Take no new connections; answer what comes on those that are here, and say that each is
        the last.
        """
        log.event("process.drain")
        self._listen(False)  # kept open on a reload: the next of us goes on with what waits in it
        self.draining_since = now
        self._say(now)
        for c in self.connections:
            if c.idle:
                c.deadline = min(c.deadline, now + (DRAIN_KEPT_S if c.kept else DRAIN_NEW_S))

    def _stop_listening(self) -> None:
        """Close the listening socket, once those whose connection it has already made were taken
        in: the rest is refused.
        """
        before = -1
        while (
            len(self.connections) > before and len(self.connections) < self.settings.max_connections
        ):
            before = len(self.connections)
            self._on_listener()
        now = time.monotonic()
        for c in self.connections:
            if c.idle and not c.kept:
                c.deadline = min(c.deadline, now + DRAIN_NEW_S)
        self.socket.close()

    def _drained(self) -> bool:
        if time.monotonic() - self.draining_since > DRAIN_S:
            return True
        told = not (self.counters or self.flushes) or not self.intake.up
        return told and not (self.connections or self.pending or self.intake.under_way)


def serve(read_settings: Callable[[], Config]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    signals = daemon.Signals()
    settings = daemon.load_or_exit(read_settings)
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        log.event(
            "spool.failed",
            "critical",
            why=f"STATE_DIR {settings.state_dir} cannot be made: {error.strerror}",
        )
    try:
        server = Server(settings, daemon.inherited_socket())
    except OSError as error:
        sys.exit(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}. Set "
            "HOST and PORT to a free address."
        )
    signals.wake = server.wake
    log.never_wait()
    log.event(
        "process.start",
        program="webhookd",
        version=VERSION,
        sources=sorted(settings.sources),
        files=hard,
    )
    server.run(signals)
    if server.reload and not signals.stop:
        daemon.reexec(server.socket)
    log.event("process.end", program="webhookd")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="webhookd.py", description="Takes signed webhooks in.", allow_abbrev=False
    )
    mode = parser.add_mutually_exclusive_group()
    daemon.add_check(mode)
    mode.add_argument(
        "--selftest",
        nargs="?",
        const="",
        metavar="FILE",
        help="run signature vectors (default: those of the project)",
    )
    mode.add_argument(
        "--send",
        nargs="?",
        const="",
        metavar="FILE",
        help="send one signed sample and follow it to the end",
    )
    parser.add_argument(
        "--source", default="github", help="with --send: whose delivery it is (default github)"
    )
    parser.add_argument("--fail", action="store_true", help="with --send: a body that is no JSON")
    parser.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    add_flags(
        parser,
        "HOST",
        "PORT",
        "MAX_BODY",
        "MAX_CONNECTIONS",
        "MAX_HELD",
        "STATE_DIR",
        "WEBHOOKS_FILE",
    )
    args = parser.parse_args()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}

    def read_settings() -> Config:
        return load(flags, root=daemon.root())

    if args.fail and args.send is None:
        parser.error("--fail goes with --send")
    if args.fail and args.send:
        parser.error("--fail sends a body of its own: leave the file out")
    if args.selftest is not None:
        sys.exit(selftest.run(args.selftest))
    if args.check:
        settings = daemon.load_or_exit(read_settings)
        daemon.end_check(settings, daemon.check_handlers(settings) if args.check == "all" else ())
    elif args.send is not None:
        sys.exit(
            send_sample(daemon.load_or_exit(read_settings), args.source, args.send, fail=args.fail)
        )
    else:
        serve(read_settings)


if __name__ == "__main__":
    main()
