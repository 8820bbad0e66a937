"""The connection of ingestion to Redis: batches are sent and answered without ever blocking.

redis-py sets the connection up (login, TLS, database), in a thread; then its socket belongs to the
event loop. Behind each batch travels the question whether enough replicas have it, where they are
asked for (`DURABILITY`). Every 2 s a heartbeat goes the same way, and its answer is Redis' time.

Promises: what a batch's reply reports is durable: on this Redis' disk, as far as it syncs before it
answers, and with as many replicas as are asked for. Each reply comes within a limit, or the
connection is given up (R7). Does not promise which of the batches under way were done when it
fails: a sender that repeats one is answered as a duplicate (R6).
"""

import contextlib
import functools
import json
import os
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
from hookq.store.format import NewerData, check_format
from hookq.store.keys import PREFIX, host_of
from hookq.store.scripts import SCRIPTS

# The slowest disk that is waited for: the longest body then has 3.5 s instead of 1 s.
SLOW_DISK_BYTES_S: Final = 10 << 20
# Clocks that differ by less are taken for one; an answer may have been on its way for as long.
CLOCKS_AGREE_S: Final = 1.0
# Replicas get this part of a command's limit, so that their answer still comes in time.
REPLICAS_PART: Final = 0.9
# Two: while Redis syncs one batch, the next is gathered. More only makes the queue longer.
MAX_UNDER_WAY: Final = 2
FOREVER: Final = float("inf")


class Heartbeat:
    """What this process publishes about itself, and the time that Redis answers with.

    One at a time: while an answer is missing, none is sent. `ahead_s` is Redis' clock minus ours.
    """

    def __init__(self, name: str) -> None:
        self.name, self.host = name, host_of(name)
        self.facts: Mapping[str, Any] | None = {
            "pid": os.getpid(),
            "up_s": 0,
            "connections": 0,
            "spooled": 0,
        }
        self.answer_by = FOREVER
        self.ahead_s = 0.0

    def packed(self) -> bytes:
        """Return it as it is sent. It writes, so that replicas have something to confirm."""
        facts = json.dumps(self.facts) if self.facts is not None else ""
        words: tuple[Any, ...] = (
            "EVAL",
            SCRIPTS["beat_ingestion"].text,
            "1",
            PREFIX,
            self.host,
            self.name,
            facts,
        )
        return bytes(hiredis.pack_command(words))

    def answered(self, redis_now: bytes) -> None:
        self.answer_by = FOREVER
        ahead_s = float(redis_now) - time.time()
        self.ahead_s = ahead_s if abs(ahead_s) > CLOCKS_AGREE_S else 0.0


class Replicas:
    """How many replicas must have a batch, and the command that asks for them."""

    def __init__(self, count: int, limit_s: float) -> None:
        self.count, self.limit_ms = count, str(int(1000 * limit_s * REPLICAS_PART))
        self.packed = b""  # is sent behind each batch; nothing where none are asked for

    def learn(self, link: Any) -> None:
        """Find out how to ask this server: for its replicas' disks where it can (Redis 7.2), else
        for their memory.
        """
        for words in (("WAITAOF", "0"), ("WAIT",)):
            packed = bytes(hiredis.pack_command((*words, str(self.count), self.limit_ms)))
            link.send_packed_command([packed])
            try:
                self.confirm(link.read_response())
                break
            except redis.ResponseError as error:
                if words == ("WAIT",) or "unknown command" not in str(error).lower():
                    raise
        self.packed = packed

    def confirm(self, reply: Any) -> None:
        """Raise unless enough replicas have what was sent before."""
        count = reply[1] if isinstance(reply, list) else reply
        if count < self.count:
            where = "on their disks" if isinstance(reply, list) else "in memory"
            why = f"{count} replicas have it {where} in time, and DURABILITY asks for {self.count}"
            raise redis.ResponseError(why)


