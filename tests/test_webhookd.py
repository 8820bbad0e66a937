"""Ingestion from outside: bytes into a real process, exact answers out; and what it does when Redis
is in trouble.
"""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from types import SimpleNamespace

import pytest
from conftest import (
    ROOT,
    SECRET,
    Client,
    Store,
    ask,
    fill,
    free_port,
    is_ready,
    request,
    signed,
    until,
)

from hookq import daemon
from hookq.ingest import door, loop
from hookq.ingest.clients import READ
from hookq.ingest.connection import BODY, HEAD, IDLE, LIMIT_S, READ_AHEAD
from hookq.ingest.loop import Loop
from hookq.ingest.spool import Spool, SpoolFailed
from hookq.ingest.tally import EVERY_S, LINES_PER_S, Tally
from hookq.settings import load
from hookq.store.connection import Away
from hookq.store.keys import key

GOOD = "HTTP/1.1 202 Accepted"
SOURCES = '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\n'


@pytest.fixture
def port(serve):
    return serve()[1]


def bodies(store):
    return [lease.delivery.body for lease in store.lease({"github": 64}, 500)]


# ---------------- the main way


@pytest.mark.parametrize("way", ["whole", "byte by byte", "head and body apart"])
def test_signed_delivery_is_accepted_and_its_bytes_kept_R3(port, store, way):
    body = b'{"a":"\xff\x00"}'
    data = request(body)
    cut = data.index(b"\r\n\r\n") + 4
    pieces = {"whole": [data], "byte by byte": [data[i : i + 1] for i in range(len(data))]}.get(
        way, [data[:cut], data[cut:]]
    )
    with Client(port) as client:
        for piece in pieces:
            client.send(piece)
        line, headers, answer = client.answer()
    assert line == GOOD and headers["content-type"] == "application/json"
    assert (
        set(json.loads(answer)) == {"status", "id", "reason"}
        and json.loads(answer)["status"] == "accepted"
    )
    assert bodies(store) == [body]


def test_garbage_after_a_delivery_is_refused_by_itself(port, store):
    with Client(port) as client:
        client.send(request() + b"\x00garbage")
        assert client.answer()[0] == GOOD
        assert client.answer()[0].startswith("HTTP/1.1 400")
        assert client.rest() == b""
    assert store.audit().accepted == 1


def test_pipelined_requests_are_answered_in_their_order(port, store):
    data = b"".join(
        request(b'{"n":%d}' % n) + b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" for n in range(20)
    )
    with Client(port) as client:
        client.send(data)
        lines = [client.answer()[0][9:12] for _ in range(40)]
    assert lines == ["202", "200"] * 20
    assert sorted(bodies(store)) == sorted(b'{"n":%d}' % n for n in range(20))


def test_same_delivery_again_is_a_duplicate_with_the_same_id_R6(port, store):
    data = request(
        headers={
            **signed(delivery_id="twice"),
            "X-Hub-Signature-256": signed()["X-Hub-Signature-256"],
        }
    )
    first, second = (json.loads(ask(port, data)[2]) for _ in range(2))
    assert (first["status"], second["status"]) == ("accepted", "duplicate") and first[
        "id"
    ] == second["id"]
    assert store.metrics().get("duplicates:github") == 1


def test_connection_ends_after_the_answer_when_the_sender_says_so(port):
    with Client(port) as client:
        line, headers, _ = client.send(
            request(headers={**signed(), "Connection": "close"})
        ).answer()
        assert line == GOOD and headers["connection"] == "close" and client.rest() == b""
    with Client(port) as client:
        line, headers, _ = client.send(b"GET / HTTP/1.0\r\n\r\n").answer()
        assert (
            line == "HTTP/1.1 200 OK" and headers["connection"] == "close" and client.rest() == b""
        )


def test_half_closed_sender_is_still_answered_for_everything(port):
    with Client(port) as client:
        client.send(request() + request())
        client.sock.shutdown(socket.SHUT_WR)
        assert [client.answer()[0] for _ in range(2)] == [GOOD, GOOD]
        assert client.rest() == b""


