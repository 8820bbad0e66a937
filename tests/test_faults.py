"""What the stack must live through: restarts, kills, freezes, lost replies, a Redis that dies or
never answers, full disks.

Real processes, signals and sockets. Every test ends by counting: what was answered 202 is in the
ledger, and its gap is 0.
"""

import faulthandler
import http.client
import json
import os
import random
import select
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import pytest
import test_stack
import test_webhookd
from conftest import (
    SECRET,
    Client,
    Redis,
    Store,
    accepted,
    act,
    ask,
    dead,
    free_port,
    is_ready,
    request,
    signed,
    until,
    whole_lines,
)
from test_webhookd import GOOD, spooled
from test_worker import settled

from hookq.operate.supervisord import programs
from hookq.settings import load
from hookq.store.connection import Away
from hookq.store.jobs import LEASE_S
from hookq.store.keys import GROUP, key
from hookq.store.records import Settled
from hookq.store.scripts import SCRIPTS
from hookq.work.keeper import Keeper
from hookq.work.loop import Worker

stack, short = test_stack.stack, test_webhookd.short

HANDLER = """
import os, pathlib, signal, time
from hookq import GiveUp
here = pathlib.Path(__file__).parent

def handle(delivery):
    with open(here / "starts", "a") as file:
        file.write(f"{delivery.id} {delivery.attempt} {os.getpid()} {time.time()}\\n")
    if delivery.body == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while delivery.body == b"wait" and delivery.attempt == 1 and not (here / "go").exists():
        time.sleep(0.01)
    if delivery.body == b"short":
        time.sleep(0.01)  # longer than SETTLE_S: each is settled before the next begins
    if delivery.body == b"fail once" and delivery.attempt == 1:
        raise ValueError("once")
    if delivery.body == b"give up":
        raise GiveUp("as asked")
"""
SOURCE = '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = "h.py:handle"\nretry_base_s = 0.01\n'


@pytest.fixture
def crew(running, tmp_path):
    """crew() starts a worker with HANDLER; crew.starts() is [id, attempt, pid, time] of every start
    of a job.
    """
    (tmp_path / "h.py").write_text(HANDLER)
    (tmp_path / "webhooks.toml").write_text(SOURCE)
    (tmp_path / "starts").touch()

    def start(**more):
        return running("worker.py", **more)

    start.starts = lambda: [line.split() for line in whole_lines(tmp_path / "starts")]
    start.go = (tmp_path / "go").touch
    return start


@contextmanager
def hammer(port):
    """Four clients post until the block ends, two of them with a connection for each request;
    yields what they are answered.
    """
    codes, ended = [], threading.Event()

    def post(kept):
        with closing(
            http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        ) as connection:  # it honours Connection: close
            while not ended.wait(0.002):
                try:
                    connection.request(
                        "POST",
                        "/api/webhooks/github",
                        b"{}",
                        {"Content-Type": "application/json", **signed(b"{}")},
                    )
                    answer = connection.getresponse()
                    answer.read()
                    codes.append(
                        answer.status
                        if answer.status != 503 or answer.headers["Retry-After"]
                        else "no Retry-After"
                    )
                except (OSError, http.client.HTTPException) as error:
                    codes.append(repr(error))
                    connection.close()
                if not kept:
                    connection.close()

    with ThreadPoolExecutor(4) as pool:
        pool.map(post, (True, False) * 2)
        try:
            more(codes)
            yield codes
        finally:
            ended.set()


def more(codes, count=100):
    """Wait until so many more have been answered."""
    enough = len(codes) + count
    until(lambda: len(codes) >= enough, 60, codes[-5:])


class Proxy(socketserver.ThreadingUnixStreamServer):
    """Stands between a program and Redis. `mute`: it accepts, and nobody is answered. `mark`: of
    the next `left` requests that hold it, Redis does what they say, but the reply is thrown away
    and the connection closed.
    """

    daemon_threads, request_queue_size = True, 64
    mute, mark, left, lost = False, b"", 0, 0

    def finish_request(self, client, _):
        deaf = losing = False
        with socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self.target)
            while True:
                for sock in select.select([client, server], [], [])[0]:
                    data = sock.recv(1 << 20)
                    deaf = deaf or self.mute
                    if sock is client and self.left and self.mark in data:
                        losing, self.left = True, self.left - 1
                    if not data or (losing and sock is server):
                        self.lost += losing
                        return
                    if not deaf:
                        (server if sock is client else client).sendall(data)


