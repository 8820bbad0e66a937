"""accept, as it is sent: one transaction for a batch of deliveries; and for an event loop, without
ever blocking.

Rules: the entries come first, and a script takes back those that were seen before
(hookq/store/lua/accept.lua).

Promises: whatever a batch's reply says is durable: on this Redis' disk, as far as it syncs before
it answers, and with as many replicas as are asked for. Does not promise which of the batches under
way were done when the connection fails: a sender that repeats one is answered as a duplicate (R6).
"""

import contextlib
import json
import os
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import hiredis
import redis

from hookq.job import Delivery
from hookq.store.accept import accept_packed, accepted
from hookq.store.connection import Away, connect, reaching
from hookq.store.keys import PREFIX, SCRIPTS, host_of

# The slowest disk we wait for: the longest body then has 3.5 s instead of 1 s.
SLOW_DISK_BYTES_S: Final = 10 << 20

# Clocks that differ by less are taken for one; an answer may have been on its way for as long.
CLOCKS_AGREE_S: Final = 1.0
# Of the limit of a command: so much of it replicas may take, so that what they say comes in time.
REPLICAS_PART: Final = 0.9


class Intake:
    """accept() for an event loop: several batches under way on one connection, never blocking.

    redis-py sets the connection up (login, TLS, database); then its socket is ours. `start`
    connects in a thread and calls `wake` when that is over. Any failure ends the connection: what
    was under way is handed back by `failed` and may or may not have been done; a sender that
    repeats it is answered as a duplicate (R6).
    """

    # Two: while Redis syncs one batch, the next is gathered. More only makes the queue longer.
    MAX_UNDER_WAY: Final = 2

    def __init__(
        self, url: str, name: str, wake: Callable[[], None], limit_s: float = 1.0, replicas: int = 0
    ) -> None:
        """A batch counts as accepted when `replicas` replicas have it, too (`DURABILITY`)."""
        self.name, self.host, self.replicas = name, host_of(name), replicas
        self._wait = b""  # is sent behind each batch, and asks for them
        self._ids: list[str] | None = None  # of the batch of which that is still to be answered
        self._said: Mapping[str, Any] | None = {
            "pid": os.getpid(),
            "up_s": 0,
            "connections": 0,
            "spooled": 0,
        }
        self._hears_by = float("inf")  # until when an answer to the last `say` must be here
        self.ahead_s = 0.0  # of Redis' clock before ours
        self._client = connect(url, limit_s, name)
        self._wake, self.limit_s = wake, limit_s
        self._link: Any = None
        self._made: Any = None
        self._out = memoryview(b"")
        self._batches: list[tuple[float, Any]] = []
        self._starting = False
        self.sock: Any = None
        self.why = ""  # of the last failure

    @property
    def up(self) -> bool:
        return self.sock is not None

    @property
    def busy(self) -> bool:
        return len(self._batches) >= self.MAX_UNDER_WAY or bool(self._out)

    @property
    def under_way(self) -> int:
        return len(self._batches)

    def start(self) -> None:
        """Connect in the background, unless that is going on or done."""
        if not (self._starting or self._made or self.up):
            self._starting = True
            try:
                threading.Thread(target=self._connect, daemon=True).start()
            except RuntimeError as error:  # no thread can be had now
                self._starting, self.why = False, str(error)

    def _connect(self) -> None:
        link = None
        try:
            with reaching():
                link = self._client.connection_pool.make_connection()
                link.connect()
                # An empty batch is refused just as a full one would be: out of memory, read-only,
                # disk error.
                link.send_packed_command([accept_packed([]), self._say_packed()])
                for _ in range(3):
                    link.read_response()
                self._told(link.read_response())
                if self.replicas:
                    self._wait = self._how_to_wait(link)
                link._sock.setblocking(False)
            self._made = link
        except Exception as error:  # whatever it is: the loop must hear of it, and try again
            self.why = str(error) if isinstance(error, Away) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(Exception):
                link.disconnect() if link else None
        finally:
            self._starting = False
            self._wake()

    def adopt(self) -> bool:
        """Take the connection that start() has made; True when there is a new one."""
        link, self._made = self._made, None
        if link is None:
            return False
        self._link, self.sock, self._reader, self._out = (
            link,
            link._sock,
            hiredis.Reader(),
            memoryview(b""),
        )
        return True

    def submit(
        self,
        batch: Sequence[tuple[Delivery, int]],
        flush: tuple[str, Mapping[str, int]] | None,
        token: Any,
    ) -> None:
        """Send a batch; `received` gives `token` back with the ids. `flush` is a unique id, and
        counters to raise.
        """
        packed = accept_packed(batch, flush) + self._wait
        # A large body takes its time to be sent and synced, and is not to be given up for its size.
        begins = max(
            [time.monotonic(), *(deadline - self.limit_s for deadline, _ in self._batches)]
        )
        self._batches.append((begins + self.limit_s + len(packed) / SLOW_DISK_BYTES_S, token))
        self._send(packed)

    def say(self, facts: Mapping[str, Any] | None) -> None:
        """Tell the pages of all hosts that this process lives, None that it ends; when it connects,
        it says the last again.
        """
        self._said = facts
        if (
            self.up and not self._out and self._hears_by == float("inf")
        ):  # one at a time: who does not hear it, is not told more
            # Behind what is under way, and what that waits for.
            self._hears_by = (
                max([time.monotonic(), *(deadline for deadline, _ in self._batches)]) + self.limit_s
            )
            self._send(self._say_packed())

    def _say_packed(self) -> bytes:
        """Return here.lua as it is sent. It writes, so that replicas have something to confirm."""
        words: tuple[Any, ...] = (
            "EVAL",
            SCRIPTS["here"][1],
            "1",
            PREFIX,
            self.host,
            self.name,
            json.dumps(self._said) if self._said is not None else "",
        )
        return bytes(hiredis.pack_command(words))

    def _told(self, redis_now: bytes) -> None:
        self._hears_by = float("inf")
        ahead_s = float(redis_now) - time.time()
        self.ahead_s = ahead_s if abs(ahead_s) > CLOCKS_AGREE_S else 0.0

    def _how_to_wait(self, link: Any) -> bytes:
        """Return what asks for replicas here: their disks where the server knows how (Redis 7.2),
        else their memory.
        """
        for words in (("WAITAOF", "0"), ("WAIT",)):
            packed = bytes(
                hiredis.pack_command(
                    (*words, str(self.replicas), str(int(1000 * self.limit_s * REPLICAS_PART)))
                )
            )
            link.send_packed_command([packed])
            try:
                self._confirm(link.read_response())
                break
            except redis.ResponseError as error:
                if words == ("WAIT",) or "unknown command" not in str(error).lower():
                    raise
        return packed

    def _confirm(self, reply: Any) -> None:
        """Raise unless enough replicas have what was sent before."""
        count = reply[1] if isinstance(reply, list) else reply
        if count < self.replicas:
            where = "on their disks" if isinstance(reply, list) else "in memory"
            raise redis.ResponseError(
                f"{count} replicas have it {where} in time, and DURABILITY asks for {self.replicas}"
            )

    def _send(self, packed: bytes) -> None:
        self._out = memoryview(bytes(self._out) + packed if self._out else packed)
        self.flush()

    def flush(self) -> None:
        """Send what is left; `wants_write` says whether there is more."""
        with reaching():
            try:
                self._out = self._out[self.sock.send(self._out) :]  # a view: nothing is copied
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    def received(self) -> Iterator[tuple[Any, list[str]]]:
        """Yield (token, ids) of each batch that is durable by now; then raise Away if there is no
        going on.
        """
        with reaching():
            try:
                while data := self.sock.recv(65536):
                    self._reader.feed(data)
                    if len(data) < 65536 and not isinstance(self.sock, ssl.SSLSocket):
                        break
                else:
                    raise ConnectionResetError("Redis closed the connection")
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, Exception):
                    raise redis.ResponseError(str(reply))
                if self._ids is not None:
                    self._confirm(reply)
                elif not isinstance(reply, list):
                    if reply not in (b"OK", b"QUEUED"):
                        self._told(reply)
                    continue
                else:
                    self._ids = accepted(reply)
                    if self._wait:
                        continue
                ids, self._ids = self._ids, None
                _, token = self._batches.pop(0)
                yield token, ids

    def overdue(self, now: float) -> bool:
        """Tell whether a batch, or a heartbeat, has waited longer than the limit of a command
        (R7).
        """
        return now > min([self._hears_by, *(deadline for deadline, _ in self._batches[:1])])

    def failed(self, why: str) -> list[Any]:
        """Give the connection up; return the tokens that were under way."""
        tokens, self.why = [token for _, token in self._batches], why
        self._batches.clear()
        self._ids, self._hears_by = None, float("inf")
        with contextlib.suppress(Exception):
            self._link.disconnect()
        self._link = self.sock = None
        return tokens

    def wait(self, seconds: float) -> None:
        """Block until the connection has something to say; for tests and the start of a drain."""
        select.select([self.sock], [], [], seconds)
