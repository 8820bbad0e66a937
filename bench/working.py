"""Working, measured: one worker process of webhookd and of each peer, on jobs that wait in a Redis
of its own.

The handler parses the body and counts. What is measured begins when the first tenth is done, so
that starting up is no part of it.
"""

import contextlib
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import ingestion
import load
import rig
from rig import PEERS, SECRET, Redis, Row

from hookq.job import Delivery, JobIds
from hookq.store.client import Client
from hookq.store.keys import key

WEEK = 604_800
IDS = JobIds(1)


@dataclass(frozen=True)
class Worker:
    """One that works on jobs. `variants` are settings of its concurrency, of which the best is
    taken.
    """

    name: str
    command: Callable[[Redis, str], list[str]]
    fill: Callable[[Redis, int], list[str]] | None = None
    variants: tuple[str, ...] = ("1",)
    needs: tuple[str, ...] = ()
    share: float = 1.0  # of the jobs that webhookd gets: a slow one would take minutes
    lacks: str = ""


PYTHON = str(PEERS / "venv/bin/python")


def _python(file: str, *, threads: bool = False) -> Callable[[Redis, str], list[str]]:
    return lambda db, variant: [
        PYTHON,
        f"bench/peers/{file}",
        "work",
        db.path,
        *([variant] if threads else []),
    ]


def _fill(*command: str) -> Callable[[Redis, int], list[str]]:
    return lambda db, jobs: [*command, "fill", db.path, str(jobs), str(db.body)]


def _dramatiq(_db: Redis, variant: str) -> list[str]:
    command = [str(PEERS / "venv/bin/dramatiq"), "dramatiq_app", "--path", "bench/peers"]
    return [*command, "--processes", "1", "--threads", variant, "--skip-logging"]


def _bullmq(db: Redis, variant: str) -> list[str]:
    return ["node", "bench/peers/bullmq.js", "work", db.path, variant]


OURS = Worker("webhookd", lambda _db, _variant: [sys.executable, "worker.py"])
RQ_FILL, RQ_NEEDS = _fill(PYTHON, "bench/peers/rq_app.py"), ("venv/bin/rq",)
RQ_WORK = _python("rq_app.py", threads=True)
BULLMQ = Worker(
    "BullMQ",
    _bullmq,
    _fill("node", "bench/peers/bullmq.js"),
    ("1", "10", "50", "100", "200"),
    ("node_modules/bullmq",),
    0.6,
    "no history of what it removed; several jobs at once in one process",
)
RQ = Worker(
    "RQ",
    RQ_WORK,
    RQ_FILL,
    ("fork",),
    RQ_NEEDS,
    0.015,
    "a fork for each job, as its documents advise",
)
RQ_SIMPLE = Worker(
    "RQ SimpleWorker", RQ_WORK, RQ_FILL, ("simple",), RQ_NEEDS, 0.05, "runs jobs in its process"
)
CELERY = Worker(
    "Celery",
    _python("celery_app.py"),
    _fill(PYTHON, "bench/peers/celery_app.py"),
    needs=("venv/bin/celery",),
    share=0.1,
    lacks="acknowledges before the work: a worker that dies loses the job; no history",
)
DRAMATIQ = Worker(
    "Dramatiq",
    _dramatiq,
    _fill(PYTHON, "bench/peers/dramatiq_app.py"),
    ("8", "16"),
    ("venv/bin/dramatiq",),
    0.25,
    "no history",
)
HUEY = Worker(
    "Huey",
    _python("huey_app.py", threads=True),
    _fill(PYTHON, "bench/peers/huey_app.py"),
    ("1", "4"),
    ("venv/bin/huey_consumer",),
    0.25,
    "pops before the work: a worker that dies loses the job; no history",
)
PEER_WORKERS = (BULLMQ, RQ, RQ_SIMPLE, CELERY, DRAMATIQ, HUEY)


def delivery(size: int = load.BODY_BYTES) -> tuple[bytes, bytes]:
    """Return head and body of a delivery, as GitHub sends it."""
    body = load.body(size)
    return load.fields(load.signature(SECRET.encode(), body), len(body), str(uuid.uuid4())), body


def fill(db: Redis, jobs: int, size: int = load.BODY_BYTES) -> None:
    """Make ready jobs of webhookd."""
    store = Client(db.url, "fill")
    head, body = delivery(size)
    for start in range(0, jobs, 500):
        now = time.time()
        ids = [IDS.make(now) for _ in range(min(500, jobs - start))]
        rig.accept(
            store,
            [
                (Delivery(id, "github", str(uuid.uuid4()), "push", now, head, body, 0, 1), WEEK)
                for id in ids
            ],
        )
    store.close()


def work(worker: Worker, jobs: int, variant: str = "", db: Redis | None = None) -> Row:
    """Return jobs/s, CPU per job and the memory of one worker process; `db` has the jobs already,
    if it is given.
    """
    variant = variant or worker.variants[0]
    jobs = max(20, int(jobs * worker.share))
    with contextlib.ExitStack() as stack:
        base = db or stack.enter_context(Redis())
        if worker.fill:
            rig.run(worker.fill(base, jobs), ingestion.env(base, 1))
        elif db is None:
            fill(base, jobs)
        done = counter(worker, base)
        before = done()
        pid = stack.enter_context(
            rig.program(worker.command(base, variant), ingestion.env(base, 1), base.log)
        )
        rig.wait(lambda: done() - before >= jobs / 10, 60)
        first, used, started = done(), rig.cpu_s(pid), time.perf_counter()
        rig.wait(lambda: done() - before >= jobs, 60)
        last, took, used = done(), time.perf_counter() - started, rig.cpu_s(pid) - used
        memory = rig.memory_mb(pid)
    return {"per_s": (last - first) / took, "cpu_us": 1e6 * used / (last - first)} | memory


def counter(worker: Worker, db: Redis) -> Callable[[], int]:
    """Return what tells how many jobs are done: settled, of webhookd; handled, of the others."""
    if worker is OURS:
        return lambda: int(db.client.hget(key("ledger"), "done") or 0)
    db.reset_count()
    return db.counted


def best_variant(worker: Worker, jobs: int) -> str:
    """Return the setting with which a short run was fastest."""
    if len(worker.variants) == 1:
        return worker.variants[0]
    return max(worker.variants, key=lambda variant: work(worker, jobs, variant)["per_s"])
