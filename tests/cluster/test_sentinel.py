"""Three Sentinels, a primary and two replicas: the primary is killed, frozen and asked to stand down, all under load."""

import signal

import pytest
from conftest import until
from many import OPTIONS, PASSWORD, Load, answers, hosts, nodes, settled

SENTINEL = """sentinel monitor jobs 127.0.0.1 {port} 2
sentinel auth-pass jobs {password}
sentinel down-after-milliseconds jobs 1000
sentinel failover-timeout jobs 3000
sentinel parallel-syncs jobs 2
requirepass {password}-s
sentinel sentinel-pass {password}-s
"""


class Trio:
    """`url` leads to whoever is the primary; `servers` are all that could be."""

    def __init__(self, start):
        secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, *OPTIONS)
        first = start(*secret)
        self.servers = [first, *(start("--replicaof", "127.0.0.1", str(first.port), *secret) for _ in range(2))]
        until(lambda: all(self.says(server, "ping") == "PONG" for server in self.servers), what="the servers answer")
        until(lambda: "connected_slaves:2" in self.says(first, "info", "replication"), 20, "the replicas are here")
        until(lambda: "state=online" in self.says(first, "info", "replication").split("slave1:")[1], 20, "both are online")
        config = SENTINEL.format(port=first.port, password=PASSWORD)
        self.sentinels = [start("--sentinel", config=config) for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.sentinels)
        self.url = f"redis+sentinel://:{PASSWORD}@{hosts}/jobs?sentinel_password={PASSWORD}-s"
        knows = "num-other-sentinels\n2"
        until(lambda: all(knows in self.asked(node, "master", "jobs") for node in self.sentinels), 20, "the Sentinels know each other")
        until(lambda: all("num-slaves\n2" in self.asked(node, "master", "jobs") for node in self.sentinels), 20, "and the replicas")

    @staticmethod
    def says(server, *command):
        return server.says("--no-auth-warning", "-a", PASSWORD, *command) or ""

    @staticmethod
    def asked(sentinel, *command):
        return sentinel.says("--no-auth-warning", "-a", f"{PASSWORD}-s", "sentinel", *command) or ""

    def primary(self):
        answer = self.asked(self.sentinels[0], "get-master-addr-by-name", "jobs").split()
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
    assert trio.asked(trio.sentinels[0], "failover", "jobs") == "OK"


@pytest.mark.parametrize("durability", ["fsync", "replicas:1"])
@pytest.mark.parametrize("end", [kill, freeze, stand_down], ids=["killed", "frozen", "asked to stand down"])
def test_primary_that_fails_is_bridged_by_the_spool_and_a_replica_goes_on(trio, end, durability):
    with hosts() as start:
        crew = [start(trio.url, DURABILITY=durability) for _ in range(2)]
        until(lambda: all(host.ready() for host in crew), 20, "both hosts take deliveries")
        with Load(crew) as load:
            load.more()
            old = trio.primary()
            end(trio, old)
            load.more()  # while nobody is the primary
            trio.failed_over(old)
            load.more()
            old.start() if end is kill else old.signal(signal.SIGCONT)
            load.more()
            until(lambda: "role:slave" in trio.says(old, "info", "replication"), 60, "the old one knows that it is none any more")
        lost, twice, ledger = settled(trio.url, crew, load)
    print(f"\n{durability}, {end.__name__}: {len(load.acked)} acknowledged, {len(lost)} lost, {twice} twice; {told(load)}")
    assert set(load.codes) <= {"200", "202"} and ledger["gap"] == 0
    assert not lost or durability == "fsync"  # what was acknowledged and had not reached a replica is lost with its primary


def told(load):
    return f"{dict(load.codes)}, the longest answer {load.longest_s:.2f} s"


def test_replicas_that_are_gone_send_deliveries_to_the_spool_and_drain_it_when_they_are_back(trio):
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
        lost, twice, ledger = settled(trio.url, [one], load)
    assert not lost and not twice and set(load.codes) == {"202"} and ledger["gap"] == 0