@pytest.fixture
def proxy(redis_server):
    folder = tempfile.mkdtemp(prefix="hp")
    with Proxy(f"{folder}/p.sock", None) as made:
        made.target, made.url = redis_server.path, f"unix://{folder}/p.sock"
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        yield made
        made.shutdown()
    shutil.rmtree(folder)


def pids(stack):
    return {program.name: program.pid for program in programs(stack.folder / "v")}


def audit_of(store):
    """Return the ledger, or None while Redis is away."""
    with suppress(Away):
        return store.audit()


def test_ingestion_restarted_in_every_way_refuses_nobody_R1(stack):
    stack.start()
    names = ["webhookd:webhookd_00", "webhookd:webhookd_01"]

    def starts(n):
        return (stack.folder / f"v/webhookd_0{n}.log").read_text().count('"process.start"')

    def restarted(how):
        before = starts(0), starts(1)
        how()
        until(lambda: starts(0) > before[0] and starts(1) > before[1], 60, "both have started anew")
        more(codes)

    with hammer(stack.port) as codes:
        for _ in range(2):
            restarted(lambda: [os.kill(pids(stack)[name], signal.SIGHUP) for name in names])
        restarted(lambda: stack.run(sys.executable, "-m", "hookq.launch", "reload"))
        restarted(lambda: [stack.ctl("restart", name) for name in names])
    assert Counter(codes) == {202: len(codes)}
    stack.settled(accepted=len(codes), done=len(codes))


def test_killed_workers_lose_nothing_and_repeat_one_job_each_R4(store, crew):
    dice, made, gaps, workers = random.Random(4), [], [], [crew(), crew(), crew()]
    made += accepted(store, body=b"wait")
    (held,) = until(crew.starts)  # so that one of them surely has a job in hand when it is killed
    workers.sort(key=lambda worker: worker.process.pid != int(held[2]))
    for _ in range(10):
        made += accepted(store, 60, body=b"short")
        victim = until(lambda crew=workers: [w for w in crew if w.events("process.start")])[0]
        moment = time.monotonic() + dice.uniform(0.1, 0.5)
        until(lambda moment=moment: gaps.append(store.audit().gap) or time.monotonic() > moment)
        victim.end(signal.SIGKILL)
        workers = [w for w in workers if w is not victim] + [crew()]
    settled(store, 120, done=len(made), ready=0, leased=0)
    starts = [start[0] for start in crew.starts()]
    assert set(starts) == {d.id for d in made} and len(starts) <= len(made) + 10
    assert not any(gaps) and store.metrics()["reclaimed:github"] > 0


def test_job_of_a_killed_worker_runs_again_within_seconds(store, crew):
    took, workers = [], {}

    def start_of(id, attempt):
        return next((start for start in crew.starts() if start[:2] == [id, attempt]), None)

    for count in (4, 2, 2, 2, 2):
        hired = [crew() for _ in range(count)]
        workers |= {
            program.process.pid: program for program in hired if program.saw("process.start")
        }
        jobs = []
        for _ in range(2):  # one after the other, so that two workers hold one each
            jobs += accepted(store, body=b"wait")
            until(lambda job=jobs[-1]: start_of(job.id, "1"))
        at = time.time()
        for job in jobs:
            workers.pop(int(start_of(job.id, "1")[2])).end(signal.SIGKILL)
        took += [float(until(lambda job=job: start_of(job.id, "2"))[3]) - at for job in jobs]
    settled(store, done=10, ready=0, leased=0)
    assert max(took) < LEASE_S - 5 and len(crew.starts()) == 20
    print(f"from kill to re-run: median {sorted(took)[5]:.2f} s, longest {max(took):.2f} s")