def test_expect_is_met_only_after_the_checks(port):
    data = request(b"x" * 100, headers={**signed(b"x" * 100), "Expect": "100-continue"})
    cut = data.index(b"\r\n\r\n") + 4
    with Client(port) as client:
        client.send(data[:cut])
        assert client.file.readline() + client.file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.send(data[cut:]).answer()[0] == GOOD
    for head in (
        b"Content-Length: 99999999999\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    ):
        line = ask(
            port,
            b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
            + head
            + b"\r\n",
        )[0]
        assert "100" not in line and line[9:12] in ("413", "400")


# ---------------- refusals


@pytest.mark.parametrize(
    ("data", "code", "reason"),
    [
        (request(headers={}), 401, "missing"),
        (request(headers={"X-Hub-Signature-256": "sha1=00"}), 401, "malformed"),
        (request(headers={"X-Hub-Signature-256": "sha256=" + "0" * 64}), 401, "signature"),
        (request(path="/api/webhooks/nosuch"), 404, "unknown_source"),
        (request(path="/api/webhooks/"), 404, "unknown_source"),
        (request(path="/api/webhooks/github/x"), 404, "unknown_source"),
        (request(path="/api/webhooks/..%2fgithub"), 404, "unknown_source"),
        (b"GET /api/webhooks/github HTTP/1.1\r\nHost: a\r\n\r\n", 405, "bad_request"),
        (
            b"PUT /api/webhooks/github HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            405,
            "bad_request",
        ),
        (b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\n\r\n", 411, "bad_request"),
        (
            b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            411,
            "bad_request",
        ),
        (
            b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            "bad_request",
        ),
        (
            b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
            413,
            "too_large",
        ),
        (
            b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\nContent-Length: "
            + b"9" * 30
            + b"\r\n\r\n",
            413,
            "too_large",
        ),
        (b"POST /api/webhooks/github HTTP/3.0\r\nHost: a\r\n\r\n", 505, "bad_request"),
        (b"POST /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431, "bad_request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "bad_request"),
    ],
)
def test_request_that_is_no_delivery_gets_its_code_and_reason(port, store, data, code, reason):
    line, _, body = ask(port, data)
    answer = json.loads(body)
    assert (int(line[9:12]), answer) == (code, {"status": "rejected", "id": None, "reason": reason})
    assert store.audit().accepted == 0


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 0\r\nContent-Length: 44\r\n",
        b"Content-Length: 44\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length : 44\r\n",
        b"X: a\rContent-Length: 44\r\n",
        b"X: a\nContent-Length: 44\r\n",
        b"X: \x00\r\nContent-Length: 44\r\n",
        b"X: a\r\n Content-Length: 44\r\n",
        b": a\r\nContent-Length: 44\r\n",
        b"Host: b\r\nContent-Length: 44\r\n",
        b"Content_Length: 44\r\nContent-Length: -1\r\n",
    ],
)
def test_smuggled_request_is_never_answered(port, store, lines):
    inner = b"GET /livez HTTP/1.1\r\nHost: a\r\nX: 0123456\r\n\r\n"
    with Client(port) as client:
        client.send(b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n" + inner)
        assert client.answer()[0].startswith("HTTP/1.1 400") and client.rest() == b""


def test_body_of_another_request_is_never_taken_for_the_next(port):
    inner = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    for start in (b"GET /livez", b"POST /api/webhooks/nosuch", b"POST /nothing"):
        with Client(port) as client:
            client.send(
                start + b" HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
            )
            client.answer()
            assert client.rest() == b""


def test_413_is_read_by_a_sender_that_is_still_sending(port):
    head = b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\nContent-Length: 900000000\r\n\r\n"
    for _ in range(50):
        with Client(port) as client:
            client.send(head)
            try:
                for _ in range(8):
                    client.send(b"x" * 65_536)
            except OSError:
                pass
            assert client.answer()[0].startswith("HTTP/1.1 413")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET /readyz?x HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"GET http://a/livez HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        (b"POST /livez HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    ],
)
def test_other_pages_have_their_codes(port, data, code):
    with Client(port) as client:
        line, _, body = (
            client.send(data).answer()
            if b"HEAD" not in data
            else (client.send(data).file.readline().decode(), {}, b"")
        )
    assert int(line[9:12]) == code and b"Traceback" not in body


