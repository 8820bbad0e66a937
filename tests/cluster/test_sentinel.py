"""Three Sentinels, a primary and two replicas: the primary is killed, frozen and asked to stand
down, all under load.
"""

import signal

import pytest
from conftest import until
from many import OPTIONS, PASSWORD, SENTINEL, Load, answers, bridged, hosts, nodes, settled

LOCKED = f"sentinel parallel-syncs jobs 2\nrequirepass {PASSWORD}-s\nsentinel sentinel-pass {PASSWORD}-s\n"


class Trio:
    """`url` leads to whoever is the primary; `servers` are all that could be."""

    def __init__(self, start):
        secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, *OPTIONS)
        first = start(*secret)
        self.servers = [
            first,
            *(start("--replicaof", "127.0.0.1", str(first.port), *secret) for _ in range(2)),
        ]
        until(
            lambda: all(server.says("ping") == "PONG" for server in self.servers),
            what="the servers answer",
        )
        until(
            lambda: "connected_slaves:2" in first.says("info", "replication"),
            20,
            "the replicas are here",
        )
        until(
            lambda: "state=online" in first.says("info", "replication").split("slave1:")[1],
            20,
            "both are online",
        )
        config = SENTINEL.format(host="127.0.0.1", port=first.port, password=PASSWORD) + LOCKED
        self.sentinels = [start("--sentinel", config=config) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        self.url = f"redis+sentinel://:{PASSWORD}@{hosts}/jobs?sentinel_password={PASSWORD}-s"
        knows = "num-other-sentinels\n2"
        until(
            lambda: all(
                knows in node.says("sentinel", "master", "jobs") for node in self.sentinels
            ),
            20,
            "the Sentinels know each other",
        )
        until(
            lambda: all(
                "num-slaves\n2" in node.says("sentinel", "master", "jobs")
                for node in self.sentinels
            ),
            20,
            "and the replicas",
        )

    def primary(self):
        answer = self.sentinels[0].says("sentinel", "get-master-addr-by-name", "jobs").split()
        return next(server for server in self.servers if answer[1:] == [str(server.port)])

    def failed_over(self, old):
        until(lambda: self.primary() is not old and answers(self.url), 30, "another primary")


@pytest.fixture
def trio():
    with nodes() as start:
        yield Trio(start)


def freeze(trio, old):
    old.signal(signal.SIGSTOP)


def kill(trio, old):
    old.signal(signal.SIGKILL)


def stand_down(trio, old):
    assert trio.sentinels[0].says("sentinel", "failover", "jobs") == "OK"


@pytest.mark.parametrize("durability", ["fsync", "replicas:1"])
@pytest.mark.parametrize(
    "end", [kill, freeze, stand_down], ids=["killed", "frozen", "asked to stand down"]
)
def test_failed_primary_is_bridged_by_the_spool(trio, end, durability):
    old = trio.primary()

    def back():
        old.start() if end is kill else old.signal(signal.SIGCONT)
        until(
            lambda: "role:slave" in old.says("info", "replication"),
            60,
            "the old one knows that it is none any more",
        )

    load, lost, twice, ledger = bridged(
        trio.url, durability, lambda: end(trio, old), lambda: trio.failed_over(old), back
    )
    print(
        f"\n{durability}, {end.__name__}: {len(load.acked)} acknowledged, {len(lost)} lost, {twice} twice; {dict(load.codes)}, the longest answer {load.longest_s:.2f} s"
    )
    assert set(load.codes) <= {"200", "202"} and ledger.gap == 0
    assert (
        not lost or durability == "fsync"
    )  # what was acknowledged and had not reached a replica is lost with its primary


def test_missing_replicas_send_deliveries_to_the_spool(trio):
    replicas = [server for server in trio.servers if server is not trio.primary()]
    with hosts() as start:
        one = start(trio.url, DURABILITY="replicas:1")
        until(one.ready, 20)
        with Load([one]) as load:
            load.more()
            for replica in replicas:
                replica.signal(signal.SIGKILL)
            until(one.spooled, 20, "deliveries are in the spool")
            load.more()
            assert "DURABILITY asks for 1" in one.programs[0].saw("redis.away")[0]["why"]
            for replica in replicas:
                replica.start()
        lost, twice, ledger = settled(trio.url, [one], load.acked)
    assert not lost and not twice and set(load.codes) == {"202"} and ledger.gap == 0
