"""All senders' connections: what they send is cut into requests, and each gets its answer.

The rules of connection.py, applied. What a request is for and whether it is genuine is not known
here: `judge` is called with its head, `take` with its body, and whoever made the delivery durable
calls `durable`.

Promises: bytes and time are bounded, whoever sends (connections are, too: door.py). An answer is
read: after the last one the connection lingers, since closing it with unread bytes would reset the
answer away (RFC 9112 section 9.6). Does not promise order between connections.
"""

import socket
import time
from collections.abc import Callable
from typing import Final

from hookq import wire
from hookq.ingest.connection import (
    ANSWER,
    BODY,
    CLOSED,
    COMMIT,
    HEAD,
    IDLE,
    LINGER,
    READ_AHEAD,
    READING,
    Connection,
)
from hookq.ingest.poll import BROKEN, IN, OUT, Poll
from hookq.ingest.routes import Deliver, Page, Refusal, of_parser, refusal
from hookq.ingest.tally import Tally
from hookq.sources import Source
from hookq.wire import BadRequest, Request

JSON, TEXT = "application/json", "text/plain; charset=utf-8"

READ: Final = 256 * 1024  # one read of a body; a head gets READ_AHEAD, since strangers send heads
LARGE_PART: Final = 15 / 16  # of the bytes held at most is for bodies longer than READ_AHEAD
ANSWERS: Final = 16  # requests of one connection in a turn: thousands may be pipelined
DRAIN_NEW_S, DRAIN_KEPT_S = 2.0, 0.3  # at a drain a quiet connection may still begin a request
RETRY_AFTER_S: Final = 5


Judge = Callable[[Request], Deliver | Page | Refusal]
Take = Callable[[Connection, Request, Source, bytes], Refusal | None]


