"""One worker, several sources: what a source with a URL costs the Python jobs beside it, and how
long a quick job waits beside slow ones.

    .venv/bin/python bench/sources.py [ROUNDS]        about a minute for three rounds

The target is a server of ours on loopback that takes 100 ms to answer, as a quick service does. The
variants of a round run one after the other; read the ratios within it.
"""

import contextlib
import http.server
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import ingestion
import rig
import working
from rig import Redis

from hookq.job import Delivery
from hookq.store.client import Client

JOBS, ANSWER_S, SLOW_S, QUICK = 20_000, 0.1, 0.5, 200
HANDLERS = f"""
import time
def quick(delivery):
    pass
def slow(delivery):
    time.sleep({SLOW_S})
"""


class Answer(http.server.BaseHTTPRequestHandler):
    """Takes the body, waits, says 200 and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(ANSWER_S)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def source(name: str, handler: str, **more: object) -> str:
    rows = "".join(f"{key} = {value}\n" for key, value in more.items())
    text = f'[sources.{name}]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\n'
    return f'{text}handler = "{handler}"\n{rows}\n'


def fill(db: Redis, name: str, jobs: int) -> None:
    """Make ready jobs of a source."""
    store, (head, body) = Client(db.url, "fill"), working.delivery()
    for start in range(0, jobs, 500):
        now, count = time.time(), min(500, jobs - start)
        ids = [working.IDS.make(now) for _ in range(count)]
        made = [Delivery(id, name, str(uuid.uuid4()), "push", now, head, body, 0, 1) for id in ids]
        rig.accept(store, [(delivery, working.WEEK) for delivery in made])
    store.close()


@contextlib.contextmanager
def worker(db: Redis, settings: str) -> Iterator[int]:
    with tempfile.TemporaryDirectory(prefix="hs") as folder:
        Path(folder, "h.py").write_text(HANDLERS)
        Path(folder, "webhooks.toml").write_text(settings)
        env = ingestion.env(db, 1) | {"WEBHOOKS_FILE": f"{folder}/webhooks.toml"}
        with rig.program([sys.executable, "worker.py"], env, db.log) as pid:
            yield pid


def done(db: Redis, name: str) -> int:
    return int(db.client.hget("{hookq}:metrics", f"done:{name}") or 0)


def per_s(settings: str, url_jobs: int = 0) -> float:
    """Return the Python jobs per second of one worker with these settings."""
    with Redis() as db:
        fill(db, "python", JOBS)
        if url_jobs:
            fill(db, "url", url_jobs)
        with worker(db, settings):
            rig.wait(lambda: done(db, "python") >= JOBS / 10, 60)
            first, started = done(db, "python"), time.perf_counter()
            rig.wait(lambda: done(db, "python") >= JOBS, 120)
            return (JOBS - first) / (time.perf_counter() - started)


def waits_s(settings: str) -> list[float]:
    """Return how long quick jobs waited that came one by one while slow ones are always ready."""
    with Redis() as db:
        fill(db, "slow", 200)
        waits = []
        with worker(db, settings):
            rig.wait(lambda: done(db, "slow") >= 1, 60)
            for number in range(1, QUICK // 20 + 1):
                began = time.perf_counter()
                fill(db, "python", 20)
                rig.wait(lambda count=20 * number: done(db, "python") >= count, 60)
                waits.append(time.perf_counter() - began)
        return waits


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    target = f"http://127.0.0.1:{server.server_address[1]}/"
    python = source("python", "h.py:quick")
    url = source("url", target, allow_private="true", concurrency=10)
    found: dict[str, list[float]] = {"alone": [], "idle URL": [], "busy URL": []}
    for _ in range(rounds):
        found["alone"].append(per_s(python))
        found["idle URL"].append(per_s(python + url))
        found["busy URL"].append(per_s(python + url, 5000))
    for name, rates in found.items():
        ratios = [rate / alone for rate, alone in zip(rates, found["alone"], strict=True)]
        told = " ".join(f"{rate:,.0f}" for rate in rates)
        print(f"{name:9} {told} jobs/s, {statistics.median(ratios):.2f} of alone")
    waits = waits_s(python + source("slow", "h.py:slow"))
    print(
        f"20 quick jobs beside slow ones of {SLOW_S} s: "
        f"{statistics.median(waits):.2f} s in the median, {max(waits):.2f} s at most"
    )


if __name__ == "__main__":
    main()