def test_refusals_are_counted_exactly_and_logged_with_a_limit_R8(serve, store):
    program, port = serve()
    began = int(time.monotonic())
    with Client(port) as client:
        client.send(request(headers={}) * 100)
        assert {client.answer()[0][9:12] for _ in range(100)} == {"401"}
    seconds = int(time.monotonic()) - began + 1
    until(lambda: store.metrics().get("rejected:github:missing") == 100)
    assert 1 <= len(program.events("request.reject")) <= LINES_PER_S * seconds


def test_nothing_secret_is_logged(serve):
    program, port = serve()
    headers = {
        **signed(b"marked-body"),
        "Authorization": "Basic marked-auth",
        "Cookie": "marked-cookie",
    }
    ask(port, request(b"marked-body", headers=headers))
    ask(
        port,
        request(
            b"marked-body", headers={**headers, "X-Hub-Signature-256": "sha256=marked-signature"}
        ),
    )
    program.saw("request.reject")
    assert "marked" not in program.text and SECRET not in program.text


# ---------------- Redis in trouble


def spool_of(tmp_path):
    return Spool(tmp_path / "state" / "spool.db", 0)


def spooled(path):
    """Return how many deliveries a spool holds, or None while another process keeps it locked."""
    with suppress(SpoolFailed):
        return Spool(path, 0).size()[0]


def drained(store, tmp_path, **wanted):
    """Wait until the spool is empty and the audit says what is wanted."""
    path = tmp_path / "state" / "spool.db"
    until(
        lambda: spooled(path) == 0 and wanted.items() <= store.audit()._asdict().items(),
        what=store.audit(),
    )
    assert store.audit().gap == 0


def test_outage_of_redis_is_spooled_and_drained_R1(serve, private_redis, tmp_path):
    program, port = serve(redis=private_redis)
    assert ask(port, request())[0] == GOOD
    private_redis.stop()
    assert [ask(port, request())[0] for _ in range(5)] == [GOOD] * 5
    assert is_ready(port) and spool_of(tmp_path).size()[0] == 5
    private_redis.start()
    store = Store(private_redis.url, "probe")
    drained(store, tmp_path, accepted=6, ready=6)
    assert ask(port, request())[0] == GOOD and program.process.poll() is None
    assert [
        len(program.events(name)) for name in ("redis.away", "redis.up", "spool.begin", "spool.end")
    ] == [1, 2, 1, 1]
    store.close()


def test_drain_keeps_the_order_of_arrival_and_the_bytes_R3(serve, private_redis, tmp_path):
    _, port = serve(redis=private_redis)
    private_redis.stop()
    sent = [bytes(range(256)) * (n % 3) + str(n).encode() for n in range(150)]
    assert {ask(port, request(body))[0] for body in sent} == {GOOD}
    private_redis.start()
    store = Store(private_redis.url, "w1")
    drained(store, tmp_path, accepted=150)
    found = [lease.delivery.body for _ in range(3) for lease in store.lease({"github": 64}, 500)]
    assert found == sent
    store.close()


def test_frozen_redis_is_given_up_and_nothing_runs_twice_R6_R7(serve, private_redis, tmp_path):
    _, port = serve(redis=private_redis)
    data, started = request(headers=signed(delivery_id="once")), time.monotonic()
    private_redis.process.send_signal(signal.SIGSTOP)
    assert ask(port, data)[0] == GOOD
    assert 0.5 < time.monotonic() - started < 5
    assert spool_of(tmp_path).size()[0] == 1
    private_redis.process.send_signal(signal.SIGCONT)  # and now it reads what was sent to it before
    store = Store(private_redis.url, "probe")
    drained(store, tmp_path, accepted=1, ready=1)
    assert ask(port, data)[0][9:12] == "200"
    store.close()


def test_full_redis_goes_to_the_spool_until_there_is_room(serve, small_redis, tmp_path):
    _, port = serve(redis=small_redis)
    store = Store(small_redis.url, "probe")
    fill(store)
    assert ask(port, request())[0] == GOOD and spool_of(tmp_path).size()[0] == 1
    store.redis.config_set("maxmemory", "100mb")
    drained(store, tmp_path, accepted=1)
    store.close()


