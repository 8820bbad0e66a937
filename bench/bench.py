"""Measures one ingestion process and one worker, each beside a simpler one, in turn and in one run: read the ratios.

    bench.py [--quick]

Every answer is a 202 after an fsync (appendfsync always), for both servers. CPU is the kernel's count of the server
process alone; Redis and the load client share the machine. Loopback only, bounded in time, ends by itself.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import load

from hookq.job import Delivery, JobIds
from hookq.store import Away, Store

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a-secret-for-the-bench-only"
CONNECTIONS = 32
TICK = os.sysconf("SC_CLK_TCK")
HANDLER = "def handle(delivery):\n    delivery.json()\n"
SOURCES = '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = "h.py:handle"\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that the process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def wait(condition: object, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            sys.exit("The bench gave up: something did not get ready in time.")
        time.sleep(0.01)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Bench:
    """A folder and a Redis of its own, and the processes under test."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hb"))
        self.url = f"unix://{self.folder}/r.sock"
        (self.folder / "h.py").write_text(HANDLER)
        (self.folder / "webhooks.toml").write_text(SOURCES)
        fixed = ["--port", "0", "--unixsocket", f"{self.folder}/r.sock", "--dir", str(self.folder), "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", "always"]
        self.redis = subprocess.Popen(["redis-server", *fixed, *durable], stdout=subprocess.DEVNULL)
        self.store = Store(self.url, "bench")
        wait(self._pings)

    def _pings(self) -> bool:
        try:
            self.store.ping()
            return True
        except Away:
            return False

    def start(self, *command: str, port: int = 0) -> "subprocess.Popen[bytes]":
        env = {
            **os.environ,
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": self.url,
            "WEBHOOKS_FILE": f"{self.folder}/webhooks.toml",
            "PORT": str(port or 1),
        }
        with (self.folder / "log").open("ab") as out:
            return subprocess.Popen([sys.executable, *command], env=env, cwd=ROOT, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def close(self) -> None:
        self.redis.kill()
        self.redis.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def serve(bench: Bench, command: list[str], port: int, seconds: float) -> dict[str, float]:
    """Return requests/s, CPU per request and the times of the answers, of one server."""
    bench.store.redis.flushall()
    server = bench.start(*command, port=port)
    try:
        wait(lambda: answers(port))
        run = [sys.executable, str(ROOT / "bench/load.py"), str(port), SECRET, str(CONNECTIONS)]
        subprocess.run([*run, "0.3"], capture_output=True, check=True)
        before = cpu_s(server.pid)
        done = json.loads(subprocess.run([*run, str(seconds)], capture_output=True, check=True).stdout)
        used = cpu_s(server.pid) - before
    finally:
        server.terminate()
        server.wait(15)
    if set(done["codes"]) != {"202"}:
        sys.exit(f"The bench is void: not every answer was 202, but {done['codes']}.")
    return {
        "per_s": done["requests"] / done["seconds"],
        "cpu_us": 1e6 * used / done["requests"],
        "p50": done["p50_ms"],
        "p99": done["p99_ms"],
    }


def fill(bench: Bench, jobs: int, stream: str) -> None:
    bench.store.redis.flushall()
    ids, head = JobIds(1), b"Content-Type: application/json\r\n"
    for start in range(0, jobs, 500):
        made = [
            Delivery(ids.make(time.time()), "github", str(n), "push", time.time(), head, load.body(n)) for n in range(start, start + 500)
        ]
        if stream:
            pipe = bench.store.redis.pipeline(transaction=False)
            for delivery in made:
                pipe.xadd(stream, {"id": delivery.delivery_id, "body": delivery.body})
            pipe.execute()
        else:
            bench.store.accept([(delivery, 604_800) for delivery in made])


def work(bench: Bench, command: list[str], jobs: int, stream: str) -> dict[str, float]:
    """Return jobs/s and CPU per job of one worker on a filled stream, from its first settled job on."""
    fill(bench, jobs, stream)
    left = (lambda: bench.store.redis.xlen(stream)) if stream else (lambda: jobs - bench.store.audit()["done"])
    worker = bench.start(*command)
    try:
        wait(lambda: left() < jobs)
        started, used, first = time.perf_counter(), cpu_s(worker.pid), left()
        wait(lambda: left() == 0, 60)
        took, used = time.perf_counter() - started, cpu_s(worker.pid) - used if worker.poll() is None else 0.0
    finally:
        worker.terminate()
        worker.wait(15)
    return {"per_s": first / took, "cpu_us": 1e6 * used / first}


def median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def table(title: str, ours: list[dict[str, float]], peer: list[dict[str, float]], peer_name: str, columns: dict[str, str]) -> None:
    """Print one Markdown table: medians, and the median of the ratios of runs that stood next to each other."""
    print(f"\n| {title} | webhookd | {peer_name} | ratio |\n|---|---|---|---|")
    for name, label in columns.items():
        ratio = statistics.median(a[name] / b[name] for a, b in zip(ours, peer, strict=True) if b[name])
        print(f"| {label} | {median(ours, name):,.1f} | {median(peer, name):,.1f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests/s and CPU of ingestion, jobs/s of a worker.", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="one short round")
    quick = parser.parse_args().quick
    rounds, seconds, jobs = (1, 1.0, 5_000) if quick else (3, 3.0, 20_000)
    bench = Bench()
    try:
        ours, stock = [], []
        for _ in range(rounds):
            port, other = free_port(), free_port()
            ours.append(serve(bench, ["webhookd.py"], port, seconds))
            stock.append(serve(bench, ["bench/peer_stock.py", str(other), bench.url, SECRET], other, seconds))
        columns = {"per_s": "requests/s", "cpu_us": "CPU per request, µs", "p50": "p50, ms", "p99": "p99, ms"}
        table(f"ingestion, {load.BODY_BYTES} bytes, {CONNECTIONS} connections", ours, stock, "ThreadingHTTPServer", columns)
        ours, simple = [], []
        for _ in range(rounds):
            ours.append(work(bench, ["worker.py"], jobs, ""))
            simple.append(work(bench, ["bench/peer_worker.py", bench.url, "jobs"], jobs // 4, "jobs"))
        table("worker, parses the body", ours, simple, "one command per job", {"per_s": "jobs/s"})
        print(f"\nThe worker used {median(ours, 'cpu_us'):.1f} µs of CPU per job.")
    finally:
        bench.close()


if __name__ == "__main__":
    main()
