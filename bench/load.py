"""A small open-loop client: `load.py PORT SECRET RATE SECONDS` posts unique signed deliveries at a
fixed rate.

The rate does not wait for answers, and each time is counted from the moment the request was due: a
server that falls behind is seen to (a closed loop, as wrk's, would just ask less). One thread,
keep-alive connections, as many as are needed up to 256. Prints one JSON object: requests, refused,
p50 and p99 in ms. Loopback only, at most 60 s.
"""

import hashlib
import hmac
import json
import select
import socket
import sys
import time
import uuid
from collections import deque

BODY_BYTES = 5600  # a usual GitHub push
MAX_CONNECTIONS = 256


def body(size: int = BODY_BYTES, number: int = 0) -> bytes:
    head = b'{"ref":"refs/heads/main","after":"%040d","commits":[' % number
    commit = (
        b'{"id":"0123456789abcdef","message":"a '
        b'commit","author":{"name":"octocat","email":"o@example.com"}},'
    )
    return head + commit * ((size - len(head)) // len(commit)) + b"{}]}"


def signature(secret: bytes, content: bytes) -> str:
    return hmac.new(secret, content, hashlib.sha256).hexdigest()


def fields(signed: str, length: int, delivery_id: str) -> bytes:
    """Return the head fields of a delivery, as GitHub sends them."""
    return (
        "Host: localhost\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nAccept: */*\r\n"
        "Content-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: "
        f"{delivery_id}\r\n"
        f"X-Hub-Signature-256: sha256={signed}\r\nContent-Length: {length}\r\n"
    ).encode()


def requests(secret: bytes, content: bytes, count: int) -> list[bytes]:
    """Return whole requests, each with a delivery id of its own; the id is not signed."""
    signed = signature(secret, content)
    head = b"POST /api/webhooks/github HTTP/1.1\r\n"
    return [
        head + fields(signed, len(content), str(uuid.uuid4())) + b"\r\n" + content
        for _ in range(count)
    ]


def complete(answer: bytes) -> bool:
    """Tell whether an answer with a Content-Length is all there."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    return bool(end) and len(body) >= int(length or 0)


class Client:
    """The connections of one run; `free` are those without a request under way."""

    def __init__(self, port: int) -> None:
        self.port, self.free = port, deque[socket.socket]()
        self.due: dict[socket.socket, float] = {}
        self.parts: dict[socket.socket, bytes] = {}  # of answers that come in pieces
        self.times: list[float] = []
        self.refused = 0

    def send(self, request: bytes, due: float) -> bool:
        """Send it on a connection that is free; False when all of them are busy."""
        if not self.free:
            if len(self.due) >= MAX_CONNECTIONS:
                return False
            sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.free.append(sock)
        sock = self.free.pop()
        self.due[sock] = due
        sock.sendall(request)
        return True

    def receive(self, wait_s: float) -> None:
        # select, not epoll: its limit counts microseconds, and most rates leave less than a
        # millisecond.
        for sock in select.select(list(self.due), [], [], max(0.0, wait_s))[0]:
            data = sock.recv(65536)
            answer = self.parts.pop(sock, b"") + data
            if data and not complete(answer):
                self.parts[sock] = answer
                continue
            self.times.append(time.perf_counter() - self.due.pop(sock))
            if data and answer[9:12] == b"202":
                self.free.append(sock)
            else:
                self.refused += 1
                sock.close()

    def run(self, made: list[bytes], rate: float) -> None:
        waiting, started, at = deque[bytes](made), time.perf_counter(), 0
        while (waiting or self.due) and time.perf_counter() - started < 60:
            due = started + at / rate
            while waiting and due <= time.perf_counter() and self.send(waiting[0], due):
                waiting.popleft()
                at += 1
                due = started + at / rate
            self.receive(
                due - time.perf_counter() if waiting and len(self.due) < MAX_CONNECTIONS else 1.0
            )


def main() -> None:
    port, secret, rate, seconds = (
        int(sys.argv[1]),
        sys.argv[2].encode(),
        float(sys.argv[3]),
        min(60.0, float(sys.argv[4])),
    )
    client = Client(port)
    client.run(requests(secret, body(), int(rate * seconds)), rate)
    times = sorted(client.times[len(client.times) // 10 :])  # the first tenth is for connecting
    p50, p99 = (1000 * times[int(len(times) * q)] for q in (0.5, 0.99))
    print(
        json.dumps(
            {"requests": len(client.times), "refused": client.refused, "p50": p50, "p99": p99}
        )
    )


if __name__ == "__main__":
    main()