def test_full_spool_is_answered_503_and_recovers(serve, private_redis, tmp_path):
    program, port = serve(redis=private_redis, MAX_SPOOL=8_000)
    private_redis.stop()
    data = b"".join(request(b"x" * 1000) for _ in range(6))
    with Client(port) as client:  # in one turn: before the next, the spool is looked at again
        client.send(data + b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = [client.answer() for _ in range(7)]
    assert [line[9:12] for line, _, _ in answers] == ["202"] * 3 + ["503"] * 4
    assert answers[5][1]["retry-after"] and json.loads(answers[5][2])["reason"] == "overloaded"
    assert len(program.events("spool.failed")) == 1
    private_redis.start()
    store = Store(private_redis.url, "probe")
    drained(store, tmp_path, accepted=3)
    assert ask(port, request())[0] == GOOD and is_ready(port)
    store.close()


def test_killed_ingestion_leaves_its_spool_to_the_next(serve, private_redis, tmp_path):
    program, port = serve(redis=private_redis)
    private_redis.stop()
    assert ask(port, request())[0] == GOOD
    program.process.kill()
    program.process.wait()
    private_redis.start()
    store = Store(private_redis.url, "probe")
    serve(redis=private_redis)
    drained(store, tmp_path, accepted=1)
    store.close()


def test_two_processes_that_drain_one_spool_make_each_job_once_R6(serve, private_redis, tmp_path):
    ports = [serve(redis=private_redis)[1] for _ in range(2)]
    private_redis.stop()
    assert {ask(port, request(headers=signed(delivery_id="")))[0] for port in ports * 200} == {GOOD}
    private_redis.start()
    store = Store(private_redis.url, "probe")
    drained(store, tmp_path, accepted=400, ready=400)
    store.close()


def test_wiped_redis_goes_on_without_a_restart_and_without_a_refusal(
    serve, private_redis, tmp_path
):
    _, port = serve(redis=private_redis)
    store = Store(private_redis.url, "w1")
    store.redis.flushall()
    store.redis.script_flush()
    assert [ask(port, request())[0] for _ in range(2)] == [GOOD] * 2
    drained(store, tmp_path, accepted=2, ready=2)
    store.close()


# ---------------- limits, in a server of this process with short times


@pytest.fixture
def short(redis_server, store, monkeypatch, tmp_path):
    """Return start(**settings) → port of a Server in a thread, which looks at its deadlines
    often.
    """
    monkeypatch.setattr(loop, "SWEEP_S", 0.05)
    started = []

    class Asked:
        stop = reload = asked = False

    def start(**settings):
        port, asked = free_port(), Asked()
        env = {
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": redis_server.url,
            "PORT": str(port),
            "STATE_DIR": str(tmp_path),
            **settings,
        }
        server = Loop(load(environ=env, root=tmp_path))
        thread = threading.Thread(target=server.run, args=(asked,))
        thread.start()
        started.append((server, asked, thread))
        until(lambda: is_ready(port))
        return port, server

    yield start
    for server, asked, thread in started:
        asked.stop = asked.asked = True
        server.poll.wake()
        thread.join(30)
        assert not thread.is_alive() and server.clients.held == 0
        server.journal.intake.failed("the test is over")
        server.poll.close()


@pytest.fixture
def still(redis_server, tmp_path):
    """A server in this process that does not run."""
    env = {"WEBHOOK_SECRET": SECRET, "REDIS_URL": redis_server.url, "STATE_DIR": str(tmp_path)}
    server = Loop(load(environ={**env, "PORT": str(free_port())}, root=tmp_path))
    yield server
    server.door.listener.socket.close()
    server.poll.close()


def test_hup_during_a_stop_begins_no_check(still, monkeypatch):
    begun = []
    monkeypatch.setattr(daemon, "in_background", lambda *work: begun.append(work))
    still._obey(SimpleNamespace(stop=True, reload=True), time.monotonic())
    assert still.draining_since and not begun


def test_reload_without_a_thread_to_spare_is_no_end_of_reloads(still, monkeypatch):
    signals, refused = SimpleNamespace(stop=False, reload=True), RuntimeError("no thread")
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(refused))
    still._obey(signals, time.monotonic())
    monkeypatch.undo()
    assert not signals.reload and not still.checking


