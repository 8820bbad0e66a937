"""The URL of Redis: a good one is parsed into hosts and options, a bad one is refused without a part
of its password.
"""

import pytest

from hookq.redis_url import parse
from hookq.store import connection

H, S = ("h", 6379), ("h", 26379)


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "one"),
    [
        ("redis://h", "", (H,), "", "redis://h"),
        (
            "rediss://u:p@h:1/2?ssl_ca_certs=/ca",
            "",
            (("h", 1),),
            "",
            "rediss://u:p@h:1/2?ssl_ca_certs=/ca",
        ),
        ("rediss://h?ssl_ca_certs=/c++/ca", "", (H,), "", "rediss://h?ssl_ca_certs=/c%2B%2B/ca"),
        ("redis://[::1]:1", "", (("::1", 1),), "", "redis://[::1]:1"),
        ("unix:///r.sock?db=1", "", (), "", "unix:///r.sock?db=1"),
        ("unix://u:p@/r.sock", "", (), "", "unix://u:p@/r.sock"),
        ("redis+sentinel://h/jobs", "sentinel", (S,), "jobs", "redis://h:26379"),
        (
            "redis+sentinel://u:p%40@h:1,i,[::1]:2/jobs?db=3",
            "sentinel",
            (("h", 1), ("i", 26379), ("::1", 2)),
            "jobs",
            "redis://u:p%40@h:1?db=3",
        ),
        (
            "rediss+sentinel://h/jobs?ssl_ca_certs=%2Fca&sentinel_password=x",
            "sentinel",
            (S,),
            "jobs",
            "rediss://h:26379?ssl_ca_certs=%2Fca",
        ),
        (
            "redis+sentinel://h/jobs?sentinel_password=a%2Bb+c",
            "sentinel",
            (S,),
            "jobs",
            "redis://h:26379",
        ),
        ("redis+cluster://:p@h,i:7001", "cluster", (H, ("i", 7001)), "", "redis://:p@h:6379"),
        (
            "rediss+cluster://[::1],i/",
            "cluster",
            (("::1", 6379), ("i", 6379)),
            "",
            "rediss://[::1]:6379",
        ),
    ],
)
def test_url_leads_to_hosts(url, kind, hosts, service, one):
    address = parse(url)
    assert (address.kind, address.hosts, address.service, address.one) == (
        kind,
        hosts,
        service,
        one,
    )
    assert "p%40" not in repr(address) and "sentinel_password" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://s3cret@h", "s3cret", "redis+nothing://s3cret@h", "unix+cluster:///s3cret", "redis+sentinel://:s3cret@h", "redis+sentinel://:s3cret@h/",
        "redis+sentinel://:s3cret@h/a/b", "redis+cluster://:s3cret@h/name", "redis+cluster://:s3cret@h?db=1", "redis+cluster://:s3cret@h,",
        "redis+sentinel://:s3cret@,h/jobs", "redis+cluster://:s3cret@h:x", "redis+cluster://:s3cret@h:99999", "redis://:s3cret@h,i",
        "redis://:s3cret@h?sentinel_password=s3cret", "redis+sentinel://:s3cret@h/jobs?nonsense=s3cret", "redis+sentinel://:s3c/s3cret@h/jobs",
        "redis://:s3cret@h/x", "redis://:s3cret@h?db=x", "redis+sentinel://:s3cret@h/jobs?db=x", "redis+cluster://:s3cret@h?ssl_ca_certs=/s3cret",
    ],
)  # fmt: skip
def test_bad_url_is_refused_without_a_part_of_its_password(url):
    with pytest.raises(ValueError, match="URL|redis") as error:
        parse(url)
    assert "s3cret" not in str(error.value)


def test_plus_in_an_option_is_no_space():
    assert parse("redis+sentinel://h/jobs?sentinel_password=a%2Bb+c").options == {
        "sentinel_password": "a+b+c"
    }


def test_node_that_named_an_owner_that_was_no_good_is_asked_last(monkeypatch):
    asked = []

    class Node:
        def __init__(self, host, **_):
            self.host = host

        def set_response_callback(self, *_):
            pass

        def close(self):
            pass

        # `old` is cut off from the others, and takes itself for the owner.
        def execute_command(self, _):
            asked.append(self.host)
            owner = b"old" if self.host == "old" else b"new"
            return [[0, 16383, [owner, 1, b"id"], [b"other", 1, b"id"]]]

    monkeypatch.setattr(connection.redis, "Redis", Node)
    who = connection.SlotOwner([("old", 1), ("new", 1)], {})
    assert [who.discover_master("") for _ in range(3)] == [("old", 1), ("new", 1), ("new", 1)]
    assert asked[:2] == ["old", "other"] or asked[:2] == ["old", "new"]
