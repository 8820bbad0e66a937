"""What the tests stand on: a private redis-server on a unix socket, programs as real processes,
real sockets.

No test sleeps for a result: `until` polls with a limit. Time and dice are arguments of the code
under test. A limit is far above what a slow machine needs, and below what a fault would take.
"""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import pytest

from hookq import log
from hookq.job import Delivery, JobIds
from hookq.schemes import SCHEMES
from hookq.signing import Verifier, sign
from hookq.store import accept as packing
from hookq.store import dead as dead_letters
from hookq.store import figures, reading
from hookq.store.connection import reaching
from hookq.store.jobs import Jobs
from hookq.store.records import Act, Search

ROOT = Path(__file__).resolve().parent.parent
SECRET = "a-secret-of-the-tests-7f3a91"
GITHUB = Verifier(SCHEMES["github"], (SECRET.encode(),))
NOW = 1_700_000_000.0


def until(condition, limit_s=30.0, what=""):
    """Return the first true value of condition(), asked again and again for at most limit_s."""
    end = time.monotonic() + limit_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"not within {limit_s} s: {what or condition}"
        time.sleep(0.005)


_reserved = deque(maxlen=100)  # ports of the last tests; each is let go with its socket


def free_port():
    """Return a port that nobody else is given before the test's server binds it, as a port or as
    the near end of a connection: it is bound here, too, and never listened on.
    """
    if len(_reserved) == _reserved.maxlen:
        _reserved.popleft().close()
    sock = socket.socket()
    _reserved.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def whole_lines(path):
    """Return the lines of a file that is being written: what has no end yet is not one."""
    return path.read_text(errors="replace").rpartition("\n")[0].splitlines()


def accept(client, batch):
    """Accept each (delivery, dedupe_s) in one transaction, as ingestion sends it; return the ids of
    their jobs. Another id than the delivery's own says that it is a duplicate of that job.
    """
    with reaching():
        link = client.redis.connection_pool.get_connection()
        try:
            link.send_packed_command([packing.accept_packed(batch)])
            *_, ids = [link.read_response() for _ in range(len(batch) + 3)]
        except BaseException:
            link.disconnect()  # replies may be left in it
            raise
        finally:
            client.redis.connection_pool.release(link)
    return packing.accepted(ids)


class Store(Jobs):
    """All that can be done with jobs, by one client: what no program may, and tests do."""

    accept = accept


# What the programs call as functions of a client.
for room in (dead_letters, reading, figures):
    for verb in vars(room).values():
        if getattr(verb, "__module__", "") == room.__name__:
            setattr(Store, verb.__name__, verb)


class Redis:
    """A redis-server of our own. `url` is its address; it can be stopped, started and frozen."""

    def __init__(self, folder, *options):
        self.folder, self.options, self.path = folder, options, f"{folder}/r.sock"
        self.url, self.process = f"unix://{self.path}", None

    def start(self):
        fixed = ["--port", "0", "--unixsocket", self.path, "--dir", str(self.folder), "--save", ""]
        self.process = subprocess.Popen(
            ["redis-server", *fixed, *self.options], stdout=subprocess.DEVNULL
        )
        store = Store(self.url, "probe")

        def answers():
            try:
                return store.redis.ping()
            except Exception:
                return False

        until(answers, what="redis-server answers")
        store.close()
        return self

    def stop(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        self.process.wait(30)


@contextmanager
def own_redis(*options):
    folder = Path(tempfile.mkdtemp(prefix="hq"))  # a short path: unix sockets end at 107 bytes
    server = Redis(folder, *options).start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server():
    if not shutil.which("redis-server"):
        pytest.fail(
            "redis-server is not installed: `make test` installs it, or apt-get install redis-server"
        )
    with own_redis() as server:
        yield server


@pytest.fixture
def private_redis():
    """A redis-server that the test may stop, freeze or fill."""
    with own_redis("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture
def small_redis():
    """One of 8 MB."""
    with own_redis("--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        yield server


def fill(store):
    """Make Redis refuse whatever needs memory."""
    store.redis.config_set("maxmemory", "1kb")


@pytest.fixture
def store(redis_server):
    """An empty store, and the client of worker w1."""
    made = Store(redis_server.url, "w1")
    made.redis.flushall()
    yield made
    made.close()


@pytest.fixture
def other(redis_server, store):
    """The same Redis, as worker w2."""
    made = Store(redis_server.url, "w2")
    yield made
    made.close()


_ids = JobIds(7)
_count = itertools.count()


def delivery(
    source="github",
    delivery_id=None,
    body=b'{"n":1}',
    head=b"Content-Type: application/json\r\n",
    **more,
):
    """Return a delivery that was never seen before, unless delivery_id says otherwise."""
    number = next(_count)
    name = f"d-{number}" if delivery_id is None else delivery_id
    return Delivery(_ids.make(NOW + number), source, name, "push", NOW, head, body, **more)


def accepted(store, count=1, **more):
    """Accept `count` new deliveries; return them."""
    made = [delivery(**more) for _ in range(count)]
    assert store.accept([(d, 604_800) for d in made]) == [d.id for d in made]
    return made


def act(by="command", batch="b"):
    return Act(by, "tester", batch)


def dead_ids(store):
    return [id for id, _ in store.search_dead(Search(), 0, 100_000)[1]]


def dead(store):
    return store.parked(dead_ids(store))


class Program:
    """One of our programs as a process; `lines` are the log lines it has written so far."""

    def __init__(self, folder, name, *args, env=None, prefix=(), **popen):
        self.log = folder / f"{name}-{next(_count)}.log"
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "PYTHONPATH")}
        with self.log.open("wb") as out:
            command = [*prefix, sys.executable, "-X", "dev", str(ROOT / name), *args]
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
                env={**keep, **(env or {})},
                cwd=folder,
                **popen,
            )

    @property
    def text(self):
        return self.log.read_text(errors="replace")

    @property
    def lines(self):
        return [json.loads(line) for line in whole_lines(self.log) if line.startswith("{")]

    def events(self, name):
        return [line for line in self.lines if line["event"] == name]

    def saw(self, name, limit_s=30.0):
        return until(lambda: self.events(name), limit_s, f"{name} in {self.text}")

    def end(self, number=signal.SIGTERM, limit_s=60):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(limit_s)


