"""Ingestion, measured: webhookd and its peers, each one process on a Redis of its own.

A measurement is void unless every answer was a 202 and as many deliveries are in Redis as were
answered.
"""

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import rig
from rig import CONNECTIONS, PEERS, ROOT, SECRET, Redis, Row, Void

from hookq.store.keys import key

HANDLER = (
    "from counted import handle as count\n\n\ndef handle(delivery):\n    count(delivery.body)\n"
)
SOURCES = (
    '[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = '
    '"h.py:handle"\n'
)
ENTRY = "jobs"  # the stream of the peers


@dataclass(frozen=True)
class Server:
    """One that takes deliveries in. `lacks` is what it does not do and webhookd does."""

    name: str
    command: Callable[[int, Redis], list[str]]
    needs: tuple[str, ...] = ()  # of bench/.peers
    lacks: str = ""


def ours_env(db: Redis, port: int = 1) -> dict[str, str]:
    """Return the settings of webhookd and worker on this Redis; everything they write is in its
    folder.
    """
    (db.folder / "webhooks.toml").write_text(SOURCES)
    (db.folder / "h.py").write_text(HANDLER)
    names = {
        "WEBHOOK_SECRET": SECRET,
        "REDIS_URL": db.url,
        "PORT": str(port),
        "COUNT": str(db.count),
    }
    places = {
        "STATE_DIR": f"{db.folder}/state",
        "WEBHOOKS_FILE": f"{db.folder}/webhooks.toml",
        "PYTHONPATH": str(ROOT / "bench/peers"),
    }
    return names | places


def env(db: Redis, port: int) -> dict[str, str]:
    return ours_env(db, port) | {
        "NODE_PATH": str(PEERS / "node_modules"),
        "NODE_ENV": "production",
        "REDIS_SOCKET": db.path,
        "SECRET": SECRET,
    }


def _node(file: str) -> Callable[[int, Redis], list[str]]:
    return lambda port, db: ["node", f"bench/peers/{file}", str(port), db.path, SECRET]


def _uvicorn(port: int, _db: Redis) -> list[str]:
    command = [
        str(PEERS / "venv/bin/uvicorn"),
        "--app-dir",
        "bench/peers",
        "starlette_app:app",
        "--port",
        str(port),
    ]
    return [
        *command,
        "--loop",
        "uvloop",
        "--http",
        "httptools",
        "--no-access-log",
        "--log-level",
        "warning",
        "--timeout-keep-alive",
        "60",
    ]


def _stock(port: int, db: Redis) -> list[str]:
    return [sys.executable, "bench/peers/stock.py", str(port), db.path, SECRET]


LACKS = "no deduplication, counters, spool or limits in time"
OURS = Server("webhookd", lambda _port, _db: [sys.executable, "webhookd.py"])
FASTIFY = Server(
    "fastify + ioredis", _node("fastify.js"), ("node_modules/fastify",), f"{LACKS}; one XADD each"
)
UVICORN = Server(
    "uvicorn + starlette",
    _uvicorn,
    ("venv/bin/uvicorn",),
    f"{LACKS}; one XADD each (redis.asyncio, hiredis)",
)
EXPRESS = Server(
    "Express + ioredis", _node("express.js"), ("node_modules/express",), f"{LACKS}; one XADD each"
)
STOCK = Server("ThreadingHTTPServer", _stock, (), f"{LACKS}, of anything; one XADD each")
SERVERS = (OURS, FASTIFY, UVICORN, EXPRESS, STOCK)


@contextlib.contextmanager
def running(server: Server, db: Redis, processes: int = 1) -> Iterator[tuple[int, list[int]]]:
    """Run a server; yield its port and its processes. Several share one listening socket, as under
    supervisord.
    """
    port = rig.free_port()
    with contextlib.ExitStack() as stack:
        stdin = -3  # DEVNULL
        if processes > 1:
            shared = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=1024))
            shared.setblocking(False)
            stdin = shared.fileno()
        pids = [
            stack.enter_context(rig.program(server.command(port, db), env(db, port), db.log, stdin))
            for _ in range(processes)
        ]
        rig.wait(lambda: rig.answers(port))
        yield port, pids


def closed_loop(
    server: Server,
    seconds: int,
    *,
    close: bool = False,
    processes: int = 1,
    db: Redis | None = None,
) -> Row:
    """Return requests/s, CPU per request and the times of the answers while 32 connections ask as
    fast as they can.
    """
    with contextlib.ExitStack() as stack:
        base = db or stack.enter_context(Redis())
        port, pids = stack.enter_context(running(server, base, processes))
        rig.wrk(port, base, 1, close=close)
        stored = durable(server, base)
        before, redis_before = sum(map(rig.cpu_s, pids)), rig.cpu_s(base.process.pid)
        done = rig.wrk(port, base, seconds, close=close)
        used, redis_used = (
            sum(map(rig.cpu_s, pids)) - before,
            rig.cpu_s(base.process.pid) - redis_before,
        )
        memory = rig.memory_mb(pids[0])
        # The warm-up's last requests may be counted by either side: at most one for each
        # connection.
        if (
            not 0
            <= durable(server, base) - stored - done["requests"] + CONNECTIONS
            <= 3 * CONNECTIONS
        ):
            raise Void(
                f"{server.name} stored {durable(server, base) - stored} of {done['requests']} "
                "deliveries"
            )
    each = 1e6 / done["requests"]
    return {
        "per_s": done["requests"] / done["seconds"],
        "cpu_us": used * each,
        "redis_us": redis_used * each,
        "client_us": done["cpu_s"] * each,
        "p50": done["p50_ms"],
        "p99": done["p99_ms"],
    } | memory


def durable(server: Server, db: Redis) -> int:
    """Return how many deliveries are in Redis."""
    return (
        int(db.client.hget(key("ledger"), "accepted") or 0)
        if server is OURS
        else int(db.client.xlen(ENTRY))
    )


def open_loop(server: Server, rate: float, seconds: float) -> Row:
    """Return p50 and p99 of the answer at a rate that does not wait for answers."""
    with Redis() as db, running(server, db) as (port, _):
        rig.open_loop(port, rate, 0.5)
        return rig.open_loop(port, rate, seconds)


def present(needs: tuple[str, ...]) -> bool:
    return all(os.path.lexists(PEERS / name) for name in needs)
