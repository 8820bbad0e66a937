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


@pytest.fixture
def crew(trio):
    with hosts() as start:
        made = [start(trio.url), start(trio.url)]
        until(lambda: all(host.ready() for host in made), 20, "both hosts take deliveries")
        yield made


def test_killed_primary_is_bridged_by_the_spool_and_its_replica_goes_on(trio, crew):
    with Load(crew) as load:
        load.more()
        old = trio.primary()
        old.signal(signal.SIGKILL)
        load.more()  # while nobody is the primary
        trio.failed_over(old)
        load.more()
        old.start()
        load.more()
    lost, twice, ledger = settled(trio.url, crew, load)
    print(
        f"\nprimary killed, fsync: {len(load.acked)} acknowledged, {len(lost)} lost, {twice} twice; {dict(load.codes)}; {load.longest_s:.1f} s"
    )
    assert ledger["gap"] == 0