@pytest.fixture
def running(tmp_path, redis_server, store):
    """running(name, *args, **settings) starts a program against the test's Redis, and ends it after
    the test.
    """
    started = []

    def run(name, *args, redis=None, **settings):
        env = {
            "WEBHOOK_SECRET": SECRET,
            "DASHBOARD_PASSWORD": "a-password",
            "REDIS_URL": (redis or redis_server).url,
        }
        env["STATE_DIR"] = str(tmp_path / "state")
        env["WEBHOOKS_FILE"] = str(tmp_path / "webhooks.toml")
        if not (tmp_path / "webhooks.toml").exists():
            (tmp_path / "webhooks.toml").write_text(
                '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\n'
            )
        program = Program(
            tmp_path, name, *args, env={**env, **{k: str(v) for k, v in settings.items()}}
        )
        started.append(program)
        return program

    yield run
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


def signed(body=b'{"n":1}', delivery_id=None, event="push", source=GITHUB):
    """Return the headers of a signed delivery."""
    return sign(source, body, time.time(), delivery_id or f"s-{next(_count)}", event)


def request(body=b'{"n":1}', path="/api/webhooks/github", headers=None, method="POST"):
    """Return the bytes of a whole request, signed unless headers are given."""
    lines = {
        "Host": "localhost",
        "Content-Length": str(len(body)),
        "Content-Type": "application/json",
    }
    lines.update(signed(body) if headers is None else headers)
    head = (
        f"{method} {path} HTTP/1.1\r\n"
        + "".join(f"{k}: {v}\r\n" for k, v in lines.items())
        + "\r\n"
    )
    return head.encode("latin-1") + body


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """In-process code under test logs into this list instead of standard output."""
    lines = []
    monkeypatch.setattr(
        log, "event", lambda name, /, level="info", **facts: lines.append((name, facts))
    )
    return lines


class Client:
    """One connection; `answer` reads one response, `rest` until the end."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), 10)
        self.file = self.sock.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)
        return self

    def answer(self):
        """Return (status line, headers, body)."""
        line = self.file.readline().decode("latin-1").rstrip("\r\n")
        headers = {}
        while header := self.file.readline().decode("latin-1").rstrip("\r\n"):
            name, _, value = header.partition(": ")
            headers[name.lower()] = value
        return line, headers, self.file.read(int(headers.get("content-length", 0)))

    def rest(self):
        return self.file.read()


def ask(port, data):
    with Client(port) as client:
        return client.send(data).answer()


def is_ready(port):
    try:
        return ask(port, b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")[0].startswith("HTTP/1.1 200")
    except OSError:
        return False


@pytest.fixture
def serve(running):
    """serve(**settings) starts ingestion and returns (program, port) once deliveries go to Redis:
    after a second without it, they would go to the spool.
    """

    def started(**settings):
        port = free_port()
        program = running("webhookd.py", PORT=port, **settings)
        program.saw("redis.up")
        until(lambda: is_ready(port), what=program.text)
        return program, port

    return started
