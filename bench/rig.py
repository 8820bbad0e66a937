"""What the bench stands on: a private Redis, processes that are ended by their id, and the kernel's
numbers about them.

Loopback and unix sockets only; every wait and every load has a limit; what was started is ended,
whatever happens.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import load
import redis

from hookq.job import Delivery
from hookq.store.accept import accept_packed
from hookq.store.client import Client

HERE = Path(__file__).resolve().parent
ROOT, PEERS = HERE.parent, HERE / ".peers"
SECRET = "a-secret-for-the-bench-only"
CONNECTIONS = 32
TICK = os.sysconf("SC_CLK_TCK")
Row = dict[str, float]


class Void(Exception):
    """The measurement says nothing: something did not get ready, or was answered otherwise than it
    should.
    """


def wait(condition: Callable[[], object], limit_s: float = 30.0, every_s: float = 0.005) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise Void("something did not get ready in time")
        time.sleep(every_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


# ---------------- the kernel's numbers


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """Return the process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_s(pid: int) -> float:
    """Return the seconds of CPU that the process and its children have used, in user and kernel
    mode, all threads.
    """
    total = 0
    for one in family(pid):
        with contextlib.suppress(OSError):
            total += sum(
                int(ticks) for ticks in _stat(one)[11:15]
            )  # its own, and of the children it has waited for
    return total / TICK


def memory_mb(pid: int) -> Row:
    """Return the resident memory of one process: all of it, and with what it shares with others
    divided among them.
    """
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    found = {line[0]: line[1] for line in lines}
    return {"rss": int(found["Rss:"]) / 1024, "pss": int(found["Pss:"]) / 1024}


# ---------------- what is started


@contextlib.contextmanager
def program(
    command: Sequence[str], env: Mapping[str, str], log: Path, stdin: int = subprocess.DEVNULL
) -> Iterator[int]:
    """Run a command as long as the block lasts; its children end with it."""
    with log.open("ab") as out:
        started = subprocess.Popen(
            command,
            env={**os.environ, **env},
            cwd=ROOT,
            stdin=stdin,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield started.pid
        if started.poll() is not None:
            raise Void(
                f"{Path(command[0]).name} ended by itself: {log.read_text(errors='replace')[-600:]}"
            )
    finally:
        _end(started)


def run(command: Sequence[str], env: Mapping[str, str], limit_s: float = 120.0) -> None:
    """Run a command to its end."""
    done = subprocess.run(
        command,
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        timeout=limit_s,
        check=False,
    )
    if done.returncode:
        raise Void(f"{Path(command[0]).name} failed: {done.stderr.decode(errors='replace')[-600:]}")


def _end(started: "subprocess.Popen[bytes]") -> None:
    left = family(started.pid)
    started.terminate()
    try:
        started.wait(5)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait(5)
    for pid in left[1:]:
        with contextlib.suppress(OSError):
            if os.getsid(pid) == started.pid:  # the id may be somebody else's by now
                os.kill(pid, signal.SIGKILL)


class Redis:
    """A redis-server of the run's own: appendonly yes, appendfsync always, a unix socket. The same
    for all.
    """

    def __init__(self, *options: str) -> None:
        self.options = options
        self.folder = Path(
            tempfile.mkdtemp(prefix="hb")
        )  # a short path: unix sockets end at 107 bytes
        self.path = f"{self.folder}/r.sock"
        self.url, self.log = f"unix://{self.path}", self.folder / "log"
        self.count = self.folder / "count"
        self.body = self.folder / "body"
        self.client = redis.Redis(unix_socket_path=self.path)

    def __enter__(self) -> "Redis":
        fixed = ["--port", "0", "--unixsocket", self.path, "--dir", str(self.folder), "--save", ""]
        # No rewriting of the file meanwhile: it would fall on some runs and not on others.
        durable = [
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--auto-aof-rewrite-percentage",
            "0",
        ]
        self.process = subprocess.Popen(
            ["redis-server", *fixed, *durable, *self.options], stdout=subprocess.DEVNULL
        )
        wait(self._answers)
        self.reset_count()
        self.body.write_bytes(load.body())
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def reset_count(self) -> None:
        self.count.write_bytes(bytes(8))

    def counted(self) -> int:
        return int.from_bytes(self.count.read_bytes(), "little")

    def used(self) -> int:
        return int(self.client.info("memory")["used_memory"])


# ---------------- loads


def accept(client: Client, batch: Sequence[tuple[Delivery, int]]) -> None:
    """Make a job of each (delivery, dedupe_s), as ingestion does."""
    link = client.redis.connection_pool.get_connection()
    link.send_packed_command([accept_packed(batch)])
    for _ in range(len(batch) + 3):
        link.read_response()
    client.redis.connection_pool.release(link)


def wrk(port: int, db: Redis, seconds: int, *, close: bool = False) -> Row:
    """Return what wrk measured: one thread, 32 connections, as many requests as they can."""
    limits = [
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}s",
        "--timeout",
        "10s",
        "-s",
        str(HERE / "peers/signed.lua"),
    ]
    given = [
        "--",
        load.signature(SECRET.encode(), load.body()),
        str(db.body),
        "close" if close else "keep",
    ]
    command = ["wrk", *limits, f"http://127.0.0.1:{port}/", *given]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)  # nothing else is waited for meanwhile
    row: Row = json.loads(done.stdout.splitlines()[-1])
    if row["refused"] or row["broken"]:
        raise Void(f"not every answer was good: {row}")
    return row | {"cpu_s": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


def open_loop(port: int, rate: float, seconds: float) -> Row:
    """Return the times of answers to requests that come at their own pace, counted from when each
    was due.
    """
    command = [
        sys.executable,
        str(HERE / "load.py"),
        str(port),
        SECRET,
        f"{rate:.0f}",
        str(seconds),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=4 * seconds + 30, check=True
    )
    row: Row = json.loads(done.stdout)
    if row["refused"]:
        raise Void(f"not every answer was good: {row}")
    return row


def median(rows: Sequence[Row], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def ratio(pairs: Sequence[tuple[Row, Row]], name: str) -> float:
    """Return the median of the ratios of runs that stood next to each other: ours to theirs."""
    return statistics.median(ours[name] / theirs[name] for ours, theirs in pairs)
