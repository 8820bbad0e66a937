"""The connections to Redis: which server they lead to, and how its failures are reported.

All keys have one hash tag, so even in a Cluster one primary holds them all. A connection asks any
node (or a Sentinel) which one that is, and connects to it. When a server answers that it is not, or
no longer, that primary, the connection is closed, and the next one asks again. ASK is never
followed: while our slot migrates, the target does not know yet which deliveries were seen, and a
script there would run them twice. Until the migration is over Redis counts as unavailable, and the
spool takes the deliveries.

The client never retries: redis-py would run a write twice after a lost reply. Callers retry, with
verbs that find their own earlier work.

Promises: every failure is raised as Away, with a sentence. Every wait has a limit.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, parse_url
from redis.crc import key_slot
from redis.retry import Retry as ClientRetry
from redis.sentinel import Sentinel, SentinelConnectionPool, SentinelManagedConnection

from hookq.redis_url import SENTINEL, parse
from hookq.store.keys import PREFIX

# Limit for asking one node where the primary is: a silent node must not use up the time for those
# that would answer.
ASK_S: Final = 0.5
# Errors of a server that cannot serve us now, though another may: it has lost our slot, its cluster
# or its replicas, or became a replica itself (READONLY, which redis-py handles). MOVED is an ASK.
ELSEWHERE: Final = (
    redis.exceptions.AskError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
ELSEWHERE_TEXTS: Final = ("NOREPLICAS", "UNBLOCKED")


class Away(Exception):
    """Redis cannot be used now; the message says what happened and is safe to show."""


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Turn every failure of Redis, whatever its kind, into Away."""
    try:
        yield
    except redis.DataError:
        raise  # a value that cannot be sent is our mistake: to try again would not help
    except (redis.RedisError, hiredis.HiredisError, OSError) as error:
        # redis-py appends its whole client to some messages: nobody reads that.
        raise Away(f"{type(error).__name__}: {str(error).partition(' : <')[0]}") from error


def connect(url: str, timeout_s: float, name: str) -> Any:
    """Return a client that never retries by itself. `name` is what CLIENT LIST shows.

    Any: redis-py declares each reply as bytes or text or awaitable; with these options it is bytes.
    """
    address = parse(url)
    options: dict[str, Any] = {"retry": ClientRetry(NoBackoff(), 0), "protocol": 2}
    limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "client_name": name}
    if not address.kind:
        return redis.Redis.from_url(address.one, **options, **limits)
    options = parse_url(address.one) | options
    tls = options.pop("connection_class", Connection) is SSLConnection
    del options["host"], options["port"]
    asking = options | {"ssl": tls, "socket_timeout": ASK_S, "socket_connect_timeout": ASK_S}
    if address.kind == "sentinel":
        asking |= {"db": 0, "username": None, "password": None}
        asking |= {
            name.removeprefix("sentinel_"): value
            for name, value in address.options.items()
            if name in SENTINEL
        }
        who: Any = Sentinel(address.hosts, sentinel_kwargs=asking)
    else:
        who = SlotOwner(address.hosts, asking)
    made = FollowingTLS if tls else Following
    return redis.Redis(
        connection_pool=SentinelConnectionPool(
            address.service, who, connection_class=made, **options, **limits
        )
    )


class SlotOwner:
    """Finds the primary of our slot in a Cluster; has the interface of a Sentinel."""

    SLOT: Final = key_slot(PREFIX.encode())

    def __init__(self, seeds: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        self.seeds, self.options = list(seeds), options
        self.nodes: list[tuple[str, int]] = []  # that the last answer named
        # The node that named the last owner. When that owner was no good, it is asked last: others
        # may know better.
        self.named = ("", 0)

    def discover_master(self, _service: str) -> tuple[str, int]:
        """Return (host, port); raises ConnectionError when no node knows one."""
        known = dict.fromkeys([*self.nodes, *self.seeds])
        for host, port in sorted(known, key=lambda node: node == self.named):
            node: Any = redis.Redis(host=host, port=port, **self.options)
            node.set_response_callback("CLUSTER SLOTS", lambda reply, **_: reply)
            with (
                contextlib.suppress(redis.RedisError, hiredis.HiredisError, OSError),
                contextlib.closing(node),
            ):
                slots = node.execute_command("CLUSTER SLOTS")
                self.nodes, self.named = (
                    [_place(place, host) for _, _, *places in slots for place in places],
                    (host, port),
                )
                owners = [
                    _place(places[0], host)
                    for first, last, *places in slots
                    if first <= self.SLOT <= last
                ]
                if owners:
                    return owners[0]
        raise redis.ConnectionError("no node of the Cluster knows a primary of our slot")


def _place(place: Sequence[Any], asked: str) -> tuple[str, int]:
    """Return the address of a node; one that does not know its own is where it was asked."""
    host = (place[0] or b"").decode()
    return host if host not in ("", "?") else asked, int(place[1])


class Following(SentinelManagedConnection):
    """A connection that is closed when its server is no longer the primary of our keys."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except redis.ResponseError as error:
            if not (isinstance(error, ELSEWHERE) or str(error).startswith(ELSEWHERE_TEXTS)):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError(
                f"this server is not the primary of our keys now ({type(error).__name__}: {error})"
            ) from error


class FollowingTLS(Following, SSLConnection):
    pass
