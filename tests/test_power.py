"""Power loss: what is on disk at random moments of a recorded run holds everything that had been
acknowledged by then.

The run is real: ingestion takes deliveries from four clients while Redis freezes, so that the spool
takes some and is drained; a worker finishes some, retries some and buries some. strace notes each
write and each sync.

FIRE=1 looks at 1,000 moments and cuts at every byte; without it at some of each.
"""

import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from trace import Disk, calls, needs_strace, traced

import pytest
import test_stack
from conftest import (
    SECRET,
    Program,
    Redis,
    Store,
    accepted,
    ask,
    delivery,
    free_port,
    is_ready,
    request,
    signed,
    until,
)
from test_faults import hammer, more
from test_webhookd import spooled

from hookq.ingest.spool import Spool
from hookq.operate.supervisord import programs
from hookq.store.keys import key

stack = test_stack.stack
FIRE = bool(os.environ.get("FIRE"))
MOMENTS = 1000 if FIRE else 40
HANDLER = """
import json
from hookq import GiveUp

def handle(delivery):
    n = json.loads(delivery.body)["n"]
    if n % 5 == 1:
        raise GiveUp("as asked")
    if n % 5 == 2 and delivery.attempt < 3:
        raise ValueError("again")
"""
SOURCE = '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = "h.py:handle"\nretry_base_s = 0.5\n'