class Clients:
    """The connections, and the bytes of bodies that are `held`: at most `max_held`."""

    def __init__(self, poll: Poll, tally: Tally, max_held: int, judge: Judge, take: Take) -> None:
        self.poll, self.tally, self.max_held = poll, tally, max_held
        self.judge, self.take = judge, take
        self.on_close: Callable[[], None] = lambda: None
        self.connections: set[Connection] = set()
        self.more: dict[Connection, None] = {}  # with requests left over from the last turn
        self.held = self.lingering = 0
        self.draining = False

    # ---------------- connections come and go

    def add(self, c: Connection) -> None:
        """Serve a connection that was accepted."""
        self.connections.add(c)
        c.events = IN
        self.poll.watch(c.sock, IN, self._ready, c)
        self._ready(c, IN)  # its request is usually here already

    def close(self, c: Connection) -> None:
        """Forget a connection. Whatever of it is committed stays committed."""
        if c.state == CLOSED:
            return
        self.connections.remove(c)
        self.lingering -= c.state == LINGER
        c.enter(CLOSED, c.since)
        self.held -= c.held
        if c.events:
            self.poll.forget(c.sock)
        c.sock.close()
        self.on_close()

    # ---------------- bytes come in

    def _ready(self, c: Connection, events: int) -> None:
        if events & BROKEN:  # reading or writing will say how
            events = c.events
        try:
            if events & OUT and c.out:
                self._send(c)
                self._advance(c)  # what was read ahead has waited for this answer to go out
            if events & IN and c.state != CLOSED:
                self._read(c)
        except OSError:
            self.close(c)

    def _read(self, c: Connection) -> None:
        try:
            data = c.sock.recv(READ if c.state == BODY else READ_AHEAD)
        except BlockingIOError:
            return
        if not data:
            c.half_closed = True
        elif c.state == LINGER:
            c.wasted += len(data)
            if c.wasted > wire.LINGER_BYTES:
                self.close(c)
            return
        elif c.state == BODY and not self._hold(c, len(data)):
            return
        elif not c.buffer:
            if c.state == IDLE:
                c.since = time.monotonic()
                c.enter(HEAD, c.since)
            c.buffer = data
        else:
            if isinstance(c.buffer, bytes):
                c.buffer = bytearray(c.buffer)
            c.buffer += data
        self._advance(c)

    def turn(self) -> None:
        """Go on with the connections that had more requests here than a turn answers."""
        more, self.more = self.more, {}
        for c in more:
            self._advance(c)

    def _advance(self, c: Connection) -> None:
        """Answer the complete requests that are here, a few in a turn, up to one that has to wait
        for its body, its commit, or for its answer to go out.
        """
        try:
            for _ in range(ANSWERS):
                if not c.buffer or c.state not in READING or not self._step(c):
                    break
            else:
                self.more[c] = None
        except OSError:  # reset, or timed out in the kernel
            self.close(c)
        if c.half_closed and not (c.state in (COMMIT, ANSWER) or c in self.more):
            self.close(c)  # nothing more can come
        self._watch(c)

    def _step(self, c: Connection) -> bool:
        """Do what can be done for the first request here; False when more of it must come."""
        try:
            if c.state == HEAD and not self._head(c):
                return False
            return not c.asked or self._body(c)
        except BadRequest as bad:
            self.refuse(c, of_parser(bad))
            return True

    def _head(self, c: Connection) -> bool:
        end = wire.head_end(c.buffer)
        if end < 0:
            return False
        request = wire.parse_head(bytes(c.buffer[:end]))
        step = self.judge(request)
        if not isinstance(step, Deliver):
            self._end_at_head(c, request, step, end)
            return True
        c.asked, c.start = (request, step.source), end
        c.length = length = request.length or 0
        here = len(c.buffer) - end
        if here < length:
            c.enter(BODY, time.monotonic())
        if not self._hold(c, min(here, length)):
            return True
        c.last = c.last or not request.keep_alive or self.draining
        if request.expects and not here:
            # Small, and the first of its answer: it fits, or the sender is gone.
            c.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _end_at_head(self, c: Connection, request: Request, step: Page | Refusal, end: int) -> None:
        """Answer a request that is no delivery; its head ends at `end` of the buffer."""
        if isinstance(step, Refusal):
            self.refuse(c, step, request)
            return
        c.buffer = c.buffer[end:]
        c.last = c.last or step.last
        head = request.method == "HEAD"
        self.answer(c, step.status, step.text, TEXT, step.extra, head=head)

    def _body(self, c: Connection) -> bool:
        end = c.start + c.length
        if len(c.buffer) < end:
            return False
        self.held += c.length - c.held  # what follows the body is bounded as what is read ahead
        c.held = c.length
        body = bytes(memoryview(c.buffer)[c.start : end])  # one copy, not two
        c.buffer = c.buffer[end:]
        assert c.asked  # noqa: S101  # in BODY there is a request
        no = self.take(c, *c.asked, body)
        if no:
            self.refuse(c, no, last=c.last)
        else:
            c.enter(COMMIT, c.since)
        return True

    def _hold(self, c: Connection, more: int) -> bool:
        """Count bytes of a body that are here; refuse it, and return False, when all are too many.

        What is only announced is not counted, or a few senders of nothing could keep everybody out;
        and large bodies leave a part to those of the usual size.
        """
        most = self.max_held * (LARGE_PART if c.length > READ_AHEAD else 1)
        if self.held + more > most:
            c.buffer = b""
            self.refuse(c, refusal("overloaded", "too many bytes are held already"))
            self._watch(c)
            return False
        self.held += more
        c.held += more
        return True

    # ---------------- answers go out

    def refuse(
        self, c: Connection, no: Refusal, request: Request | None = None, *, last: bool = True
    ) -> None:
        """Answer a request that is no delivery. Unless it was read whole, its connection ends."""
        if c.asked:
            request, source = c.asked
            no = no._replace(source=source.name)
        forwarded = request.fields.get("x-forwarded-for", "") if request else ""
        head = request is not None and request.method == "HEAD"
        self.tally.refused(no, c.peer, forwarded)
        extra = no.extra + (f"Retry-After: {RETRY_AFTER_S}\r\n" if no.status == 503 else "")
        body = b'{"status": "rejected", "id": null, "reason": "%s"}' % no.reason.encode()
        c.last = c.last or last
        self.answer(c, no.status, body, JSON, extra, head=head)

    def durable(self, c: Connection, status: int, body: bytes) -> None:
        """Answer a delivery that is on disk, and go on with what came behind it."""
        if c.state == COMMIT:  # else its sender is gone
            self.answer(c, status, body, JSON)
            if c.buffer:
                self._advance(c)

    def failed(self, c: Connection, no: Refusal) -> None:
        """Answer a delivery that could not be made durable."""
        if c.state == COMMIT:
            self.refuse(c, no, last=c.last)
            self._advance(c)

    def answer(
        self, c: Connection, status: int, body: bytes, kind: str, extra: str = "", *,
        head: bool = False,
    ) -> None:  # fmt: skip
        self.held -= c.held
        c.held = 0
        c.asked = None
        c.last = c.last or self.draining
        date = wire.date(int(time.time()))
        c.out += wire.reply(status, body, kind, date, extra=extra, close=c.last, head_only=head)
        c.since = time.monotonic()
        self._send(c)

    def _send(self, c: Connection) -> None:
        try:
            sent = c.sock.send(c.out) if c.out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(c)
            return
        c.out = c.out[sent:]
        if c.out:
            if c.state != ANSWER:
                c.enter(ANSWER, c.since)
        elif c.last or (c.half_closed and not c.buffer):
            self._linger(c)
        else:
            c.enter(HEAD if c.buffer else IDLE, c.since)
        self._watch(c)

    def _linger(self, c: Connection) -> None:
        """Say that no more is coming, and read on for a while."""
        if c.half_closed:
            self.close(c)
            return
        c.buffer = b""
        self.lingering += 1
        c.enter(LINGER, time.monotonic())
        try:
            c.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(c)

    def _watch(self, c: Connection) -> None:
        """Ask epoll for what this connection waits for now; what is read ahead is bounded."""
        # The rest of a body is no reading ahead: its length was checked.
        read = not c.half_closed and (c.state == BODY or len(c.buffer) < READ_AHEAD)
        wanted = (IN if read else 0) | (OUT if c.out else 0)
        if wanted != c.events and c.state != CLOSED:
            self.poll.want(c.sock, c.events, wanted, self._ready, c)
            c.events = wanted

    # ---------------- time

    def sweep(self, now: float) -> None:
        """End what is past its deadline; whoever has begun a request is told so (R7)."""
        for c in [c for c in self.connections if c.deadline < now]:
            if c.state in READING and (c.buffer or c.state == BODY):
                self.refuse(c, Refusal("bad_request", "the request was not complete in time", 408))
            else:
                self.close(c)

    def drain(self, now: float) -> None:
        """Make each answer from now on the last; who is quiet may still begin a request soon."""
        self.draining = True
        for c in self.connections:
            if c.quiet:
                wait_s = DRAIN_KEPT_S if c.state == IDLE else DRAIN_NEW_S
                c.deadline = min(c.deadline, now + wait_s)