def test_lease_decides_where_listing_the_clients_is_not_allowed_R5(
    store, redis_server, crew, tmp_path, monkeypatch
):
    store.redis.execute_command(
        "ACL", "SETUSER", "limited", "on", ">pw", "~*", "&*", "+@all", "-client|list"
    )
    monkeypatch.setattr(redis_server, "url", f"unix://limited:pw@{redis_server.path}")
    monkeypatch.setattr("hookq.work.keeper.LEASE_S", 1.5)
    monkeypatch.setattr("hookq.work.keeper.RENEW_S", 0.3)
    env = {
        "WEBHOOK_SECRET": SECRET,
        "REDIS_URL": redis_server.url,
        "STATE_DIR": str(tmp_path / "state"),
    }
    living = Worker(
        load(environ=env, root=tmp_path), "living", types.SimpleNamespace(stop=False, reload=False)
    )
    keeper = Keeper(living)
    faulthandler.cancel_dump_traceback_later()
    until(
        lambda: store.gone(set()) == set() and keeper.store.gone(set()) is None,
        what="allowed to us, not to them",
    )
    (own,) = accepted(store)
    assert [lease.delivery.id for lease in living._lease()] == [own.id]
    (lost,), began, victim = accepted(store, body=b"wait"), time.monotonic(), crew()
    until(crew.starts)
    victim.end(signal.SIGKILL)
    until(
        lambda: keeper.turn(time.monotonic()) or store.audit().ready,
        what="the lease has run out",
    )
    assert time.monotonic() - began > 1.5
    (taken,) = living._lease()
    assert (taken.delivery.id, taken.deaths) == (lost.id, 1)
    assert (
        store.audit().leased == 2 and store.metrics()["reclaimed:github"] == 1
    )  # the living one kept its own
    store.redis.execute_command("ACL", "DELUSER", "limited")
    living.store.close(), keeper.store.close()


@pytest.mark.parametrize("meanwhile", ["leased by another", "buried and put back"])
def test_worker_frozen_past_its_lease_changes_nothing_R5(store, other, crew, meanwhile):
    program, (job,), ready = crew(), accepted(store, body=b"wait"), key("ready", "github")
    until(crew.starts)
    name = program.saw("process.start")[0]["worker"]
    program.process.send_signal(signal.SIGSTOP)

    def state():
        leases = [
            (row["message_id"], row["consumer"])
            for row in store.redis.xpending_range(ready, GROUP, "-", "+", 9)
        ]
        return leases, store.audit(), store.redis.xrange(ready)

    assert other.reclaim(name, idle_s=LEASE_S) == []
    store.redis.execute_command(
        "XCLAIM", ready, GROUP, name, 0, state()[0][0][0], "IDLE", int(LEASE_S * 1000) + 1, "JUSTID"
    )
    assert [row[1] for row in other.reclaim(name, idle_s=LEASE_S)] == [job.id]
    (held,) = other.lease({"github": 1}, 500)
    if meanwhile == "buried and put back":
        assert other.settle([Settled(held, "dead", {"attempt": 2}, reason="gave_up")]) == [True]
        assert other.redrive_rank(0, act()) == job.id
        (held,) = other.lease({"github": 1}, 500)
    before = state()
    crew.go()
    program.process.send_signal(signal.SIGCONT)
    assert [line["id"] for line in program.saw("lease.lost")] == [job.id]
    assert state() == before and store.metrics()["refused_settles"] == 1
    assert other.settle([Settled(held, "done", {"attempt": 2})]) == [True]
    assert store.audit().done == 1 and store.audit().gap == 0


def test_poison_job_charges_no_death_to_its_neighbours_R9(store, crew, tmp_path):
    five = "from hookq.work.turns import Turns\nTurns._count = lambda *_: 5\n"
    (tmp_path / "h.py").write_text(HANDLER + five)  # leased at once, however long a job takes here
    beside = accepted(store, body=b"short")
    (killer,) = accepted(store, body=b"kill")
    beside += accepted(store, 20, body=b"short")
    workers = [crew()]
    workers[0].process.wait(60)  # with five leases: the killer's, one before it, three after it

    def buried():
        workers.extend(
            crew() for _ in range(2 - sum(program.process.poll() is None for program in workers))
        )
        return store.audit().dead

    until(buried, 120)
    settled(store, 60, done=len(beside), dead=1, ready=0, leased=0)
    assert [(job.id, job.reason, job.deaths) for job in dead(store)] == [
        (killer.id, "killed_worker", 3)
    ]
    starts = crew.starts()
    assert [start[1] for start in starts if start[0] == killer.id] == ["1", "2", "3"]
    assert sorted(start[:2] for start in starts if start[0] != killer.id) == sorted(
        [job.id, "1"] for job in beside
    )
    charged = [
        line["deaths"]
        for program in workers
        for line in program.events("job.reclaim")
        if line["id"] != killer.id
    ]
    assert len(charged) >= 3 and not any(charged)