class Recorded:
    """One run: `acked` is (unix seconds, delivery id, body) of each 202, `disk` what was written
    when.
    """

    def __init__(self, folder):
        self.folder, self.acked, self.port = folder, [], free_port()
        for name in ("redis", "state"):
            (folder / name).mkdir()
        (folder / "h.py").write_text(HANDLER)
        (folder / "w.toml").write_text(SOURCE)
        self.spool = folder / "state/spool.db"
        made = Spool(self.spool, 1 << 30)  # so that it is there before the recording begins
        made.accept([(delivery(), 60)])
        made.remove([spooled.row for spooled in made.oldest(9, 9)])
        made.close()
        self.lock, self.number, self.ended = threading.Lock(), 0, threading.Event()
        self.record()

    def client(self):
        while not self.ended.wait(0.004):
            with self.lock:
                self.number += 1
                n = self.number
            body = json.dumps({"n": n, "pad": "x" * 50}).encode()
            line = ask(self.port, request(body, headers=signed(body, delivery_id=f"p-{n}")))[0]
            assert line.startswith("HTTP/1.1 202"), line
            self.acked.append((time.time(), f"p-{n}", body))

    def more(self, count):
        enough = len(self.acked) + count
        until(lambda: len(self.acked) >= enough, 120)

    def record(self):
        server = Redis(
            self.folder / "redis",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--auto-aof-rewrite-percentage",
            "0",
        )
        env = {
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": server.url,
            "STATE_DIR": f"{self.folder}/state",
            "PORT": str(self.port),
        }
        env["WEBHOOKS_FILE"] = f"{self.folder}/w.toml"
        clients = [threading.Thread(target=self.client) for _ in range(4)]
        before = self.spool.read_bytes()
        with ExitStack() as stack:
            stack.callback(server.start().stop)
            ingest, worker = (
                Program(self.folder, name, env=env) for name in ("webhookd.py", "worker.py")
            )
            stack.callback(ingest.end)
            stack.callback(worker.end)
            until(lambda: is_ready(self.port))
            with (
                traced(server.process.pid, self.folder / "of-redis") as first,
                traced(ingest.process.pid, self.folder / "of-ingest", data=True) as second,
            ):
                for thread in clients:
                    thread.start()
                self.began, self.frozen = time.time(), []
                for _ in range(2):
                    self.more(150)
                    server.process.send_signal(
                        signal.SIGSTOP
                    )  # it answers nobody: the spool takes over
                    self.more(10)  # four of them may have been on their way back
                    since = time.time()
                    self.more(50)
                    self.frozen.append((since, time.time()))
                    server.process.send_signal(signal.SIGCONT)
                    until(
                        lambda: "spool.end" in ingest.text.rpartition("spool.begin")[2],
                        60,
                        "it is drained",
                    )
                self.more(150)
                self.over = time.time()
                self.ended.set()
                for thread in clients:
                    thread.join(60)
                server.stop()
        (self.aof,) = (self.folder / "redis/appendonlydir").glob("*.incr.aof")
        self.disk = Disk(
            calls(first) + calls(second),
            {str(self.spool): before},
            {str(self.aof): self.aof.stat().st_size},
        )

    def moments(self, count, dice):
        """Yield moments of the run: its end, a tenth while the spool surely holds some, any."""
        yield self.over
        for n in range(1, count):
            yield dice.uniform(*(self.began, self.over) if n % 10 else self.frozen[n // 10 % 2])

    def lost_at(self, moment, dice):
        """Return what a power loss at this moment would leave: a folder for Redis, and one for the
        spool.
        """
        folder = Path(tempfile.mkdtemp(prefix="hq"))
        shutil.copytree(self.aof.parent, folder / "appendonlydir")
        os.truncate(
            folder / "appendonlydir" / self.aof.name, self.disk.length(str(self.aof), moment, dice)
        )
        for path in (self.spool, Path(f"{self.spool}-wal")):
            if image := self.disk.image(str(path), moment, dice):
                (folder / path.name).write_bytes(image)
        return folder


def kept_by(store):
    """Return delivery id → body (None of one that is done) of every job that Redis knows."""
    found = {}
    for facts in (values for _, values in store.redis.xrange(key("history"))):
        if facts[b"event"] == b"job.complete":
            found[json.loads(facts[b"facts"])["delivery_id"]] = None
    rows = [values for _, values in store.redis.xrange(key("ready", "github"))]
    rows += [store.redis.hgetall(name) for name in store.redis.scan_iter(key("job", "*"))]
    ids = Counter(row[b"id"] for row in rows)
    assert max(ids.values(), default=1) == 1, "a job stands in two places"
    assert all(row[b"body"] for row in rows), "a job without a body"
    return found | {row[b"delivery_id"].decode(): row[b"body"] for row in rows}


def check(folder, acked):
    """Assert that everything acknowledged is in Redis or in the spool, and no claim is without its
    job.
    """
    spool = Spool(folder / "spool.db", 1 << 30)
    spooled = {
        row.delivery.delivery_id: row.delivery.body for row in spool.oldest(100_000, 1 << 30)
    }
    spool.close()
    server = Redis(folder, "--appendonly", "yes", "--aof-load-truncated", "yes")
    try:
        with closing(Store(server.start().url, "w1")) as store:
            kept = kept_by(store)
            marks = {
                name.decode().rpartition(":")[2] for name in store.redis.scan_iter(key("seen", "*"))
            }
            assert marks == set(kept), marks ^ set(kept)
            assert store.audit().gap == 0 and store.orphans() == []
    finally:
        server.stop()
    lost = [
        id
        for id, body in acked
        if not (id in kept and kept[id] in (None, body)) and spooled.get(id) != body
    ]
    assert not lost, lost
    return len(spooled)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    needs_strace()
    folder = Path(tempfile.mkdtemp(prefix="hp"))
    yield Recorded(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_power_lost_at_any_moment_loses_nothing_acknowledged_R1_R4(recorded):
    dice, with_some, last = random.Random(8), 0, 0
    for moment in recorded.moments(MOMENTS, dice):
        folder = recorded.lost_at(moment, dice)
        try:
            acked = [(id, body) for at, id, body in recorded.acked if at <= moment]
            with_some += bool(check(folder, acked))
            last = max(last, len(acked))
        finally:
            shutil.rmtree(folder)
    assert with_some >= MOMENTS / 20 and last > 400  # or nothing was compared
    print(
        f"{MOMENTS} moments of a run of {len(recorded.acked)} deliveries, {with_some} with some of them in the spool: nothing lost"
    )


def test_simulation_finds_an_answer_that_is_sent_before_the_sync(recorded):
    """The same files, if each delivery had been acknowledged 50 ms earlier: then some would be
    lost. It exists to be caught.
    """
    dice, red = random.Random(9), 0
    for answered_at, _, _ in dice.sample(recorded.acked, 10):
        moment = answered_at - 0.05
        folder = recorded.lost_at(moment, dice)
        try:
            check(folder, [(id, body) for at, id, body in recorded.acked if at <= answered_at])
        except AssertionError:
            red += 1
        finally:
            shutil.rmtree(folder)
    assert red >= 2


# ---------------- cut at every byte


def cuts(begin, end):
    return (
        range(begin, end + 1)
        if FIRE
        else [begin, *random.Random(3).sample(range(begin + 1, end), 20), end]
    )


def test_append_only_file_keeps_all_of_a_cut_accept_or_nothing_R4(private_redis):
    with closing(Store(private_redis.url, "w1")) as store:
        file = next(Path(private_redis.folder, "appendonlydir").glob("*.incr.aof"))
        accepted(store, 3)
        begin = file.stat().st_size
        accepted(store, 3, body=b"the last ones")
        end, found = file.stat().st_size, {}
    private_redis.stop()
    for cut in cuts(begin, end):
        with tempfile.TemporaryDirectory(prefix="hq") as folder:
            shutil.copytree(file.parent, f"{folder}/appendonlydir")
            os.truncate(f"{folder}/appendonlydir/{file.name}", cut)
            server = Redis(folder, "--appendonly", "yes", "--aof-load-truncated", "yes")
            try:
                with closing(Store(server.start().url, "w1")) as store:
                    jobs = {
                        values[b"id"]: values.get(b"body")
                        for _, values in store.redis.xrange(key("ready", "github"))
                    }
                    marks = {
                        store.redis.get(name) for name in store.redis.scan_iter(key("seen", "*"))
                    }
                    assert marks == set(jobs) and all(jobs.values()), (
                        f"cut at {cut - begin} of {end - begin}"
                    )
                    found[cut] = store.audit().accepted
                    assert store.audit().gap == 0 and found[cut] == len(jobs)
            finally:
                server.stop()
    assert set(found.values()) == {3, 6} and (found[begin], found[end]) == (3, 6)
    print(f"{len(found)} cuts")


def test_spool_keeps_all_of_a_cut_accept_or_nothing_R4(tmp_path):
    spool = Spool(tmp_path / "spool.db", 1 << 30)
    spool.accept([(delivery(), 60)])
    spool.close()
    wal, db = Path(f"{spool.path}-wal"), spool.path.read_bytes()
    spool.accept([(delivery(), 60) for _ in range(3)])
    begin = wal.stat().st_size
    spool.accept([(delivery(), 60) for _ in range(3)])
    whole, found = wal.read_bytes(), Counter()
    for cut in cuts(begin, len(whole)):
        copy = Spool(tmp_path / f"{cut}" / "spool.db", 1 << 30)
        copy.path.parent.mkdir()
        copy.path.write_bytes(db)
        Path(f"{copy.path}-wal").write_bytes(whole[:cut])
        kept = len(copy.oldest(100, 1 << 30))
        copy.close()
        shutil.rmtree(copy.path.parent)
        found[kept] += 1
        assert kept == (7 if cut == len(whole) else 4), cut
    spool.close()
    print(f"{found.total()} cuts")


# ---------------- slow disks


def slow(pid, folder, ms):
    """Let each sync of a process take so much longer, while the block lasts."""
    return traced(pid, folder, inject=["-e", f"inject=fsync,fdatasync:delay_exit={ms * 1000}"])


@pytest.mark.parametrize("ms", [5, 200, 1500])
def test_slow_disk_of_redis_is_bridged_and_refuses_nobody_R1(stack, ms):
    needs_strace()
    stack.start()
    redis = next(program.pid for program in programs(stack.folder / "v") if program.name == "redis")
    with hammer(stack.port) as codes:
        with slow(redis, stack.folder / "slow", ms):
            more(codes, 60)
        more(codes)
    assert Counter(codes) == {202: len(codes)}
    logs = "".join(path.read_text() for path in (stack.folder / "v").glob("webhookd_*.log"))
    assert ms < 1000 or "spool.begin" in logs
    until(lambda: spooled(stack.folder / "v/spool.db") == 0, what="the spool is drained")
    stack.settled(accepted=len(codes), done=len(codes))


@pytest.mark.parametrize("ms", [5, 200, 1500])
def test_slow_disk_of_the_spool_delays_answers_and_loses_none_R1(
    serve, private_redis, store, ms, tmp_path
):
    needs_strace()
    program, port = serve(redis=private_redis)
    private_redis.stop()
    with hammer(port) as codes:
        with slow(program.process.pid, tmp_path / "slow", ms):
            more(codes, 20)
        more(codes)
    private_redis.start()
    until(lambda: spooled(tmp_path / "state/spool.db") == 0, what="the spool is drained")
    assert Counter(codes) == {202: len(codes)}
    with closing(Store(private_redis.url, "w1")) as found:
        assert found.audit().accepted == len(codes) and found.audit().gap == 0
