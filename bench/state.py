"""What a system holds, measured: bytes in Redis per job, the way from socket to handler, and a
large system beside an empty one.
"""

import random
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import ingestion
import load
import rig
import working
from rig import SECRET, Redis, Row, Void

from hookq.store.jobs import Jobs
from hookq.store.records import Settled

TIMED = """import os, time

OUT = os.open({path!r}, os.O_WRONLY)


def handle(delivery):
    os.write(OUT, b"%d\\n" % time.monotonic_ns())
"""
SMALL = 1000  # bytes of a body in the large system


def bytes_per_job(jobs: int) -> Row:
    """Return what a ready job and a finished one cost in Redis, and the size of the delivery.

    The finished one is measured between two rounds: by then the history has its full length.
    """
    with Redis() as db:
        empty = db.used()
        working.fill(db, jobs)
        ready = (db.used() - empty) / jobs
        _finish(db, jobs)
        once = db.used()
        working.fill(db, jobs)
        _finish(db, jobs)
        return {
            "size": sum(map(len, working.delivery())),
            "ready": ready,
            "done": (db.used() - once) / jobs,
        }


def _finish(db: Redis, jobs: int) -> None:
    done = working.counter(working.OURS, db)
    until = done() + jobs
    with rig.program(working.OURS.command(db, "1"), ingestion.env(db, 1), db.log):
        rig.wait(lambda: done() >= until, 120)


def to_handler(deliveries: int) -> Row:
    """Return p50 and p99 of the time from the first byte sent to the first line of the handler, on
    an idle system.
    """
    with Redis() as db:
        env, started = ingestion.env(db, 1), db.folder / "started"
        started.touch()
        (db.folder / "h.py").write_text(TIMED.format(path=str(started)))
        port = rig.free_port()
        env["PORT"] = str(port)
        ours, theirs = ingestion.OURS.command(port, db), working.OURS.command(db, "1")
        with rig.program(ours, env, db.log), rig.program(theirs, env, db.log):
            rig.wait(lambda: rig.answers(port))
            took = list(_deliver(port, started, deliveries + 5))[
                5:
            ]  # the first few find it starting
    took.sort()
    return {"p50": statistics.median(took), "p99": took[int(len(took) * 0.99)]}


def _deliver(port: int, started: Path, count: int) -> Iterator[float]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, request in enumerate(load.requests(SECRET.encode(), load.body(), count)):
            sent = time.monotonic_ns()
            sock.sendall(request)
            answer = sock.recv(65536)
            while not load.complete(answer):
                answer += sock.recv(65536)
            if answer[9:12] != b"202":
                raise Void("a delivery was not answered 202")
            rig.wait(lambda: started.read_bytes().count(b"\n") > number, every_s=0.002)  # noqa: B023
            yield (int(started.read_text().split()[number]) - sent) / 1e6
            time.sleep(random.uniform(0.01, 0.03))


def bury(db: Redis, count: int) -> None:
    """Make dead letters of 20 causes."""
    store = Jobs(db.url, "fill")
    facts = {"attempt": 8, "of": 8, "error": "ValueError: no price in order"}
    for start in range(0, count, 500):
        working.fill(db, min(500, count - start), SMALL)
        leases = store.lease({"github": 500}, 100)
        causes = [f"ValueError in orders.py:{number % 20} handle" for number in range(len(leases))]
        store.settle(
            [
                Settled(lease, "dead", facts, 0.0, "max_attempts", cause)
                for lease, cause in zip(leases, causes, strict=True)
            ]
        )
    store.close()


def prepare(db: Redis, ready: int, dead: int) -> float:
    """Fill a system; return the bytes of a ready job. It is not synced while it is filled: nothing
    is measured then.
    """
    db.client.config_set("appendfsync", "no")
    bury(db, dead)
    before = db.used()
    working.fill(db, ready, SMALL)
    each = (db.used() - before) / ready
    db.client.config_set("appendfsync", "always")
    db.client.incr("synced")  # all of it is on disk when this is answered
    return each


def ingest_on(db: Redis, seconds: int) -> Row:
    return ingestion.closed_loop(ingestion.OURS, seconds, db=db)


def work_on(db: Redis, jobs: int, *, empty: bool) -> Row:
    """Return a worker's row on this system; the empty one gets just the jobs it works on, and keeps
    nothing.
    """
    if empty:
        db.client.flushall()
        working.fill(db, int(1.3 * jobs), SMALL)
    row = working.work(working.OURS, jobs, db=db)
    if empty:
        db.client.flushall()
    return row