def test_killed_redis_comes_back_and_everything_goes_on_R1(stack):
    stack.start()
    with (
        closing(Store(f"unix://{stack.folder}/v/redis.sock", "probe")) as store,
        hammer(stack.port) as codes,
    ):
        for _ in range(2):
            os.kill(pids(stack)["redis"], signal.SIGKILL)
            until(lambda: audit_of(store) is None, what="it is away")
            more(codes)
            done = until(lambda: audit_of(store), 60, "it answers again").done
            until(
                lambda done=done: (
                    spooled(stack.folder / "v/spool.db") == 0 and store.audit().done > done + 100
                )
            )
            more(codes)
    assert Counter(codes) == {202: len(codes)}
    stack.settled(accepted=len(codes), done=len(codes))
    logs = {path.name: path.read_text() for path in (stack.folder / "v").glob("w*_0?.log")}
    assert len(logs) == 4
    for text in logs.values():  # a line for each change of state, not for each attempt
        lines = [json.loads(line) for line in text.splitlines() if '"event": "redis.' in line]
        told = [(line["event"], line.get("why")) for line in lines]
        assert [event for event, _ in told].count("redis.away") == 2
        assert all(one != other for one, other in pairwise(told)), told


def cpu_s(program):
    fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_redis_that_never_answers_stops_nobody_and_nobody_spins_R1_R7(
    running, store, proxy, crew, tmp_path
):
    def posted():
        begun = time.monotonic()
        assert ask(port, request(b"short"))[0] == GOOD and time.monotonic() - begun < 8

    def told():
        names = ("redis.unreachable", "redis.away", "redis.up", "spool.begin")
        return [len(ingestion.events(name)) for name in names], [
            len(hand.events(name)) for name in names[1:3]
        ]

    proxy.mute, page_port = True, free_port()
    hand, page = crew(redis=proxy), running("dashboard.py", redis=proxy, DASHBOARD_PORT=page_port)
    port = free_port()
    ingestion = running("webhookd.py", redis=proxy, PORT=port)
    until(lambda: is_ready(port), what=ingestion.text)
    posted()
    page.saw("process.start")
    assert not is_ready(page_port)
    until(lambda: told() == ([1, 0, 0, 1], [1, 0]), what="each has met its limit")
    three = (ingestion, hand, page)
    before, end = [cpu_s(program) for program in three], time.monotonic() + 2
    until(lambda: time.monotonic() > end)
    assert all(cpu_s(program) - was < 0.5 for program, was in zip(three, before, strict=True))
    assert told() == ([1, 0, 0, 1], [1, 0])
    proxy.mute = False
    hand.saw("redis.up")
    until(lambda: spooled(tmp_path / "state/spool.db") == 0)
    settled(store, done=1)
    proxy.mute = True
    posted()
    until(lambda: told() == ([2, 1, 1, 2], [2, 1]))
    proxy.mute = False
    settled(store, done=2)
    assert {program.process.poll() for program in three} == {None}


def test_accept_with_a_lost_reply_is_one_job_after_the_drain_R6(short, proxy, store, tmp_path):
    port, server = short(REDIS_URL=proxy.url)
    ids = []
    for n in range(20):
        until(lambda: server.journal.intake.up)
        proxy.mark, proxy.left = (
            b"lost-%02d" % n,
            2,
        )  # the reply to the sender's accept, then the reply to the drain
        line, _, body = ask(port, request(headers=signed(delivery_id=f"lost-{n:02}")))
        assert line == GOOD
        ids.append(json.loads(body)["id"])
        until(lambda n=n: proxy.lost == 2 * n + 2, what=f"both were lost of {n}")
    until(lambda: spooled(tmp_path / "spool.db") == 0)
    audit = store.audit()
    assert (audit.accepted, audit.ready, audit.gap) == (20, 20, 0)
    assert sorted(
        values[b"id"].decode() for _, values in store.redis.xrange(key("ready", "github"))
    ) == sorted(ids)


def test_settle_whose_reply_was_lost_is_settled_once_R5(store, crew, proxy):
    crew(redis=proxy)
    accepted(store)
    settled(store, done=1)  # and now Redis knows the script
    wanted = Counter(done=1, retry=0, dead=0)
    for n in range(20):
        body = (b"short", b"give up", b"fail once")[n % 3]
        proxy.mark, proxy.left = SCRIPTS["settle"].sha.encode(), 1
        accepted(store, body=body)
        wanted["dead" if body == b"give up" else "done"] += 1
        until(lambda n=n: proxy.lost == n + 1)
        settled(store, leased=0, ready=0, **wanted)
    until(lambda: store.metrics().get("refused_settles") == 20, what="each was asked for again")
    assert (
        len(crew.starts()) == 1 + 20 + 6 and store.orphans() == []
    )  # nothing ran again but what was to be retried


