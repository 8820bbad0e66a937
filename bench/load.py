"""A cheap load client: `load.py PORT SECRET CONNECTIONS SECONDS` posts unique signed deliveries over keep-alive connections.

One thread on selectors, requests made beforehand, answers only looked at for their code. Prints one JSON object:
requests, seconds, codes, p50_ms, p99_ms. Loopback only.
"""

import hashlib
import hmac
import json
import selectors
import socket
import sys
import time
import uuid

BODY_BYTES = 5600  # a usual GitHub push


def body(number: int) -> bytes:
    head = b'{"ref":"refs/heads/main","after":"%040d","commits":[' % number
    commit = b'{"id":"0123456789abcdef","message":"a commit","author":{"name":"octocat","email":"o@example.com"}},'
    return head + commit * ((BODY_BYTES - len(head)) // len(commit)) + b"{}]}"


def request(secret: bytes, number: int) -> bytes:
    content = body(number)
    signature = hmac.new(secret, content, hashlib.sha256).hexdigest()
    head = (
        "POST /api/webhooks/github HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: {uuid.uuid4()}\r\n"
        f"X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def main() -> None:
    port, secret, connections, seconds = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3]), float(sys.argv[4])
    most = int(seconds * 15_000)
    requests = iter([request(secret, number) for number in range(most)])
    selector, codes, times = selectors.DefaultSelector(), {}, []
    sent_at = {}
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ)
        sent_at[sock] = time.perf_counter()
        sock.sendall(next(requests))
    started = time.perf_counter()
    open_, stop = connections, False
    while open_:
        now = time.perf_counter()
        stop = stop or now - started > seconds
        for key, _ in selector.select(5):
            sock = key.fileobj
            answer = sock.recv(65536)
            now = time.perf_counter()
            times.append(now - sent_at[sock])
            code = answer[9:12].decode() or "closed"
            codes[code] = codes.get(code, 0) + 1
            following = None if stop or code == "closed" else next(requests, None)
            if following is None:
                selector.unregister(sock)
                sock.close()
                open_ -= 1
            else:
                sent_at[sock] = now
                sock.sendall(following)
    took = time.perf_counter() - started
    times.sort()
    p50, p99 = (1000 * times[int(len(times) * q)] for q in (0.5, 0.99))
    print(json.dumps({"requests": len(times), "seconds": took, "codes": codes, "p50_ms": p50, "p99_ms": p99}))


if __name__ == "__main__":
    main()
