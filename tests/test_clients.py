"""A connection's life, state by state: every event in every state, on real sockets, against the
drawing of hookq/ingest/connection.py.
"""

import functools
import socket
import struct
import time

import pytest
from conftest import SECRET, request

from hookq.ingest import connection
from hookq.ingest.clients import Clients
from hookq.ingest.connection import (
    ANSWER,
    BODY,
    CLOSED,
    COMMIT,
    EVENTS,
    HEAD,
    IDLE,
    LIMIT_S,
    LINGER,
    Connection,
)
from hookq.ingest.poll import Poll
from hookq.ingest.routes import Deliver, Refusal, refusal, route
from hookq.ingest.tally import Tally
from hookq.schemes import SCHEMES
from hookq.signing import Verifier
from hookq.sources import Source

PAGE = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
WHOLE = request(b"12345")
LARGE = 8 << 20  # more than any socket takes at once
STATES = (IDLE, HEAD, BODY, COMMIT, ANSWER, LINGER)


class Life:
    """One sender and its connection. `moves` are the changes of state that were seen."""

    def __init__(self, refuses=None):
        self.poll = Poll(lambda: None)
        github = Source("github", Verifier(SCHEMES["github"], (SECRET.encode(),)))
        deliveries = {"github": Deliver(github)}
        pages = {"/": lambda: (200, b"here"), "/large": lambda: (200, bytes(LARGE))}
        self.clients = Clients(
            self.poll,
            Tally(lambda: "an-id", ()),
            1 << 20,
            functools.partial(route, deliveries, pages, 1 << 20),
            lambda *_: refuses,
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sender = socket.create_connection(listener.getsockname(), 10)
            ours, _ = listener.accept()
        ours.setblocking(False)
        self.moves = []
        self.c = Connection(ours, "192.0.2.1", time.monotonic())
        self.clients.add(self.c)

    def send(self, data):
        self.sender.sendall(data)
        return self.turn()

    def turn(self):
        self.poll.turn(0.05)
        self.clients.turn()
        return self.c.state

    def read(self):
        """Read what the sender was answered, to the end or until nothing more comes."""
        self.sender.settimeout(0.05)
        data = b""
        try:
            while more := self.sender.recv(1 << 20):
                data += more
                self.turn()
        except TimeoutError:
            pass
        return data

    def close(self):
        self.clients.close(self.c)
        self.sender.close()
        self.poll.close()


@pytest.fixture
def live(monkeypatch):
    """live(state) returns a Life that has come to that state."""
    lives, moves = [], []
    enter = Connection.enter

    def noted(self, state, now):
        moves.append((getattr(self, "state", None), state))
        enter(self, state, now)

    monkeypatch.setattr(Connection, "enter", noted)

    def start(state=HEAD, refuses=None):
        life = Life(refuses)
        life.moves = moves
        lives.append(life)
        if state == IDLE:
            life.send(PAGE % b"")
            life.read()
        elif state == HEAD:
            life.send(WHOLE[:20])
        elif state == BODY:
            life.send(WHOLE[:-1])
        elif state == COMMIT:
            life.send(WHOLE)
        elif state == ANSWER:
            life.send(PAGE % b"large")
        elif state == LINGER:
            life.send(b"nonsense\r\n\r\n")
        assert life.c.state == state
        return life

    yield start
    for life in lives:
        life.close()


def sends(life):
    life.send(b"G" if life.c.state in (IDLE, COMMIT, ANSWER, LINGER) else b"")


def half_closes(life):
    life.sender.shutdown(socket.SHUT_WR)
    life.turn()


def vanishes(life):
    life.sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    life.sender.close()
    life.turn()


def is_late(life):
    life.clients.sweep(life.c.deadline + 1 if life.c.deadline < 1e300 else time.monotonic())
    life.turn()


NEXT = {
    sends: {IDLE: HEAD},
    half_closes: {IDLE: CLOSED, HEAD: CLOSED, BODY: CLOSED, LINGER: CLOSED},
    vanishes: dict.fromkeys(STATES, CLOSED),
    is_late: {IDLE: CLOSED, HEAD: LINGER, BODY: LINGER, ANSWER: CLOSED, LINGER: CLOSED},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", NEXT, ids=lambda event: event.__name__)
def test_event_leads_where_the_drawing_says(live, state, event):
    life = live(state)
    event(life)
    assert life.c.state == NEXT[event].get(state, state)


@pytest.mark.parametrize("state", STATES)
def test_deadline_is_that_of_the_state(live, state):
    life = live(state)
    assert life.c.deadline == pytest.approx(time.monotonic() + LIMIT_S[state], abs=5)


@pytest.mark.parametrize("state", [HEAD, BODY])
def test_request_that_is_late_is_told_408(live, state):
    life = live(state)
    is_late(life)
    assert life.read().startswith(b"HTTP/1.1 408 ")


def test_quiet_connection_that_is_late_is_told_nothing(live):
    life = live(IDLE)
    is_late(life)
    assert life.read() == b""


def test_kept_connection_gets_its_time_for_a_head_with_the_first_byte(live):
    life = live(IDLE)
    before = life.c.deadline
    life.send(b"P")
    assert life.c.deadline < before - LIMIT_S[IDLE] + LIMIT_S[HEAD] + 5


def test_answer_that_is_read_leads_on_to_what_came_behind_it(live):
    life = live(ANSWER)
    life.send(PAGE % b"")
    assert life.read().count(b"HTTP/1.1 200 OK") == 2 and life.c.state == IDLE


def test_commit_is_answered_and_the_next_request_goes_on(live):
    life = live(COMMIT)
    life.send(PAGE % b"")
    assert life.c.state == COMMIT and life.read() == b""
    life.clients.durable(life.c, 202, b"{}")
    assert life.read().startswith(b"HTTP/1.1 202 ") and life.c.state == IDLE


def test_sender_that_half_closes_is_answered_before_the_end(live):
    life = live(COMMIT)
    half_closes(life)
    life.clients.durable(life.c, 202, b"{}")
    assert life.read().startswith(b"HTTP/1.1 202 ") and life.c.state == CLOSED


def test_failed_commit_is_answered_503_and_the_connection_is_kept(live):
    life = live(COMMIT)
    life.clients.failed(life.c, refusal("overloaded", "no room"))
    answer = life.read()
    assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 5" in answer
    assert life.c.state == IDLE


def test_request_whose_signature_does_not_hold_keeps_the_connection(live):
    life = live(HEAD, refusal("signature", "no secret made it"))
    life.send(WHOLE[20:])
    assert life.read().startswith(b"HTTP/1.1 401 ") and life.c.state == IDLE


def test_drain_hurries_quiet_connections_and_no_others(live):
    lives = [live(state) for state in STATES]
    before = {life.c.state: life.c.deadline for life in lives}
    for life in lives:
        life.clients.drain(time.monotonic())
    hurried = {life.c.state for life in lives if life.c.deadline < before[life.c.state]}
    assert hurried == {IDLE}


def test_every_move_is_in_the_drawing_and_every_arrow_is_gone(live):
    for state in STATES:
        for event in NEXT:
            event(live(state))
    for behind in (b"", PAGE % b"", b"nonsense\r\n\r\n"):
        answered = live(ANSWER)
        answered.send(behind) if behind else None
        answered.read()
    closing = live(IDLE)
    closing.send((PAGE % b"large").replace(b"a\r\n\r\n", b"a\r\nConnection: close\r\n\r\n"))
    closing.read()
    live(BODY).send(WHOLE[-1:])
    live(BODY, Refusal("signature", "no", 401)).send(WHOLE[-1:])
    for answer in (b"{}", bytes(LARGE)):
        life = live(COMMIT)
        life.clients.durable(life.c, 202, answer)
    arrows = {(state, to) for (state, _), to in EVENTS.items()}
    ends = {(state, CLOSED) for state in STATES} | {(None, HEAD)}
    # A state that would last no time is not entered: two arrows are one move then.
    short = {(a, c) for a, b in arrows for b2, c in arrows if b == b2 and b in (BODY, ANSWER)}
    rare = {(BODY, ANSWER)}  # a refusal that the socket does not take at once
    assert (arrows | ends) - rare <= set(answered.moves) <= arrows | ends | short


def test_drawing_names_every_state():
    drawing = connection.__doc__
    assert all(state.upper() in drawing for state in (*STATES, CLOSED))
