"""The guard of the hot paths: CPU per request and per job, as a ratio to a fixed small workload of
the same thread and run.

No time is measured, and nothing depends on who gets the processor when. The client is the server's
own thread: between two turns it sends 32 requests, and counts none of its own CPU. So each turn has
the same work in every run, whatever else the machine does. What remains is the processor's own
speed, which the workload beside it feels too: it does what the hot paths do (hashing, parsing,
small objects, system calls) and never changes.
"""

import dataclasses
import hashlib
import hmac
import json
import os
import platform
import re
import select
import socket
import sys
import time
from xml.etree import ElementTree

import pytest
from conftest import GITHUB, ROOT, SECRET, free_port

from hookq import log, wire
from hookq.arrival import Arrival
from hookq.ingest import loop
from hookq.ingest.loop import Loop
from hookq.job import Delivery, JobIds
from hookq.settings import load as load_settings
from hookq.signing import verify
from hookq.store.keys import key
from hookq.work import loop as working

sys.path.insert(0, str(ROOT / "bench"))
import load  # noqa: E402
import report  # noqa: E402

# In units of the workload, of Python 3.11 on x86-64; over 14 runs, idle and beside other work, they
# were 2.40 to 3.06 and 4.53 to 5.44. A third more is beyond the limit. Whoever makes one less
# lowers its number; who must raise it says why.
REQUEST, JOB, LIMIT = 2.6, 4.8, 1.2
AT_ONCE, EACH, SAMPLES, WARM = (
    32,
    8,
    24,
    4,
)  # requests of a turn, turns of a sample, samples, of which the first do not count

BODY = load.body()
HEAD = load.fields(load.signature(SECRET.encode(), BODY), len(BODY), "0000-1")


def workload(pair, rounds):
    """Do a fixed piece of work `rounds` times; return its CPU in seconds."""
    left, right = pair
    started = time.thread_time()
    for _ in range(rounds):
        left.send(BODY)
        select.select([right], [], [], 1)
        body = right.recv(65536)
        hmac.compare_digest(hmac.new(b"a", body, hashlib.sha256).hexdigest(), "a")
        fields = {}
        for line in HEAD.decode("latin-1").split("\r\n"):
            name, colon, value = line.partition(":")
            if colon and name.isascii():
                fields[name.strip().lower()] = value.strip(" \t")
        json.dumps(fields)
    return time.thread_time() - started


class Lockstep:
    """What Loop.run asks in every turn, and the client: 32 requests, all of their answers, the
    next 32.
    """

    reload = False

    def __init__(self, port, pair):
        self.clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(AT_ONCE)]
        self.pair, self.over, self.turns, self.used = pair, False, 0, 0.0
        self.rows, self.unanswered, self.resumed = [], 0, time.thread_time()
        for client in self.clients:
            client.setblocking(False)

    @property
    def stop(self):
        self.used += time.thread_time() - self.resumed
        if not self.over:
            self.exchange()
        self.resumed = time.thread_time()
        return self.over

    def exchange(self):
        for client in self.clients if self.unanswered else []:
            try:
                assert client.recv(4096).startswith(b"HTTP/1.1 202 ")
                self.unanswered -= 1
            except BlockingIOError:
                pass
        if self.unanswered:
            return
        self.turns += 1
        if self.turns % EACH == 0:
            self.rows.append(
                (
                    self.used / (AT_ONCE * EACH),
                    workload(self.pair, AT_ONCE * EACH) / (AT_ONCE * EACH),
                )
            )
            self.used, self.over = 0.0, len(self.rows) == SAMPLES
        if not self.over:
            self.unanswered = AT_ONCE
            for client, request in zip(
                self.clients, load.requests(SECRET.encode(), BODY, AT_ONCE), strict=True
            ):
                client.sendall(request)

    def close(self):
        for client in self.clients:
            client.close()


def ratio(rows):
    """Return the least of ours over the least of the workload: what else goes on can only add to
    either.
    """
    ours, fixed = zip(*rows[WARM:], strict=True)
    return min(ours) / min(fixed)


@pytest.fixture
def pair():
    made = socket.socketpair()
    yield made
    for one in made:
        one.close()


@pytest.fixture
def settings(redis_server, store, tmp_path, monkeypatch):
    """The settings of both programs; their log lines are made as always, and written to nowhere."""
    monkeypatch.undo()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    monkeypatch.setattr(log, "_out", nowhere)
    env = {
        "WEBHOOK_SECRET": SECRET,
        "REDIS_URL": redis_server.url,
        "STATE_DIR": str(tmp_path),
    }
    yield load_settings(environ=env, root=tmp_path)
    os.close(nowhere)


def least(measure, limit):
    """Return the ratio, measured again while it is beyond the limit: whatever else the machine
    does can only add to it, so five times beyond it is no accident.
    """
    found = measure()
    for _ in range(4):
        found = found if found < limit else min(found, measure())
    return found