class Intake:
    """Batches of deliveries to Redis, several under way on one connection.

    `start` connects in a thread and calls `wake` when that is over; `adopt` takes the connection.
    Any failure ends it: `failed` hands back what was under way, done or not.
    """

    def __init__(
        self,
        url: str,
        name: str,
        wake: Callable[[], None],
        limit_s: float = 1.0,
        replicas: int = 0,
    ) -> None:
        self.heartbeat = Heartbeat(name)
        self.replicas = Replicas(replicas, limit_s)
        self._client = connect(url, limit_s, name)
        self._wake, self.limit_s = wake, limit_s
        self._link: Any = None
        self._made: Any = None  # by `start`, and not adopted yet
        self._starting = False
        self._out = memoryview(b"")
        self._batches: list[tuple[float, Any]] = []  # when the reply must be here, and the token
        self._ids: list[str] | None = None  # of a batch that replicas have yet to confirm
        self.sock: Any = None
        self.why = ""  # of the last failure

    @property
    def up(self) -> bool:
        return self.sock is not None

    @property
    def busy(self) -> bool:
        return len(self._batches) >= MAX_UNDER_WAY or bool(self._out)

    @property
    def under_way(self) -> int:
        return len(self._batches)

    @property
    def ahead_s(self) -> float:
        return self.heartbeat.ahead_s

    # ---------------- the connection

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
                check_format(functools.partial(_ask, link))
                # An empty batch is refused as a full one is: no memory, read-only, disk error.
                link.send_packed_command([accept_packed([]), self.heartbeat.packed()])
                for _ in range(3):
                    link.read_response()
                self.heartbeat.answered(link.read_response())
                if self.replicas.count:
                    self.replicas.learn(link)
                link._sock.setblocking(False)
            self._made = link
        except Exception as error:  # whatever it is: the loop must hear of it, and try again
            known = isinstance(error, Away | NewerData)
            self.why = str(error) if known else f"{type(error).__name__}: {error}"
            with contextlib.suppress(Exception):
                link.disconnect() if link else None
        finally:
            self._starting = False
            self._wake()

    def adopt(self) -> bool:
        """Take the connection that `start` has made; True when there is a new one."""
        link, self._made = self._made, None
        if link is None:
            return False
        self._link, self.sock = link, link._sock
        self._reader, self._out = hiredis.Reader(), memoryview(b"")
        return True

    def failed(self, why: str) -> list[Any]:
        """Give the connection up; return the tokens that were under way."""
        tokens, self.why = [token for _, token in self._batches], why
        self._batches.clear()
        self._ids, self.heartbeat.answer_by = None, FOREVER
        with contextlib.suppress(Exception):
            self._link.disconnect()
        self._link = self.sock = None
        return tokens

    # ---------------- what is sent

    def submit(
        self,
        batch: Sequence[tuple[Delivery, int]],
        flush: tuple[str, Mapping[str, int]] | None,
        token: Any,
    ) -> None:
        """Send a batch; `received` gives `token` back with the ids. `flush` is a unique id, and
        counters to raise.
        """
        packed = accept_packed(batch, flush) + self.replicas.packed
        # A large body takes its time to be sent and synced, and is not given up for its size.
        self._batches.append((self._after_others() + len(packed) / SLOW_DISK_BYTES_S, token))
        self._send(packed)

    def say(self, facts: Mapping[str, Any] | None) -> None:
        """Publish a heartbeat, None to delete it. A new connection begins with the last one."""
        self.heartbeat.facts = facts
        if self.up and not self._out and self.heartbeat.answer_by == FOREVER:
            self.heartbeat.answer_by = self._after_others()
            self._send(self.heartbeat.packed())

    def _after_others(self) -> float:
        """Return by when an answer must be here that Redis gives behind those under way."""
        begins = [deadline - self.limit_s for deadline, _ in self._batches]
        return max([time.monotonic(), *begins]) + self.limit_s

    def _send(self, packed: bytes) -> None:
        self._out = memoryview(bytes(self._out) + packed if self._out else packed)
        self.flush()

    def flush(self) -> None:
        """Send what is left; `wants_write` tells whether there is more."""
        with reaching():
            try:
                self._out = self._out[self.sock.send(self._out) :]  # a view: nothing is copied
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    # ---------------- what is answered

    def received(self) -> Iterator[tuple[Any, list[str]]]:
        """Yield (token, ids) of each batch that is durable by now. Raises Away if the connection is
        of no more use.
        """
        with reaching():
            self._read()
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, Exception):
                    raise redis.ResponseError(str(reply))
                if self._ids is not None:
                    self.replicas.confirm(reply)
                elif isinstance(reply, list):
                    self._ids = accepted(reply)
                    if self.replicas.packed:
                        continue
                else:
                    if reply not in (b"OK", b"QUEUED"):
                        self.heartbeat.answered(reply)
                    continue
                ids, self._ids = self._ids, None
                _, token = self._batches.pop(0)
                yield token, ids

    def _read(self) -> None:
        try:
            while data := self.sock.recv(65536):
                self._reader.feed(data)
                if len(data) < 65536 and not isinstance(self.sock, ssl.SSLSocket):
                    break
            else:
                raise ConnectionResetError("Redis closed the connection")
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass

    def overdue(self, now: float) -> bool:
        """Tell whether a batch, or a heartbeat, has waited longer than the limit of a command."""
        batch_by = self._batches[0][0] if self._batches else FOREVER
        return now > min(self.heartbeat.answer_by, batch_by)


def _ask(link: Any, *words: Any) -> Any:
    """Send one command and return its reply."""
    link.send_command(*words)
    return link.read_response()