def test_thousand_posts_of_one_delivery_make_one_job_R6(serve, store):
    ports = [serve()[1], serve()[1]]
    data = request(headers=signed(delivery_id="the-one"))

    def client(n):
        with Client(ports[n % 2]) as connection:
            return [connection.send(data).answer() for _ in range(63 if n < 8 else 62)]

    with ThreadPoolExecutor(16) as pool:
        answers = [answer for answers in pool.map(client, range(16)) for answer in answers]
    assert Counter(line[9:12] for line, _, _ in answers) == {"202": 1, "200": 999}
    assert len({json.loads(body)["id"] for _, _, body in answers}) == 1
    nameless = request(
        headers={name: value for name, value in signed().items() if name != "X-GitHub-Delivery"}
    )
    again = [ask(port, nameless) for port in ports * 20]
    assert {line[9:12] for line, _, _ in again} == {"202"} and len(
        {body for _, _, body in again}
    ) == 40
    audit = store.audit()
    assert (audit.accepted, audit.ready, audit.gap) == (41, 41, 0)


def test_job_put_back_is_not_stopped_by_its_own_delivery_id_R6(serve, store, crew):
    crew()
    data, port = request(b"give up", headers=signed(b"give up", "its-own")), serve()[1]
    assert ask(port, data)[0] == GOOD
    for starts in (1, 2, 3):
        settled(store, dead=1, accepted=1)
        assert len(crew.starts()) == starts and ask(port, data)[0][9:12] == "200"
        assert store.redrive_rank(0, act())


def test_supervisord_killed_leaves_nobody_and_the_same_ledger(stack):
    took, before = [], None
    for n in range(3):
        stack.start()
        assert before in (None, stack.audit())
        assert [stack.post(event=event) for event in ("push", "give-up", "push")] == [202] * 3
        before, begun = stack.settled(done=2 * n + 2, dead=n + 1), time.monotonic()
        os.kill(int((stack.folder / "v/supervisord.pid").read_text()), signal.SIGKILL)
        until(lambda: not set(stack.family()) - {stack.process.pid}, what="its children are gone")
        took.append(time.monotonic() - begun)
        assert stack.process.wait(30) == 1
    stack.start()
    assert stack.audit() == before
    print(f"children gone after {max(took):.2f} s at most")


@pytest.mark.parametrize("has_room", [True, False], ids=["spool has room", "spool has none"])
def test_full_disk_is_met_with_202_or_503_R1(stack, has_room):
    state = stack.folder / "v"
    disk = (
        state / "appendonlydir" if has_room else state
    )  # only Redis' file on the small disk, or all
    state.mkdir(mode=0o700)
    if (
        has_room
    ):  # Redis makes its file by renaming one into the folder, which another disk would not allow
        Redis(state, "--appendonly", "yes").start().stop()
        (state / "appendonlydir").rename(stack.folder / "made")
        disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("NOT TESTED: a full disk. To mount a small tmpfs is not allowed here")
    try:
        if has_room:
            shutil.copytree(stack.folder / "made", disk, dirs_exist_ok=True)
        before, store = pids(stack.start()), Store(f"unix://{state}/redis.sock", "probe")
        with closing(store), hammer(stack.port) as codes:
            subprocess.run(["dd", "if=/dev/zero", f"of={disk}/fill", "bs=4k"], capture_output=True)
            died = {0, before["redis"]}
            until(
                lambda: died.add(pids(stack)["redis"]) or len(died) > 5,
                120,
                "Redis cannot write, and ends, again and again",
            )
            more(codes)
            assert has_room or 503 in codes
            (disk / "fill").unlink()
            until(
                lambda: audit_of(store) and is_ready(stack.port) and set(codes[-50:]) == {202},
                what="normal by itself",
            )
        assert set(codes) == ({202} if has_room else {202, 503})
        until(lambda: spooled(state / "spool.db") == 0)
        found = stack.settled()
        assert codes.count(202) <= found["done"] == found["accepted"] <= len(codes)
        assert set(stack.status().values()) == {"RUNNING"}
        assert {name for name, pid in pids(stack).items() if pid != before[name]} == {"redis"}
        stack.stop()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
