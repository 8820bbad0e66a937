"""Load: many slow, idle and large senders at once. Good traffic is answered, memory stays within
the limits, and the surplus is told so.

FIRE=1 makes 1,000 slow connections, 2,000 connects, 2,000 bodies of 1 MB and 50 of 25 MB; without
it a fifth of each.
"""

import os
import resource
import selectors
import socket
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from conftest import ask, request, signed, until
from test_faults import hammer, more
from test_webhookd import GOOD

FIRE = bool(os.environ.get("FIRE"))
MANY = 1 if FIRE else 5
MB = 1 << 20


@pytest.fixture(autouse=True)
def files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory_mb(program, name="VmHWM"):
    """Return the most that the process ever held (VmHWM), or what it holds now (VmRSS)."""
    lines = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{program.process.pid}/status").read_text().splitlines()
    )
    return int(lines[name].split()[0]) / 1024


class Sender:
    """One connection that sends `parts` as fast as it is let, and keeps what it is answered."""

    def __init__(self, port, *parts):
        self.left, self.answer, self.over = [memoryview(part) for part in parts], b"", False
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", port))

    def turn(self, mask):
        try:
            if mask & selectors.EVENT_WRITE and self.left:
                self.left[0] = self.left[0][self.sock.send(self.left[0]) :]
                self.left = self.left if self.left[0] else self.left[1:]
            if mask & selectors.EVENT_READ:
                self.hear()
        except BlockingIOError:
            pass
        except OSError as error:  # refused or reset: what had been said before still counts
            with suppress(OSError):
                self.hear()
            self.over, self.answer = True, self.answer or repr(error).encode()

    def hear(self):
        data = self.sock.recv(65536)
        self.answer += data
        self.over = not data or b"\r\n\r\n" in self.answer

    @property
    def code(self):
        return (
            self.answer[9:12].decode()
            if self.answer.startswith(b"HTTP/1.1 ")
            else self.answer.decode("latin-1")[:60] or "nothing"
        )


def all_answered(senders, limit_s=120):
    """Let all of them send at once; return how many got which answer."""
    end = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for sender in senders:
            selector.register(sender.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, sender)
        while selector.get_map():
            assert time.monotonic() < end, Counter(s.code for s in senders)
            for entry, mask in selector.select(1):
                sender = entry.data
                sender.turn(mask)
                if sender.over:
                    selector.unregister(sender.sock)
                    sender.sock.close()
                elif not sender.left and mask & selectors.EVENT_WRITE:
                    selector.modify(sender.sock, selectors.EVENT_READ, sender)
    return Counter(sender.code for sender in senders)


def large(size, n):
    """Return head and body of a signed delivery of `size` bytes; the body is made once."""
    head = request(b"", headers=dict(signed(BODIES[size], delivery_id=f"large-{size}-{n}")))
    return head.replace(b"Content-Length: 0", b"Content-Length: %d" % size), BODIES[size]


BODIES = {size: b"x" * size for size in (MB, 25 * MB)}


def test_slow_and_idle_connections_delay_no_good_traffic_R7(serve):
    program, port = serve()
    before, began = memory_mb(program), time.monotonic()
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
            for _ in range(1000 // MANY)
        ]
        slow, data = crowd[::2], request()
        with hammer(port) as codes:
            for byte in range(40):
                for sock in slow:
                    with suppress(OSError):  # it has had its time here, and is told so below
                        sock.send(data[byte : byte + 1])
                more(codes, 10)
        assert Counter(codes) == {202: len(codes)}
        for sock in slow:
            sock.settimeout(30)
            assert sock.recv(100).startswith(b"HTTP/1.1 408 ")
        ended = time.monotonic() - began
    assert ended < 30 and memory_mb(program) - before < 32
    print(
        f"{len(crowd)} slow or idle: {len(codes)} good answers, the slow ended after {ended:.0f} s, {memory_mb(program) - before:.0f} MB more"
    )


def test_burst_of_connects_is_answered_to_the_last(serve):
    _, port = serve()
    began = time.monotonic()
    found = all_answered([Sender(port, request()) for _ in range(2000 // MANY)])
    assert found == {"202": 2000 // MANY}
    print(f"{2000 // MANY} connects answered in {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize(
    ("size", "count"), [(MB, 2000 // MANY), (25 * MB, 50 // MANY)], ids=["1 MB", "25 MB"]
)
def test_large_bodies_at_once_stay_within_max_held(serve, size, count):
    program, port = serve(MAX_HELD=f"{256 // MANY}mb", MAX_BODY="25mb")
    requests = [
        large(size, n) for n in range(count)
    ]  # before anybody connects: whoever says nothing for a second may go
    with hammer(port) as codes:
        found = all_answered([Sender(port, *parts) for parts in requests])
        more(codes, 10)
    assert set(found) == {"202", "503"} and found["202"] >= 1, found
    assert Counter(codes) == {202: len(codes)}, Counter(codes)
    held = memory_mb(program)
    assert held < 60 + 1.5 * 256 / MANY
    until(lambda: ask(port, request())[0] == GOOD)
    print(
        f"{count} of {size // MB} MB: {dict(found)}, good traffic {len(codes)} times 202, at most {held:.0f} MB"
    )