def test_client_that_goes_as_the_drain_begins_opens_no_door(still, monkeypatch):
    still.door.crowded = True
    monkeypatch.setattr(still, "_say", lambda _: still.door._on_close())
    still.reload = True
    still._obey(SimpleNamespace(stop=False, reload=False), time.monotonic())
    assert not still.door.is_open


def test_outage_makes_no_more_than_one_flush_and_loses_no_count():
    tally = Tally(lambda: "an-id", ())
    for now in range(1, 100):
        tally.answered("github", 202, 0.001)
        tally.flush(now * EVERY_S)
    assert len(tally.flushes) == 1
    _, first = tally.flushes.popleft()
    tally.flush(100 * EVERY_S)
    assert first["http:github:202"] + tally.flushes[0][1]["http:github:202"] == 99


@pytest.fixture
def hasty(monkeypatch):
    """The limits of time of a server whose tests wait for them: the others keep those they have."""
    for state in (HEAD, BODY, IDLE):
        monkeypatch.setitem(LIMIT_S, state, 1.0)


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"GET / HT", 408), (request()[:-1], 408), (b"", None)],
    ids=["half a head", "half a body", "nothing"],
)
def test_slow_sender_is_ended_at_an_absolute_time_R7(short, hasty, data, code):
    port, _ = short()
    with Client(port) as client:
        started, stop = time.monotonic(), threading.Event()

        def dribble():
            while not stop.wait(0.05):
                try:
                    client.sock.send(b"a" if data else b"")
                except OSError:
                    return

        client.send(data) if data else None
        thread = threading.Thread(target=dribble)
        if code == 408 and b"GET" in data:
            thread.start()
        if code:
            assert client.answer()[0].startswith(f"HTTP/1.1 {code}")
        else:
            assert client.rest() == b""
        assert time.monotonic() - started < 8
        stop.set()
        if thread.ident:
            thread.join()


def test_idle_connection_is_ended(short, hasty):
    port, _ = short()
    with Client(port) as client:
        assert client.send(request()).answer()[0] == GOOD
        assert client.rest() == b""


def test_bytes_over_max_held_are_refused_and_the_rest_goes_on(short):
    port, server = short(MAX_HELD="200kb")
    big = request(b"x" * 120_000)
    with Client(port) as holder:
        holder.send(big[:100_000])
        until(lambda: server.clients.held > 99_000)
        line, headers, body = ask(port, big)
        assert (
            line.startswith("HTTP/1.1 503")
            and headers["retry-after"]
            and json.loads(body)["reason"] == "overloaded"
        )
        assert ask(port, request())[0] == GOOD
        assert holder.send(big[100_000:]).answer()[0] == GOOD
    until(lambda: server.clients.held == 0)


def test_bodies_that_are_announced_and_not_sent_keep_nobody_out(serve):
    _, port = serve(MAX_HELD="200kb")
    begun = request(b"x", headers={"Content-Length": "180000"}).replace(
        b"Content-Length: 1\r\n", b""
    )
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(Client(port)).send(begun)
        assert ask(port, request(b"x" * 100_000))[0] == GOOD


def test_large_bodies_leave_room_for_those_of_the_usual_size(short):
    port, server = short(MAX_HELD="800kb")
    with ExitStack() as stack:
        first, second = (stack.enter_context(Client(port)) for _ in range(2))
        first.send(request(b"x" * 405_000)[:-1])
        until(lambda: server.clients.held > 404_000)
        assert second.send(request(b"x" * 405_000)[:-1]).answer()[0].startswith("HTTP/1.1 503")
        assert ask(port, request(b"x" * 15_000))[0] == GOOD


def test_idle_connections_make_room_for_a_good_request(short):
    port, server = short(MAX_CONNECTIONS="50")
    idle = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(50)]
    assert ask(port, request())[0] == GOOD
    assert len(server.clients.connections) <= 50
    for sock in idle:
        sock.close()


def test_half_sent_bodies_make_room_too_and_are_told_so(short, monkeypatch):
    monkeypatch.setattr(door, "EVICT_S", 0.1)
    monkeypatch.setattr(loop, "FIRST_REDIS_S", 0.0)
    port, server = short(MAX_CONNECTIONS="20")
    with ExitStack() as stack:
        slow = [
            stack.enter_context(Client(port)).send(request(b"x" * 2000)[:-1]) for _ in range(20)
        ]
        assert ask(port, request())[0] == GOOD
        line, headers, body = slow[0].answer()
        assert (
            line.startswith("HTTP/1.1 503")
            and headers["retry-after"]
            and json.loads(body)["reason"] == "overloaded"
        )
        assert len(server.clients.connections) <= 40