def request_ratio(settings, pair):
    settings = dataclasses.replace(settings, port=free_port())
    server = Loop(settings)
    lockstep = Lockstep(settings.port, pair)
    try:
        server.run(lockstep)
    finally:
        lockstep.close()
        server.journal.intake.failed("the test is over")
        server.door.listener.server_close()
        server.poll.close()
    return ratio(lockstep.rows)


def job_ratio(settings, store, pair):
    ids, made, rows = JobIds(3), AT_ONCE * EACH, []
    one = working.Worker(settings, "w1", type("Asked", (), {"stop": False, "reload": False}))
    one._load()
    for _ in range(SAMPLES):
        now = time.time()
        fresh = [
            Delivery(ids.make(now), "github", f"d{n}-{now}", "push", now, HEAD, BODY)
            for n in range(made)
        ]
        store.accept([(delivery, 600) for delivery in fresh])
        done, started = one.progress.done, time.thread_time()
        while one.progress.done - done < made:
            one._work(one._lease())
        rows.append(((time.thread_time() - started) / made, workload(pair, made) / made))
    one.marker.close()
    one.store.close()
    return ratio(rows)


NUMBERS = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64",
    reason="the numbers are those of Python 3.11 on x86-64",
)


@NUMBERS
def test_request_costs_no_more_than_it_did(settings, pair):
    found = least(lambda: request_ratio(settings, pair), REQUEST * LIMIT)
    assert found < REQUEST * LIMIT, (
        f"a request costs {found:.2f} of the workload; {REQUEST} was measured"
    )


@NUMBERS
def test_job_costs_no_more_than_it_did(settings, store, pair):
    found = least(lambda: job_ratio(settings, store, pair), JOB * LIMIT)
    assert found < JOB * LIMIT, f"a job costs {found:.2f} of the workload; {JOB} was measured"
    assert int(store.redis.hget(key("ledger"), "done")) % (SAMPLES * AT_ONCE * EACH) == 0


@NUMBERS
def test_request_that_costs_a_third_more_is_found(settings, pair, monkeypatch):
    verify = loop.verify

    def slower(*args):
        workload(pair, round(REQUEST / 3))
        return verify(*args)

    monkeypatch.setattr(loop, "verify", slower)
    assert request_ratio(settings, pair) > REQUEST * LIMIT


@NUMBERS
def test_job_that_costs_a_third_more_is_found(settings, store, pair, monkeypatch):
    attempt = working.attempt

    def slower(*args):
        workload(pair, round(JOB / 3))
        return attempt(*args)

    monkeypatch.setattr(working, "attempt", slower)
    assert job_ratio(settings, store, pair) > JOB * LIMIT


# ---------------- the bench itself


def test_load_makes_requests_that_are_verified():
    requests = load.requests(SECRET.encode(), BODY, 2)
    heads = [wire.parse_head(one[: wire.head_end(one)]) for one in requests]
    found = [
        verify(GITHUB, Arrival("github", head.head, head.fields, head.query, BODY, 0.0), "id")
        for head in heads
    ]
    assert [type(one) for one in found] == [Delivery, Delivery] and found[0].delivery_id != found[
        1
    ].delivery_id
    assert [head.length for head in heads] == [len(BODY)] * 2 and abs(
        len(BODY) - load.BODY_BYTES
    ) < 150
    assert json.loads(BODY)["ref"] == "refs/heads/main"


@pytest.mark.parametrize(
    ("line", "met"),
    [
        (report.Line("a", 50.0, "b", 101.0, 0.49, 0.5), True),
        (report.Line("a", 51.0, "b", 101.0, 0.51, 0.5), False),
        (report.Line("a", 9.0, "b", 4.0, 2.2, 2.0, above=True), True),
        (report.Line("a", 36.0, limit=35.0), False),
        (report.Line("a", 36.0), None),
    ],
)
def test_table_says_whether_a_target_is_met(line, met):
    assert line.met is met
    assert line.markdown().endswith({True: "| met |", False: "| **not met** |", None: "|  |"}[met])
    assert line.markdown().count("|") == report.HEAD.splitlines()[1].count("|")


def test_chart_is_well_formed_and_says_its_numbers():
    tree = ElementTree.fromstring(
        report.chart([("CPU <µs>", [("webhookd", 50.0), ("a & b", 1234.0)])])
    )
    assert "CPU <µs>: webhookd 50.0, a & b 1,234" in "".join(tree.itertext())
    assert len([bar for bar in tree.iter() if bar.get("class") in ("ours", "other")]) == 2


def test_peers_are_pinned_and_say_what_they_do_not_do():
    folder = ROOT / "bench/peers"
    wanted = [
        line
        for line in (folder / "requirements.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z]+(\[redis\])?==[0-9.]+", line) for line in wanted)
    assert all(
        re.fullmatch(r"[0-9.]+", one)
        for one in json.loads((folder / "package.json").read_text())["dependencies"].values()
    )
    for path in [*folder.glob("*.js"), *folder.glob("*_app.py"), folder / "stock.py"]:
        assert "does not do" in path.read_text(), path
