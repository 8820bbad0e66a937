"""Hosts in network namespaces: one is cut off under load, disappears, and is joined again; and a
primary that is cut off.

Skipped where namespaces may not be made. Clients are on the host that they post to, as a balancer's
would be that still reaches it.
"""

import ctypes
import os
import shutil
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import Store, until
from many import ALL, OPTIONS, PASSWORD, SENTINEL, Load, hosts, nodes, settled
from test_signals import Clock

LIBC = ctypes.CDLL(None, use_errno=True)
HUB = "10.77.0.1"


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise OSError(done.stderr.strip())


class Net:
    """Namespaces on one switch, which is in the first of them: `hub` has 10.77.0.1, the others what
    follows.
    """

    def __init__(self):
        self.names = []
        self.hub = self.add()

    def add(self):
        name = f"whq{os.getpid()}-{len(self.names)}"
        ip("netns", "add", name)
        self.names.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        if len(self.names) == 1:
            ip("-n", name, "link", "add", "switch", "type", "bridge")
            ip("-n", name, "addr", "add", f"{HUB}/24", "dev", "switch")
            ip("-n", name, "link", "set", "switch", "up")
        else:
            n = len(self.names)
            ip(
                "-n",
                name,
                "link",
                "add",
                "cable",
                "type",
                "veth",
                "peer",
                "name",
                f"port{n}",
                "netns",
                self.hub,
            )
            ip("-n", name, "addr", "add", f"10.77.0.{n}/24", "dev", "cable")
            ip("-n", self.hub, "link", "set", f"port{n}", "master", "switch", "up")
            ip("-n", name, "link", "set", "cable", "up")
        return name

    def cut(self, name, *, off=True):
        ip(
            "-n",
            self.hub,
            "link",
            "set",
            f"port{self.names.index(name) + 1}",
            "down" if off else "up",
        )

    def address(self, name):
        return f"10.77.0.{self.names.index(name) + 1}"

    @staticmethod
    def prefix(name):
        """Return what runs a command there, on a machine of that name."""
        return (
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            'hostname "$0"; exec "$@"',
            name,
        )

    @staticmethod
    @contextmanager
    def inside(name):
        """Sockets that this thread makes meanwhile are there."""
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            Path(f"/run/netns/{name}").open() as there,
        ):
            assert LIBC.setns(there.fileno(), 0) == 0
            try:
                yield
            finally:
                assert LIBC.setns(here.fileno(), 0) == 0

    def remove(self):
        for name in self.names:
            ip("netns", "del", name)


@pytest.fixture
def net():
    try:
        made = Net()
    except OSError as error:
        pytest.skip(f"network namespaces may not be made here: {error}")
    yield made
    made.remove()


@pytest.fixture
def clocks(tmp_path):
    """Return the environment of a machine whose clock is wrong by so many seconds."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler: `sh hookq/setup.sh faults` installs one")
    folders = iter(range(10))

    def wrong(by_s):
        folder = tmp_path / str(next(folders))
        folder.mkdir()
        clock = Clock(folder)
        clock.step(by_s)
        return clock.env

    return wrong


def on(net, name, start, url, **more):
    return start(url, prefix=net.prefix(name), inside=lambda: net.inside(name), **more)


@contextmanager
def store_of(net, url):
    """A client in the hub's namespace, where the socket stays."""
    with net.inside(net.hub), closing(Store(url, "probe", timeout_s=2)) as store:
        yield store


