"""How long the pages take with many dead letters: medians over a few requests of each, on a Redis
of its own.

Run: .venv/bin/python bench/pages.py [how many dead letters, default 100000]
"""

import base64
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import rig  # noqa: E402

from hookq.job import Delivery, JobIds  # noqa: E402
from hookq.store import dead  # noqa: E402
from hookq.store.connection import Away  # noqa: E402
from hookq.store.jobs import Jobs  # noqa: E402
from hookq.store.records import Settled  # noqa: E402

LOGIN = {"Authorization": "Basic " + base64.b64encode(b"operator:a-password").decode()}


def fill(store: Jobs, count: int) -> str:
    """Bury `count` deliveries of 20 causes and 4 sources; return the id of the last."""
    ids, last = JobIds(1), ""
    for start in range(0, count, 500):
        now = time.time()
        made = [
            Delivery(ids.make(now), f"s{n % 4}", f"d{n}", "push", now, b"", b'{"n":1}')
            for n in range(start, start + 500)
        ]
        rig.accept(store, [(delivery, 60) for delivery in made])
        leases = [lease for n in range(4) for lease in store.lease({f"s{n}": 200}, 100)]
        facts = {"attempt": 8, "of": 8, "error": "ValueError: no price in order"}
        store.settle(
            [
                Settled(
                    lease,
                    "dead",
                    facts,
                    0.0,
                    "max_attempts",
                    f"ValueError in orders.py:{n % 20} handle",
                )
                for n, lease in enumerate(leases)
            ]
        )
        last = made[-1].id
    return last


def median_ms(port: int, path: str, runs: int = 15) -> tuple[float, int]:
    took, size = [], 0
    for _ in range(runs):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        started = time.perf_counter()
        connection.request("GET", path, headers=LOGIN)
        answer = connection.getresponse()
        size = len(answer.read())
        took.append(1000 * (time.perf_counter() - started))
        assert answer.status in (200, 404), answer.status
        connection.close()
    return statistics.median(took), size


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="hp") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        url = f"unix://{folder}/r.sock"
        command = [
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            f"{folder}/r.sock",
            "--save",
            "",
            "--dir",
            folder,
        ]
        redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        env = {
            **os.environ,
            "REDIS_URL": url,
            "DASHBOARD_PORT": str(port),
            "DASHBOARD_PASSWORD": "a-password",
            "STATE_DIR": folder,
        }
        store = Jobs(url, "bench")
        page = subprocess.Popen(
            [sys.executable, str(ROOT / "dashboard.py")], env=env, stdout=subprocess.DEVNULL
        )
        try:
            for _ in range(100):
                try:
                    store.ping()
                    break
                except Away:
                    time.sleep(0.1)
            last = fill(store, count)
            cause = dead.causes(store)[0].id
            places = {
                "overview": "",
                "list": "/dead",
                "its last page": f"/dead?page={count // 25}",
                "by source": "/dead?source=s1",
                "by cause": f"/dead?cause={cause}",
                "search that finds": "/dead?q=price",
                "search that finds nothing": "/dead?q=nosuch",
                "one delivery": f"/deliveries/{last}",
            }
            print(f"| page, {count:,} dead letters | ms, median of 15 | bytes |\n|---|---|---|")
            for name, path in places.items():
                took, size = median_ms(port, f"/dashboard{path}")
                print(f"| {name} | {took:.1f} | {size:,} |")
        finally:
            page.terminate()
            redis.terminate()
            page.wait(10)
            redis.wait(10)


if __name__ == "__main__":
    main()