def test_read_ahead_of_a_sender_that_reads_no_answers_is_bounded(short):
    port, server = short()
    with Client(port) as client:
        client.sock.settimeout(0.3)
        sent = 0
        try:
            while sent < 50_000_000:
                sent += client.sock.send(
                    b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 2000
                )  # and read no answer
        except TimeoutError:
            pass
        assert all(len(c.buffer) <= READ_AHEAD + READ for c in list(server.clients.connections))
        assert sent < 50_000_000


# ---------------- signals and the start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_finishes_what_was_begun_and_ends(serve, store, number):
    program, port = serve()
    data = request()
    with Client(port) as client, Client(port) as idle:
        client.send(data[:-3])
        idle.send(b"")
        program.process.send_signal(number)
        program.saw("process.drain")
        line, headers, _ = client.send(data[-3:]).answer()
        assert line == GOOD and headers["connection"] == "close"
        assert program.process.wait(30) == 0
    assert store.audit().accepted == 1 and "Traceback" not in program.text


def test_hup_starts_anew_in_the_same_process_with_the_settings_of_now(serve, tmp_path):
    program, port = serve()
    pid = program.process.pid
    assert ask(port, request(path="/api/webhooks/later"))[0].startswith("HTTP/1.1 404")
    (tmp_path / "webhooks.toml").write_text(SOURCES + SOURCES.replace("github]", "later]"))
    program.process.send_signal(signal.SIGHUP)
    until(lambda: len(program.events("process.start")) == 2 and is_ready(port))
    assert ask(port, request(path="/api/webhooks/later"))[0] == GOOD
    assert program.process.poll() is None and program.process.pid == pid


def test_hup_with_wrong_settings_is_told_and_goes_on_with_the_old(serve, tmp_path):
    program, port = serve()
    (tmp_path / "webhooks.toml").write_text("[sources.github]\nscheme = 'nosuch'\n")
    program.process.send_signal(signal.SIGHUP)
    program.saw("settings.refused")
    assert ask(port, request())[0] == GOOD and len(program.events("process.start")) == 1


def test_hups_in_quick_succession_never_kill_it(serve):
    program, port = serve()
    for _ in range(10):
        before = len(program.events("process.start"))
        program.process.send_signal(signal.SIGHUP)
        program.process.send_signal(signal.SIGHUP)
        until(lambda seen=before: len(program.events("process.start")) > seen)
        program.process.send_signal(signal.SIGHUP)
    until(lambda: is_ready(port))
    assert program.process.poll() is None


def test_socket_on_fd_0_is_served_without_binding(redis_server, store, tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        env = {
            "PATH": os.environ["PATH"],
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": redis_server.url,
            "PORT": "1",
            "WEBHOOKS_FILE": "",
        }
        command = [sys.executable, str(ROOT / "webhookd.py")]
        with subprocess.Popen(
            command, stdin=listener, stdout=subprocess.DEVNULL, env=env, cwd=tmp_path
        ) as program:
            assert ask(listener.getsockname()[1], request())[0] == GOOD
            program.terminate()
            assert program.wait(30) == 0


def test_wrong_settings_end_with_78_and_every_mistake(running):
    program = running("webhookd.py", PORT="x", MAX_BODY="lots", WEBHOOK_SECRET="short")
    assert program.process.wait(30) == 78
    assert all(
        name in program.text
        for name in ("PORT is 'x'", "MAX_BODY is 'lots'", "WEBHOOK_SECRET is not acceptable")
    )
    assert "Traceback" not in program.text and "short" not in program.text.replace("shorter", "")


def test_taken_port_is_told_in_a_sentence(running):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        program = running("webhookd.py", PORT=taken.getsockname()[1])
        assert program.process.wait(30) == 1
    assert (
        re.search(r"cannot be listened on: Address already in use. Set HOST and PORT", program.text)
        and "Traceback" not in program.text
    )


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--check"], 0, "The settings are good"),
        (["--che"], 2, "unrecognized"),
        (["--send"], 69, "does not answer"),
    ],
)
def test_modes_of_the_command_say_what_is(running, args, code, said):
    program = running("webhookd.py", *args, PORT=free_port())
    assert program.process.wait(30) == code
    assert said in program.text and "Traceback" not in program.text


