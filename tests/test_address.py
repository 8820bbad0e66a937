"""The URL of Redis, taken apart: what is right leads somewhere, what is wrong is refused without a part of its password."""

import pytest

from hookq.address import parse

H, S = ("h", 6379), ("h", 26379)


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "one"),
    [
        ("redis://h", "", (H,), "", "redis://h"),
        ("rediss://u:p@h:1/2?ssl_ca_certs=/ca", "", (("h", 1),), "", "rediss://u:p@h:1/2?ssl_ca_certs=/ca"),
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
        ("redis+cluster://:p@h,i:7001", "cluster", (H, ("i", 7001)), "", "redis://:p@h:6379"),
        ("rediss+cluster://[::1],i/", "cluster", (("::1", 6379), ("i", 6379)), "", "rediss://[::1]:6379"),
    ],
)
def test_url_leads_to_hosts(url, kind, hosts, service, one):
    found = parse(url)
    assert (found.kind, found.hosts, found.service, found.one) == (kind, hosts, service, one)
    assert "p%40" not in repr(found) and "sentinel_password" not in repr(found)


@pytest.mark.parametrize(
    "url",
    [
        "http://s3cret@h", "s3cret", "redis+nothing://s3cret@h", "unix+cluster:///s3cret", "redis+sentinel://:s3cret@h", "redis+sentinel://:s3cret@h/",
        "redis+sentinel://:s3cret@h/a/b", "redis+cluster://:s3cret@h/name", "redis+cluster://:s3cret@h?db=1", "redis+cluster://:s3cret@h,",
        "redis+sentinel://:s3cret@,h/jobs", "redis+cluster://:s3cret@h:x", "redis+cluster://:s3cret@h:99999", "redis://:s3cret@h,i",
        "redis://:s3cret@h?sentinel_password=s3cret", "redis+sentinel://:s3cret@h/jobs?nonsense=s3cret", "redis+sentinel://:s3c/s3cret@h/jobs",
    ],
)  # fmt: skip
def test_url_that_leads_nowhere_is_refused_without_a_part_of_its_password(url):
    with pytest.raises(ValueError, match="redis") as error:
        parse(url)
    assert "s3cret" not in str(error.value)
