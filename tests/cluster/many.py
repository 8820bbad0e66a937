"""What the tests of more than one machine stand on: servers on TCP, hosts with both programs,
clients, and the verdict.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path

from conftest import SECRET, Program, Store, free_port, signed, until
from test_dashboard import LOGIN

from hookq.ingest.spool import Spool
from hookq.store.connection import Away, connect

HANDLER = """
import json, os, pathlib
file = os.open(pathlib.Path(__file__).with_name("ran"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def handle(delivery):
    os.write(file, b"%d\\n" % json.loads(delivery.body)["n"])
"""
TOML = """[sources.github]
scheme = "github"
secrets = ["env:WEBHOOK_SECRET"]
handler = "h.py:handle"
retry_base_s = 0.2
"""
PASSWORD = "a-password-of-redis"
SENTINEL = """sentinel monitor jobs {host} {port} 2
sentinel auth-pass jobs {password}
sentinel down-after-milliseconds jobs 1000
sentinel failover-timeout jobs 3000
"""
ALL = ("webhookd.py", "worker.py", "dashboard.py")
# Of the primary and its replicas; a replica that was away for a moment goes on where it was.
OPTIONS = (
    "--appendonly",
    "yes",
    "--appendfsync",
    "always",
    "--save",
    "",
    "--repl-diskless-sync-delay",
    "0",
    "--repl-timeout",
    "5",
)


class Node:
    """A server on a port of its own: `config` is what its file says, `program` may be another make
    of it.
    """

    def __init__(self, *options, port=None, program="redis-server", config="", prefix=()):
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="hn")), port or free_port()
        (self.folder / "conf").write_text(config)
        where = [str(self.folder / "conf"), "--port", str(self.port), "--dir", str(self.folder)]
        self.prefix, self.command, self.process = prefix, [*prefix, program, *where, *options], None
        found = re.search(r"requirepass (\S+)", " ".join((config, *options)))
        self.login = {"REDISCLI_AUTH": found[1]} if found else {}

    def start(self):
        if self.process:
            self.process.wait(10)  # for who was killed
        with (self.folder / "log").open("ab") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        return self

    def says(self, *command):
        """Return what it answers to whoever has its password, as text; "" when it does not."""
        asking = [*self.prefix, "redis-cli", "-p", str(self.port), *command]
        done = subprocess.run(
            asking, capture_output=True, text=True, timeout=20, env={**os.environ, **self.login}
        )
        return (
            ""
            if done.returncode or "Could not connect" in done.stderr + done.stdout
            else done.stdout.strip()
        )

    def signal(self, number):
        self.process.send_signal(number)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def nodes():
    """start(*options, …) starts a Node, which ends with the test."""
    made = []

    def start(*options, **more):
        made.append(Node(*options, **more).start())
        return made[-1]

    try:
        yield start
    finally:
        for node in made:
            node.remove()


class Host:
    """A machine: its own STATE_DIR, ingestion and worker, and a handler that notes what it ran."""

    def __init__(
        self, url, *, prefix=(), handler=HANDLER, names=ALL[:2], inside=nullcontext, **settings
    ):
        self.names, self.inside = names, inside  # `inside` is entered by who connects to it
        self.folder, self.port, self.prefix = (
            Path(tempfile.mkdtemp(prefix="hh")),
            free_port(),
            list(prefix),
        )
        (self.folder / "h.py").write_text(handler)
        (self.folder / "w.toml").write_text(TOML)
        self.env = {
            "WEBHOOK_SECRET": SECRET,
            "DASHBOARD_PASSWORD": "a-password",
            "REDIS_URL": url,
            "PORT": str(self.port),
        }
        self.env["DASHBOARD_PORT"] = str(free_port())
        self.env |= {
            "STATE_DIR": f"{self.folder}/v",
            "WEBHOOKS_FILE": f"{self.folder}/w.toml",
            **settings,
        }
        self.start()

    def start(self):
        self.programs = [self.run(name) for name in self.names]

    def run(self, name, *args):
        return Program(self.folder, name, *args, env=self.env, prefix=self.prefix)

    @property
    def ran(self):
        path = self.folder / "ran"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def spooled(self):
        with closing(Spool(Path(self.env["STATE_DIR"], "spool.db"), 1 << 30)) as spool:
            return spool.size()[0]

    def ready(self):
        with (
            suppress(OSError, http.client.HTTPException),
            closing(self.connection(5)) as connection,
        ):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200

    def connection(self, limit_s, port=None):
        made = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=limit_s)
        with self.inside():
            made.connect()
        return made

    def page(self, path):
        """Return (status, text) of a page of its dashboard."""
        with closing(self.connection(10, int(self.env["DASHBOARD_PORT"]))) as connection:
            connection.request("GET", path, headers=LOGIN)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def kill(self):
        for program in self.programs:
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait()

    def remove(self):
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def hosts():
    """start(url, …) starts a Host, which ends with the test."""
    made = []

    def start(url, **more):
        made.append(Host(url, **more))
        return made[-1]

    try:
        yield start
    finally:
        for host in made:
            host.remove()


class Load:
    """Clients that post to hosts in turn until they are acknowledged, as senders do, and remember
    by what answer.
    """

    def __init__(self, hosts, clients=4):
        self.hosts, self.clients = hosts, clients
        self.lock, self.ended, self.number = threading.Lock(), threading.Event(), 0
        self.acked, self.codes, self.longest_s = set(), Counter(), 0.0

    def __enter__(self):
        self.threads = [
            threading.Thread(target=self._client, args=(n,)) for n in range(self.clients)
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        for thread in self.threads:
            thread.join(60)

    def _client(self, turn):
        while not self.ended.wait(0.005):
            with self.lock:
                self.number += 1
                n = self.number
            for _ in range(300):
                if self._post(n, self.hosts[(n + turn) % len(self.hosts)]):
                    break
                time.sleep(0.1)

    def _post(self, n, host):
        body, began = json.dumps({"n": n}).encode(), time.monotonic()
        headers = {"Content-Type": "application/json", **signed(body, delivery_id=f"many-{n}")}
        try:
            with closing(host.connection(10)) as connection:
                connection.request("POST", "/api/webhooks/github", body, headers)
                code = str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            code = type(error).__name__
        with self.lock:
            self.codes[code] += 1
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            if code in ("200", "202"):
                self.acked.add(n)
        return code in ("200", "202")

    def more(self, count=300, limit_s=60):
        """Wait until that many more are acknowledged."""
        before = len(self.acked)
        until(
            lambda: len(self.acked) >= before + count,
            limit_s,
            f"{count} more acknowledged; {self.codes}",
        )


def pair(start, url, **settings):
    """Start two hosts, and wait until both take deliveries."""
    crew = [start(url, **settings) for _ in range(2)]
    until(lambda: all(host.ready() for host in crew), 20, "both hosts take deliveries")
    return crew


def bridged(url, durability, fail, elsewhere, back):
    """Under load on two hosts: let the primary fail, wait for one elsewhere, let the old one come
    back.

    Return (load, numbers that were lost, how many ran twice, the ledger).
    """
    with hosts() as start:
        crew = pair(start, url, DURABILITY=durability)
        with Load(crew) as load:
            load.more()
            for step in (fail, elsewhere, back):
                step()
                load.more()  # after the first, while nobody is the primary
        return load, *settled(url, crew, load.acked)


def settled(url, crew, acked, limit_s=60):
    """Wait until nothing is owed; return (numbers that were acknowledged and never ran, how many
    ran twice, the ledger).
    """
    store = Store(url, "probe", timeout_s=2)

    def owed():
        with suppress(Away):
            found = store.audit()
            return not any(getattr(found, name) for name in ("ready", "leased", "retry")) and found

    until(owed, limit_s, "nothing is ready, leased or in retry")
    until(lambda: not any(host.spooled() for host in crew), limit_s, "the spools are empty")
    ledger = until(owed, limit_s, "nothing is ready, leased or in retry")
    store.close()
    ran = [n for host in crew for n in host.ran]
    return acked - set(ran), len(ran) - len(set(ran)), ledger


def answers(url):
    """Tell whether this Redis takes writes."""
    client = connect(url, 2, "probe")
    try:
        return client.set("{hookq}:probe", "1", ex=5)
    except Exception:
        return False
    finally:
        client.close()


def fresh_ports(count):
    """Return ports whose cluster bus (10,000 more) is free, too."""
    found = []
    while len(found) < count:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1] - 20_000
            with suppress(OSError, OverflowError):
                bus.bind(("127.0.0.1", port + 10_000))
                with socket.socket() as own:
                    own.bind(("127.0.0.1", port))
                    found.append(port)
    return found
