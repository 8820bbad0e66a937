"""Data of a newer webhookd: an older version refuses to start on it, and loses nothing by that."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from conftest import ROOT, ask, delivery, fill, free_port, request, until

from hookq import launch
from hookq.ingest.intake import Intake
from hookq.ingest.spool import Spool, SpoolFailed
from hookq.settings import load
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.keys import key

SENTENCE = (
    "This Redis holds data of a newer webhookd (format 2; this one knows 1): start the newer "
    "version, or use another Redis."
)


def mark(server):
    with closing(Client(server.url, "w1")) as client:
        client.redis.set(key("format"), 2)


@pytest.fixture
def newer(store):
    store.redis.set(key("format"), 2)
    yield
    store.redis.delete(key("format"))


def test_fresh_redis_is_marked_with_the_format_and_then_known(store):
    for _ in range(2):
        store.check_format()
        assert store.redis.get(key("format")) == b"1"


def test_data_of_a_newer_version_is_refused_and_left_as_it_is(store, newer):
    with pytest.raises(NewerData) as refused:
        store.check_format()
    assert str(refused.value) == SENTENCE and store.redis.get(key("format")) == b"2"


def test_format_that_another_version_writes_meanwhile_is_seen(store, newer):
    store.redis.set_response_callback("GET", lambda *_, **__: None)  # it was not there just now
    with pytest.raises(NewerData):
        store.check_format()


def test_full_redis_that_cannot_be_marked_is_used(small_redis):
    with closing(Client(small_redis.url, "w1")) as client:
        fill(client)
        client.check_format()
        client.redis.config_set("maxmemory", "8mb")
        assert not client.redis.exists(key("format"))


def test_redis_that_cannot_be_asked_is_not_taken_for_an_older_one():
    with pytest.raises(Away):
        Client("unix:///nowhere/r.sock", "w1").check_format()


def test_intake_does_not_connect_to_newer_data_and_says_why(redis_server, newer):
    woken = threading.Event()
    intake = Intake(redis_server.url, "ingest-a-1-x", woken.set)
    intake.start()
    assert woken.wait(10) and not intake.adopt() and intake.why == SENTENCE


def test_delivery_beside_newer_data_is_kept_in_the_spool_R1(running, store, newer, tmp_path):
    port = free_port()
    ingestion = running("webhookd.py", PORT=port)
    until(lambda: ingestion.events("redis.unreachable"))
    assert ask(port, request())[0].startswith("HTTP/1.1 202")
    assert Spool(tmp_path / "state/spool.db", 0).size()[0] == 1
    assert ingestion.events("redis.unreachable")[0]["why"] == SENTENCE
    assert not store.sources()
    store.redis.delete(key("format"))
    until(lambda: store.audit().ready == 1, what="it is drained")


def test_worker_ends_beside_newer_data_without_a_move(running, store, newer):
    store.accept([(delivery(), 60)])
    before = store.redis.xrange(key("ready", "github"))
    worker = running("worker.py")
    assert worker.process.wait(15) == 78 and SENTENCE in worker.text.splitlines()
    assert worker.events("redis.newer")[0]["level"] == "critical"
    assert store.redis.xrange(key("ready", "github")) == before and not store.holders()


def test_worker_that_waited_for_redis_looks_before_its_first_job(running, private_redis):
    mark(private_redis)
    private_redis.stop()
    worker = running("worker.py", redis=private_redis)
    worker.saw("redis.away")
    private_redis.start()
    assert worker.process.wait(15) == 78 and SENTENCE in worker.text


def test_dashboard_ends_beside_newer_data(running, newer):
    page = running("dashboard.py", DASHBOARD_PORT=free_port())
    assert page.process.wait(15) == 78 and SENTENCE in page.text.splitlines()
    assert page.events("redis.newer")[0]["level"] == "critical"


def test_dashboard_that_waited_for_redis_ends_as_it_comes(running, private_redis):
    mark(private_redis)
    private_redis.stop()
    page = running("dashboard.py", redis=private_redis, DASHBOARD_PORT=free_port())
    page.saw("process.start")
    private_redis.start()
    assert page.process.wait(15) == 78 and SENTENCE in page.text


@pytest.mark.parametrize("act", ["--view", "--audit", "--flush"])
def test_command_refuses_newer_data(redis_server, newer, tmp_path, act):
    env = {"REDIS_URL": redis_server.url, "STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, ROOT / "dlqctl.py", act], env=env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (78, "", f"{SENTENCE}\n")


def test_make_run_says_what_it_waits_for(redis_server, newer, tmp_path, monkeypatch):
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    settings = load({"STATE_DIR": str(tmp_path)}, root=tmp_path, sources=False)
    assert launch.describe_redis(settings)[1] == [SENTENCE]


def test_spool_of_a_newer_version_is_refused_as_such_and_kept(tmp_path):
    path = tmp_path / "spool.db"
    old = Spool(path, 1 << 30)
    old.accept([(delivery(), 60)])
    old.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    calls = (
        lambda: old.accept([(delivery(), 60)]),
        lambda: old.oldest(1, 1),
        lambda: old.remove([1]),
        old.size,
    )
    for call in [*calls, *calls]:
        with pytest.raises(
            SpoolFailed,
            match=r"spool\.db was written by a newer webhookd \(format 2; this one knows 1\)",
        ):
            call()
    assert path.read_bytes() == before