@pytest.mark.parametrize(("extra", "code", "said"), [([], 0, "done"), (["--fail"], 0, "not_json")])
def test_sample_is_followed_to_its_end(serve, running, extra, code, said):
    _, port = serve()
    running("worker.py").saw("process.start")
    program = running("webhookd.py", "--send", *extra, PORT=port)
    assert program.process.wait(60) == code
    assert "-->" in program.text and "<--" in program.text and said in program.text


def test_signals_that_came_before_the_handler_are_not_missed():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    saved = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        assert daemon.Signals().reload
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
        for number, handler in saved.items():
            signal.signal(number, handler)


def test_counters_stay_out_of_the_keyspace_of_strangers(port, store):
    # The path is the attacker's: a counter for each name in it would fill Redis.
    for n in range(20):
        ask(port, request(path=f"/api/webhooks/x{n}"))
    until(lambda: store.metrics().get("rejected:_unknown:unknown_source") == 20)
    assert not [name for name in store.redis.hkeys(key("metrics")) if b":x" in name]


# ---------------- what strangers and slow turns could do to everybody else


def test_sender_gone_before_its_next_request_harms_nobody(port, store):
    for _ in range(50):
        with Client(port) as client:
            client.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # close() resets
            client.send(
                request()
                + request(b"x" * 10, headers={**signed(b"x" * 10), "Expect": "100-continue"})[:-10]
            )
    assert ask(port, request())[0] == GOOD


def test_thousands_of_pipelined_requests_keep_nobody_waiting(port, store):
    many, one = 3000, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    with Client(port) as hog:
        threading.Thread(target=lambda: hog.sock.sendall(one * many), daemon=True).start()
        assert hog.answer()[0].endswith("200 OK")
        assert ask(port, request())[0] == GOOD
        for _ in range(many - 1):
            assert hog.answer()[0].endswith("200 OK")


def test_durable_batch_is_answered_although_the_next_fails_R1(short):
    port, server = short()
    received = server.journal.intake.received

    def then_refused():
        yield from received()
        raise Away("OOM command not allowed")

    server.journal.intake.received = then_refused
    assert ask(port, request())[0] == GOOD


def test_answer_of_redis_is_read_before_redis_is_given_up(short):
    port, server = short()
    overdue, asked = server.journal.intake.overdue, []

    def late(now):  # as if the turn had taken longer than the limit
        asked.append(bool(server.journal.intake.under_way))
        return server.journal.intake.under_way > 0 and overdue(now + 10)

    server.journal.intake.overdue = late
    with Client(port) as client:
        for _ in range(20):
            assert client.send(request()).answer()[0] == GOOD
    until(lambda: len(asked) > 3)