def test_host_that_is_cut_off_disappears_and_comes_back_loses_nothing(net, clocks):
    names = [net.add() for _ in range(3)]
    with nodes() as start, hosts() as machine:
        server = start(
            "--requirepass", PASSWORD, "--tcp-keepalive", "3", *OPTIONS, prefix=net.prefix(net.hub)
        )
        url = f"redis://:{PASSWORD}@{HUB}:{server.port}"
        crew = [
            on(net, name, machine, url, names=ALL, **clocks(by_s))
            for name, by_s in zip(names, (0, 60, -60), strict=True)
        ]
        until(lambda: all(host.ready() for host in crew), 20, "three hosts take deliveries")
        gone, name = crew[2], names[2]
        with Load(crew) as load:
            load.more(600)
            with store_of(net, url) as store:
                until(lambda: store.audit().done > 500, 20)
                counters = store.metrics()
                for what in (
                    "wait",
                    "delivery",
                ):  # a clock that is a minute off would be seen in the mean
                    assert counters[f"hs:{what}:github"] / 1e6 / counters["done:github"] < 10
                spoken = {beat.host for beat in store.ingestion().values()}
                assert spoken == set(names)
            net.cut(name)
            until(gone.spooled, 20, "the host that is cut off keeps deliveries in its spool")
            load.more(600)
            gone.kill()  # its connections stay open at Redis: nothing of its end gets through
            until(
                lambda: f"Ingestion on {name} was last heard from" in crew[0].page("/dashboard")[1],
                30,
                "the other hosts' pages say so",
            )
            load.hosts = crew[:2]
            load.more(300)
            kept = gone.spooled()
            net.cut(name, off=False)
            gone.start()
            until(lambda: not gone.spooled(), 30, "its spool is drained")
            load.hosts = crew
            load.more(300)
        with net.inside(net.hub):
            lost, twice, ledger = settled(url, crew, load.acked, limit_s=90)
    print(
        f"\nhost cut off: {len(load.acked)} acknowledged, {len(lost)} lost, {twice} twice; {kept} in its spool; {dict(load.codes)}"
    )
    assert not lost and ledger.gap == 0 and kept > 100


@pytest.mark.parametrize(
    ("durability", "options", "loses"),
    [
        ("fsync", (), True),
        ("fsync", ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"), True),
        ("replicas:1", (), False),
    ],
    ids=["fsync", "fsync, min-replicas-to-write", "replicas"],
)
def test_isolated_primary_loses_only_what_no_replica_confirmed(net, durability, options, loses):
    first, second, third = net.add(), net.add(), net.add()
    secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, *OPTIONS, *options)
    with nodes() as start, hosts() as machine:
        primary = start(*secret, prefix=net.prefix(first))
        replicas = [
            start(
                "--replicaof", net.address(first), str(primary.port), *secret, prefix=net.prefix(n)
            )
            for n in (second, third)
        ]
        until(
            lambda: primary.says("info", "replication").count("state=online") == 2,
            20,
            "the replicas are online",
        )
        config = SENTINEL.format(host=net.address(first), port=primary.port, password=PASSWORD)
        watchers = {
            name: start(
                "--sentinel", "--protected-mode", "no", config=config, prefix=net.prefix(name)
            )
            for name in (first, second, third)
        }
        places = ",".join(f"{net.address(name)}:{node.port}" for name, node in watchers.items())
        until(
            lambda: all(
                "num-other-sentinels\n2" in n.says("sentinel", "master", "jobs")
                for n in watchers.values()
            ),
            30,
        )
        url = f"redis+sentinel://:{PASSWORD}@{places}/jobs"
        beside = on(
            net, first, machine, url, names=("webhookd.py",), DURABILITY=durability
        )  # with the primary, and no worker there
        other = on(net, second, machine, url, DURABILITY=durability)
        until(lambda: beside.ready() and other.ready(), 20)
        with Load([beside, other]) as load:
            load.more()
            before = len(load.acked)
            net.cut(first)
            until(
                lambda: any("role:master" in r.says("info", "replication") for r in replicas),
                30,
                "a replica is the primary",
            )
            other.programs[1].saw("redis.up", 20)  # its worker has left the old one
            load.hosts = [beside]
            load.more()
            load.hosts = [beside, other]
            load.more()
            during = len(load.acked) - before
            net.cut(first, off=False)
            until(
                lambda: "role:slave" in primary.says("info", "replication"),
                60,
                "the old primary knows that it is none any more",
            )
            load.more()
        with net.inside(net.hub):
            lost, twice, ledger = settled(url, [beside, other], load.acked, limit_s=90)
    print(
        f"\n{durability} {options[::2]}, primary cut off: {len(load.acked)} acknowledged, {during} of them meanwhile, {len(lost)} lost, {twice} twice"
    )
    assert set(load.codes) <= {"200", "202"} and ledger.gap == 0
    assert bool(lost) == loses
