"""Six nodes of a Cluster, under load: the primary of our slot is killed, and the slot is moved to
another, key by key.
"""

import os
import signal
import subprocess

import pytest
from conftest import until
from many import OPTIONS, PASSWORD, Load, answers, bridged, fresh_ports, hosts, nodes, pair, settled

from hookq.store.connection import SlotOwner

SLOT = SlotOwner.SLOT
CLUSTER = (
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    "1500",
    "--requirepass",
    PASSWORD,
    "--masterauth",
    PASSWORD,
    *OPTIONS,
)


class Six:
    """`url` leads to the primary of our slot, by any of two nodes that are not it."""

    def __init__(self, start):
        self.nodes = [start(*CLUSTER, port=port) for port in fresh_ports(6)]
        until(
            lambda: all(node.says("ping") == "PONG" for node in self.nodes), 20, "the nodes answer"
        )
        where = [f"127.0.0.1:{node.port}" for node in self.nodes]
        create = [
            "redis-cli",
            "--cluster",
            "create",
            *where,
            "--cluster-replicas",
            "1",
            "--cluster-yes",
        ]
        done = subprocess.run(
            create,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **self.nodes[0].login},
        )
        assert done.returncode == 0, done.stdout
        until(
            lambda: all("cluster_state:ok" in node.says("cluster", "info") for node in self.nodes),
            30,
            "the Cluster is one",
        )
        seeds = [node for node in self.nodes if node is not self.owner()][:2]
        self.url = f"redis+cluster://:{PASSWORD}@" + ",".join(
            f"127.0.0.1:{node.port}" for node in seeds
        )
        until(lambda: answers(self.url), 20, "it takes writes")

    def id(self, node):
        return node.says("cluster", "myid")

    def owner(self):
        """Return the primary of our slot, as one that lives sees it."""
        for node in self.nodes:
            for line in node.says("cluster", "nodes").splitlines():
                id, where, flags, _, _, _, _, _, *slots = line.split()
                ours = any(
                    int(a) <= SLOT <= int(b or a)
                    for a, _, b in (slot.partition("-") for slot in slots if "[" not in slot)
                )
                if ours and "master" in flags and "fail" not in flags:
                    return next(node for node in self.nodes if f":{node.port}@" in where)
        return None

    def move(self, source, target, meanwhile):
        """Move our slot as redis-cli --cluster reshard does; `meanwhile` is called when half of the
        keys have moved.
        """
        assert target.says("cluster", "setslot", str(SLOT), "importing", self.id(source)) == "OK"
        assert source.says("cluster", "setslot", str(SLOT), "migrating", self.id(target)) == "OK"
        half = int(source.says("cluster", "countkeysinslot", str(SLOT))) // 2
        while keys := source.says("cluster", "getkeysinslot", str(SLOT), "20").split():
            moved = source.says(
                "migrate",
                "127.0.0.1",
                str(target.port),
                "",
                "0",
                "5000",
                "auth",
                PASSWORD,
                "keys",
                *keys,
            )
            assert moved in ("OK", "NOKEY"), moved
            half -= len(keys)
            if half < 0:
                meanwhile()
                half = 1 << 30
        for node in (target, source, *self.nodes):
            node.says(
                "cluster", "setslot", str(SLOT), "node", self.id(target)
            )  # replicas refuse: they hear of it


@pytest.fixture
def six():
    with nodes() as start:
        yield Six(start)


@pytest.mark.parametrize("durability", ["fsync", "replicas:1"])
def test_killed_primary_of_our_slot_is_bridged(six, durability):
    old = six.owner()

    def elsewhere():
        until(lambda: six.owner() not in (None, old) and answers(six.url), 30, "another primary")

    load, lost, twice, ledger = bridged(
        six.url, durability, lambda: old.signal(signal.SIGKILL), elsewhere, old.start
    )
    print(
        f"\n{durability}, primary of the slot killed: {len(load.acked)} acknowledged, {len(lost)} lost, {twice} twice; {dict(load.codes)}"
    )
    assert set(load.codes) == {"202"} and ledger.gap == 0
    assert not lost or durability == "fsync"


def test_slot_that_moves_under_load_loses_and_doubles_nothing(six):
    with hosts() as start:
        crew = pair(start, six.url)
        with Load(crew) as load:
            load.more()
            source = six.owner()
            target = next(
                n
                for n in six.nodes
                if n is not source and "role:master" in n.says("info", "replication")
            )
            six.move(source, target, load.more)  # half of the keys are here, half there
            assert any(host.programs[0].events("spool.begin") for host in crew)
            until(lambda: six.owner() is target, 20, "the slot has moved")
            load.more()
        lost, twice, ledger = settled(six.url, crew, load.acked)
    print(
        f"\nslot moved: {len(load.acked)} acknowledged, {len(lost)} lost, {twice} twice; {dict(load.codes)}; {load.longest_s:.2f} s"
    )
    assert not lost and set(load.codes) == {"202"} and ledger.gap == 0
    assert ledger.accepted == len(load.acked)
    assert source.says("cluster", "countkeysinslot", str(SLOT)) == "0"
