"""Where Redis is: the parsed REDIS_URL.

    redis://[user:password@]host[:6379][/db]               one server; rediss:// with TLS
    unix://[user:password@]/path[?db=0]                    one server
    redis+sentinel://[user:password@]host[:26379],…/name   the primary these Sentinels call `name`
    redis+cluster://[user:password@]host[:6379],…          the primary of our slot; any node knows

With TLS the last two are rediss+sentinel:// and rediss+cluster://. Options follow a question mark.

Rules: pure; what is not understood is refused, and no message contains a part of a password.
Promises: an Address is well formed. Does not promise that a server is there.
"""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

TLS: Final = frozenset(
    ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")
)
SENTINEL: Final = frozenset(("sentinel_username", "sentinel_password"))
PORTS: Final = {"": 6379, "sentinel": 26379, "cluster": 6379}
OPTIONS: Final = {"": TLS | {"db"}, "sentinel": TLS | SENTINEL | {"db"}, "cluster": TLS}
RIGHT: Final = (
    "a URL that begins with redis://, rediss://, unix://, redis+sentinel:// or "
    "redis+cluster:// (rediss+… with TLS), "
    "or nothing for the embedded Redis"
)


@dataclass(frozen=True, slots=True)
class Address:
    """`kind` is "" for one server, sentinel or cluster. `one` is the URL of a single server, the
    first of `hosts`, for redis-py. `options` are all those after the question mark.
    """

    kind: str
    hosts: tuple[tuple[str, int], ...]
    service: str
    one: str = field(repr=False)
    options: dict[str, str] = field(default_factory=dict, repr=False)


def parse(text: str) -> Address:
    """Return the Address in a URL. Raises ValueError with what would be right."""
    try:
        url = urlsplit(text)
        scheme, _, kind = url.scheme.partition("+")
        user, at, hosts = url.netloc.rpartition("@")
        servers = tuple(_host(host, kind) for host in hosts.split(",")) if scheme != "unix" else ()
        # A plus in a password is a plus, not a blank.
        query = url.query.replace("+", "%2B")
        options = {
            name: values[0] for name, values in parse_qs(query, strict_parsing=bool(query)).items()
        }
    except (ValueError, KeyError):
        # Their own messages may contain a part of the password.
        raise ValueError(f"{RIGHT}; / # ? and @ in a password must be percent-encoded") from None
    known = OPTIONS[kind]
    if scheme not in ("redis", "rediss", "unix") or (scheme == "unix" and kind):
        raise ValueError(RIGHT)
    if set(options) - known:
        raise ValueError(f"{RIGHT}, with no options but {', '.join(sorted(known))}")
    if TLS & set(options) and scheme != "rediss":
        raise ValueError("a URL that begins with rediss, when it has options for TLS")
    if not options.get("db", "0").isdecimal():
        raise ValueError("a URL whose db is a number")
    if not kind:
        if len(servers) > 1:
            raise ValueError("one host, or redis+sentinel:// or redis+cluster:// before several")
        if servers and not (url.path.strip("/") or "0").isdecimal():
            raise ValueError("a URL that ends with the number of a database, or with its port")
        base, mark, _ = text.partition("?")
        return Address("", servers, "", f"{base}{mark}{query}", options)
    service = url.path.strip("/")
    if (kind == "sentinel") != bool(service) or "/" in service:
        raise ValueError(
            "redis+sentinel://host:26379,host:26379/name-of-the-primary, or redis+cluster://host:6379,host:6379"
        )
    host, port = servers[0]
    kept = urlencode({name: value for name, value in options.items() if name not in SENTINEL})
    bracketed = f"[{host}]" if ":" in host else host
    one = f"{scheme}://{user}{at}{bracketed}:{port}{'?' if kept else ''}{kept}"
    return Address(kind, servers, service, one, options)


def _host(text: str, kind: str) -> tuple[str, int]:
    url = urlsplit(f"//{text}")
    if not url.hostname and kind:
        raise ValueError(text)
    if url.hostname:
        url.hostname.encode("idna")  # raises for a name that cannot be one
    return url.hostname or "localhost", url.port or PORTS[kind]
