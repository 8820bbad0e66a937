"""What a delivery costs, for docs/scaling.md: CPU of each process, bytes on disk and between
servers, with and without a replica.

    .venv/bin/python bench/scaling.py      about a minute; needs wrk (`make bench-quick` brings it)

CPU per job carries over to other machines far better than jobs a second do: what a second can hold
is worked out from it.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

import ingestion
import rig
import working
from rig import Redis, Row

SECONDS, JOBS = 5, 60_000


def file_bytes(db: Redis) -> int:
    return sum(path.stat().st_size for path in (db.folder / "appendonlydir").iterdir())


@contextlib.contextmanager
def servers(replicas: int) -> Iterator[tuple[Redis, list[Redis]]]:
    """Run a primary and replicas of it, each synced to disk before it answers."""
    with contextlib.ExitStack() as stack:
        port = rig.free_port()
        primary = stack.enter_context(Redis("--port", str(port)))
        behind = [
            stack.enter_context(Redis("--replicaof", "127.0.0.1", str(port)))
            for _ in range(replicas)
        ]
        rig.wait(lambda: primary.client.info("replication").get("connected_slaves") == replicas)
        rig.wait(
            lambda: all(
                db.client.info("replication").get("master_link_status") == "up" for db in behind
            )
        )
        os.environ["DURABILITY"] = f"replicas:{replicas}" if replicas else "fsync"
        yield primary, behind


def taken_in(processes: int, replicas: int) -> Row:
    """Return what taking a delivery in costs: 32 connections as fast as they can."""
    with servers(replicas) as (primary, behind):
        before, bytes_before = sum(rig.cpu_s(db.process.pid) for db in behind), file_bytes(primary)
        taken_before = ingestion.durable(ingestion.OURS, primary)
        row = ingestion.closed_loop(ingestion.OURS, SECONDS, processes=processes, db=primary)
        taken = ingestion.durable(ingestion.OURS, primary) - taken_before
        row["replica_us"] = 1e6 * (sum(rig.cpu_s(db.process.pid) for db in behind) - before) / taken
        row["disk"] = (file_bytes(primary) - bytes_before) / taken
        row["network"] = (
            primary.client.info("replication")["master_repl_offset"] / taken if replicas else 0.0
        )
    return row


def worked_on(workers: int) -> Row:
    """Return what a job costs from ready to done, with a handler that parses it."""
    with servers(0) as (primary, _), contextlib.ExitStack() as stack:
        working.fill(primary, JOBS)
        done, bytes_before = working.counter(working.OURS, primary), file_bytes(primary)
        env = ingestion.env(primary, 1)
        pids = [
            stack.enter_context(rig.program([sys.executable, "worker.py"], env, primary.log))
            for _ in range(workers)
        ]
        rig.wait(lambda: done() > JOBS / 10, 60)
        first, began = done(), time.perf_counter()
        used, of_redis = sum(map(rig.cpu_s, pids)), rig.cpu_s(primary.process.pid)
        rig.wait(lambda: done() >= JOBS, 60)
        each = 1e6 / (JOBS - first)
        return {
            "per_s": (JOBS - first) / (time.perf_counter() - began),
            "cpu_us": (sum(map(rig.cpu_s, pids)) - used) * each,
            "redis_us": (rig.cpu_s(primary.process.pid) - of_redis) * each,
            "disk": (file_bytes(primary) - bytes_before) / JOBS,
        }


HEAD = (
    "bodies of 5.6 KB",
    "a second, here",
    "CPU of ours, µs",
    "of Redis, µs",
    "of a replica, µs",
    "bytes on disk",
    "to a replica",
)


def told(what: str, row: Row) -> None:
    numbers = (
        row.get(name, 0.0)
        for name in ("per_s", "cpu_us", "redis_us", "replica_us", "disk", "network")
    )
    print(f"| {what} | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |", flush=True)


def main() -> None:
    print("| " + " | ".join(HEAD) + " |\n|---" + "|--:" * (len(HEAD) - 1) + "|")
    for processes, replicas in ((1, 0), (2, 0), (1, 1), (2, 1)):
        told(
            f"taken in, ingestion processes: {processes}, replicas waited for: {replicas}",
            taken_in(processes, replicas),
        )
    for workers in (1, 2):
        told(f"worked on, workers: {workers}", worked_on(workers))


if __name__ == "__main__":
    main()