def test_connection_made_before_the_stop_is_answered(serve):
    program, port = serve()
    with Client(port) as waiting:
        until(lambda: waiting.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").answer()[0])
        program.process.send_signal(signal.SIGSTOP)
        with Client(port) as late:
            late.send(request())
            program.process.send_signal(signal.SIGTERM)
            program.process.send_signal(signal.SIGCONT)
            assert late.answer()[0] == GOOD
    assert program.process.wait(30) == 0


def test_head_gets_no_body_whatever_the_answer(port):
    for path in ("/", "/livez", "/api/webhooks/github", "/api/webhooks/nosuch", "/nothing"):
        with Client(port) as client:
            client.send(f"HEAD {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            assert b"\r\n\r\n" in (found := client.rest()) and found.endswith(b"\r\n\r\n"), path


def test_refusals_are_counted_for_the_source_they_were_meant_for_R8(port, store):
    ask(port, b"GET /api/webhooks/github HTTP/1.1\r\nHost: a\r\n\r\n")
    ask(port, b"POST /api/webhooks/github HTTP/1.1\r\nHost: a\r\n\r\n")
    wanted = {"rejected:github:bad_request": 2, "http:github:405": 1, "http:github:411": 1}
    until(lambda: wanted.items() <= store.metrics().items(), what=store.metrics())


def test_half_closed_sender_of_half_a_request_is_let_go_at_once(port):
    for half in (b"GET /li", request()[:-1]):
        with Client(port) as client:
            client.send(request() + half).sock.shutdown(socket.SHUT_WR)
            found = client.rest()  # a 408 comes to whoever is not let go
            assert found.startswith(b"HTTP/1.1 202") and found.count(b"HTTP/1.1 ") == 1


def test_counters_of_a_flush_whose_reply_was_lost_are_counted_once(serve, private_redis):
    program, port = serve(redis=private_redis)
    store = Store(private_redis.url, "probe")
    private_redis.process.send_signal(signal.SIGSTOP)
    for _ in range(7):
        assert ask(port, request(headers={}))[0].startswith("HTTP/1.1 401")
    program.saw("redis.away")
    private_redis.process.send_signal(signal.SIGCONT)
    until(lambda: store.metrics().get("rejected:github:missing", 0) >= 7)
    assert ask(port, request())[0] == GOOD and ask(port, request(headers={}))[0].startswith(
        "HTTP/1.1 401"
    )
    until(lambda: store.metrics()["rejected:github:missing"] == 8)
    store.close()


def test_reader_of_the_log_that_has_stopped_stops_nobody(redis_server, store, tmp_path):
    reader, writer = os.pipe()
    port = free_port()
    env = {
        "PATH": os.environ["PATH"],
        "WEBHOOK_SECRET": SECRET,
        "REDIS_URL": redis_server.url,
        "STATE_DIR": str(tmp_path),
        "PORT": str(port),
        "WEBHOOKS_FILE": "",
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "webhookd.py")],
        stdout=writer,
        stderr=writer,
        stdin=subprocess.DEVNULL,
        env=env,
        cwd=tmp_path,
    )
    os.close(writer)
    try:
        until(lambda: is_ready(port))
        data = request(headers=signed(delivery_id="again"))
        with Client(port) as client:  # each duplicate is a line: a pipe holds 64 KiB of them
            for _ in range(1000):
                assert client.send(data).answer()[0][9:12] in ("200", "202")
        until(lambda: store.metrics().get("log:info", 0) > 999)
    finally:
        process.terminate()
        process.wait(30)
        with os.fdopen(reader, "rb") as log:
            lines = log.read().splitlines()
    assert 10 < len(lines) < 1000 and all(json.loads(line) for line in lines)


def test_pipelined_deliveries_wait_for_no_turn_during_an_outage(serve, private_redis):
    _, port = serve(redis=private_redis)
    private_redis.stop()
    assert ask(port, request())[0] == GOOD
    with Client(port) as client:
        started = time.monotonic()
        client.send(b"".join(request() for _ in range(15)))
        assert [client.answer()[0] for _ in range(15)] == [GOOD] * 15
        assert time.monotonic() - started < 15 * loop.SWEEP_S / 2


def test_read_only_spool_is_drained_and_counted_once(serve, private_redis, tmp_path):
    program, port = serve(redis=private_redis)
    private_redis.stop()
    assert [ask(port, request())[0] for _ in range(5)] == [GOOD] * 5
    lock = sqlite3.connect(tmp_path / "state/spool.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    private_redis.start()
    store = Store(private_redis.url, "probe")
    until(lambda: store.audit().accepted == 5)
    program.saw("spool.failed")
    lock.execute("ROLLBACK")
    lock.close()
    drained(store, tmp_path, accepted=5, ready=5)
    until(lambda: store.metrics().get("spooled") == 5)
    assert len(program.events("spool.failed")) == 1 and not program.events("delivery.duplicate")
    store.close()


def test_client_is_named_anew_for_each_request_of_a_connection(serve):
    program, port = serve(TRUSTED_PROXIES="127.0.0.1")
    first = request(
        headers={"X-Hub-Signature-256": "sha256=" + 64 * "0", "X-Forwarded-For": "203.0.113.9"}
    )
    assert ask(port, first + b"nonsense\r\n\r\n")
    rejects = until(
        lambda: len(program.events("request.reject")) == 2 and program.events("request.reject")
    )
    assert [(line["code"], line["client"]) for line in rejects] == [
        (401, "203.0.113.9"),
        (400, "127.0.0.1"),
    ]
