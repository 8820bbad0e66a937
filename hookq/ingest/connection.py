"""One sender's connection: its states, how long each may last, and what is watched meanwhile.

                    first byte             head complete           body complete, verified
           ┌─▶ IDLE ──────────▶ HEAD ────────────────────▶ BODY ────────────────────▶ COMMIT
    accept │                     ▲ │                        │                           │
     ──────┼─────────────────────┘ │ refused, or a page     │ refused, or 408           │ durable,
           │                       ▼                        ▼                           ▼ or 503
           │ sent, and it is kept  ANSWER ◀─────────────────┴───────────────────────────┘
           └─────────────────────────┤
                                     └─ sent, and it was the last ──▶ LINGER ──▶ CLOSED

A new connection starts in HEAD: whoever connects has something to say. Bytes that came ahead of an
answer lead from ANSWER to HEAD at once. Every state but CLOSED ends in CLOSED when the sender is
gone, and on its deadline; a request that has begun is told so first (408), unless it is complete.

The end of the sender's own direction (`half_closed`) is no end: what it sent is still answered.
`last` says that the answer to come is the last one of this connection. A state that would last no
time is not entered: where a body came with its head, and where an answer goes out at once.

If you change this drawing, also change EVENTS below (tests/test_clients.py walks both).
"""

import socket
from typing import Final

from hookq import wire
from hookq.sources import Source
from hookq.wire import Request

IDLE, HEAD, BODY, COMMIT = "idle", "head", "body", "commit"
ANSWER, LINGER, CLOSED = "answer", "linger", "closed"

FOREVER: Final = float("inf")
# Absolute: a sender that sends a byte a second would otherwise hold its place for ever (R7).
LIMIT_S: Final = {
    IDLE: wire.IDLE_S,
    HEAD: wire.HEAD_S,
    BODY: wire.BODY_S,
    COMMIT: FOREVER,  # the limit of the Redis command holds here
    ANSWER: wire.WRITE_S,
    LINGER: wire.LINGER_S,
    CLOSED: FOREVER,
}
READING: Final = (HEAD, BODY)  # the sender's turn: nothing of a request is complete
READ_AHEAD: Final = 64 * 1024  # bytes of requests that wait for the answer to the one before

# What leads where. `answered`: an answer of any kind was begun; `sent`: all of it is out.
EVENTS: Final = {
    (IDLE, "bytes"): HEAD,
    (HEAD, "head"): BODY,
    (HEAD, "answered"): ANSWER,
    (BODY, "verified"): COMMIT,
    (BODY, "answered"): ANSWER,
    (COMMIT, "answered"): ANSWER,
    (ANSWER, "sent"): IDLE,
    (ANSWER, "sent, more is here"): HEAD,
    (ANSWER, "sent, the last"): LINGER,
}


class Connection:
    """One sender. `asked` is its request and the source it is for, from the end of a head to its
    answer; the body starts at `start` of the buffer and has `length` bytes. `since` is when it was
    accepted, last answered, or began its request; `held` are the bytes of its body that are here,
    `wasted` those that were thrown away while it lingers.
    """

    __slots__ = (
        "asked",
        "buffer",
        "deadline",
        "events",
        "half_closed",
        "held",
        "last",
        "length",
        "out",
        "peer",
        "since",
        "sock",
        "start",
        "state",
        "wasted",
    )

    def __init__(self, sock: socket.socket, peer: str, now: float) -> None:
        self.sock, self.peer = sock, peer
        self.buffer: bytes | bytearray = b""
        self.out = b""
        self.asked: tuple[Request, Source] | None = None
        self.start = self.length = self.held = self.wasted = 0
        self.last = self.half_closed = False
        self.events = 0  # that are watched now
        self.since = now
        self.enter(HEAD, now)

    def enter(self, state: str, now: float) -> None:
        """Be in `state` from `now` on. Only a drain sets a deadline, too: it shortens some."""
        self.state = state
        self.deadline = now + LIMIT_S[state]

    @property
    def quiet(self) -> bool:
        """Nothing of a request is here, and nothing of an answer."""
        return self.state == IDLE or (self.state == HEAD and not self.buffer)
