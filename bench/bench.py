"""Measures webhookd beside its peers, in turn (A B A B) and in one run, and says which targets are
met.

    bench.py [--quick]          the full run takes about 12 minutes, the quick one about one

Everything durable (appendonly yes, appendfsync always, for all), on loopback, each server and
worker one process. CPU is the kernel's count of the server process; Redis and the load client share
the machine. Every load is bounded in count and time, and what was started is ended. A peer that is
not installed is left out, and that is said.
"""

import argparse
import json
import sys
import time
import timeit
from collections.abc import Callable, Sequence
from pathlib import Path

import ingestion
import load
import report
import rig
import state
import working
from ingestion import EXPRESS, FASTIFY, STOCK, UVICORN
from report import Line
from rig import HERE, PEERS, Redis, Row, Void, median, ratio
from working import BULLMQ, CELERY, DRAMATIQ, HUEY, RQ, RQ_SIMPLE

Pairs = list[tuple[Row, Row]]
# Of the target for each peer: CPU per request below this part of its, requests/s above this many
# times its.
CPU_BELOW = {
    FASTIFY.name: (1 / 2, "half"),
    UVICORN.name: (1 / 3, "a third"),
    EXPRESS.name: (1 / 6, "a sixth"),
}
RATE_ABOVE = {FASTIFY.name: 2.0, UVICORN.name: 2.5, EXPRESS.name: 4.0, STOCK.name: 6.0}
JOBS_ABOVE = {BULLMQ.name: 4.0, RQ.name: 50.0, CELERY.name: 1.0, DRAMATIQ.name: 1.0, HUEY.name: 1.0}


class Plan:
    """How much is measured. In the quick form one run of ours stands beside one of each peer."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rounds, self.seconds, self.jobs = (1, 1, 4_000) if quick else (3, 3, 12_000)
        self.ready, self.dead, self.kept = (
            (20_000, 2_000, 10_500) if quick else (1_000_000, 100_000, 20_000)
        )
        self.began = time.monotonic()
        self.left_out: list[str] = []

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:5.0f} s  {what}", file=sys.stderr, flush=True)

    def in_turn(
        self, what: str, ours: Callable[[], Row], peers: dict[str, Callable[[], Row]]
    ) -> dict[str, Pairs]:
        """Return for each peer the rows of runs that stood next to each other: ours, its, ours, its
        …
        """
        found: dict[str, Pairs] = {name: [] for name in peers}
        for number in range(self.rounds):
            self.say(f"{what}, round {number + 1} of {self.rounds}")
            own = ours()
            for place, (name, theirs) in enumerate(peers.items()):
                try:
                    own = ours() if place and not self.quick else own
                    found[name].append((own, theirs()))
                except Void as error:
                    self.left_out.append(f"{what}, a run of {name}: {error}")
        return {name: pairs for name, pairs in found.items() if pairs}


def ours_of(pairs: dict[str, Pairs]) -> list[Row]:
    return [own for rows in pairs.values() for own, _ in rows]


def measure_ingestion(
    plan: Plan, peers: Sequence[ingestion.Server]
) -> tuple[list[Line], dict[str, Pairs]]:
    def pairs_of(what: str, close: bool) -> dict[str, Pairs]:
        def of(server: ingestion.Server) -> Callable[[], Row]:
            return lambda: ingestion.closed_loop(server, plan.seconds, close=close)

        return plan.in_turn(what, of(ingestion.OURS), {peer.name: of(peer) for peer in peers})

    kept, lines = pairs_of("ingestion, keep-alive", False), []
    for name, pairs in kept.items():
        limit, word = CPU_BELOW.get(name, (None, ""))
        lines.append(
            compare(
                "CPU per request, µs", name, pairs, "cpu_us", limit, f"under {word}" if word else ""
            )
        )
    for name, pairs in kept.items():
        lines.append(
            compare(
                "requests/s",
                name,
                pairs,
                "per_s",
                RATE_ABOVE[name],
                f"{RATE_ABOVE[name]:g} times",
                above=True,
            )
        )
    for name, pairs in list(kept.items())[
        :1
    ]:  # what the two cores do besides: the bound of requests/s
        lines.append(compare("CPU of Redis per request, µs", name, pairs, "redis_us"))
        lines.append(compare("CPU of the load client per request, µs", name, pairs, "client_us"))
    for name, pairs in pairs_of("ingestion, a connection each", True).items():
        lines.append(
            compare("requests/s, a connection each", name, pairs, "per_s", 1.0, "ahead", above=True)
        )
    return lines, kept


def compare(
    what: str,
    name: str,
    pairs: Pairs,
    key: str,
    limit: float | None = None,
    target: str = "",
    *,
    above: bool = False,
) -> Line:
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    return Line(
        what, median(ours, key), name, median(theirs, key), ratio(pairs, key), limit, above, target
    )


def measure_processes(plan: Plan) -> list[Line]:
    def two() -> Row:
        return ingestion.closed_loop(ingestion.OURS, plan.seconds, processes=2)

    pairs = plan.in_turn(
        "two processes",
        two,
        {"one process": lambda: ingestion.closed_loop(ingestion.OURS, plan.seconds)},
    )
    return [
        compare("requests/s, two processes", name, rows, "per_s") for name, rows in pairs.items()
    ]


def measure_delays(
    plan: Plan, peers: Sequence[ingestion.Server], kept: dict[str, Pairs]
) -> list[Line]:
    """Each at half of its own peak rate, which is the harder for the faster one."""

    def at_half(server: ingestion.Server, rows: list[Row]) -> Callable[[], Row]:
        return lambda: ingestion.open_loop(server, median(rows, "per_s") / 2, plan.seconds)

    peaks = {peer.name: [b for _, b in kept[peer.name]] for peer in peers if peer.name in kept}
    theirs = {peer.name: at_half(peer, peaks[peer.name]) for peer in peers if peer.name in peaks}
    pairs = plan.in_turn(
        "half of each one's peak rate", at_half(ingestion.OURS, ours_of(kept)), theirs
    )
    lines = [
        compare("p99, each at half of its own peak rate, ms", name, rows, "p99", 1.0, "under")
        for name, rows in pairs.items()
    ]
    for name, at_its_rate in () if plan.quick else theirs.items():
        same = plan.in_turn(
            f"half of the peak rate of {name}",
            at_half(ingestion.OURS, peaks[name]),
            {name: at_its_rate},
        )
        lines += [
            compare("p99, both at half of its peak rate, ms", name, rows, "p99")
            for rows in same.values()
        ]
    return lines


def measure_work(
    plan: Plan, peers: Sequence[working.Worker]
) -> tuple[list[Line], dict[str, Pairs]]:
    best = {}
    for peer in peers:
        plan.say(f"worker, the best setting of {peer.name}")
        try:
            best[peer] = (
                working.best_variant(peer, plan.jobs // 2)
                if not plan.quick
                else peer.variants[len(peer.variants) // 2]
            )
        except Void as error:
            plan.left_out.append(f"{peer.name}: {error}")

    def of(worker: working.Worker, variant: str) -> Callable[[], Row]:
        return lambda: working.work(worker, plan.jobs, variant)

    named = {peer.name: of(peer, variant) for peer, variant in best.items()}
    pairs, lines = plan.in_turn("worker", of(working.OURS, ""), named), []
    settings = {
        peer.name: f"{peer.name} (at {variant})"
        for peer, variant in best.items()
        if len(peer.variants) > 1
    }
    for name, rows in pairs.items():
        limit = JOBS_ABOVE.get(name)
        target = "" if limit is None else f"{limit:g} times" if limit > 1 else "ahead"
        lines.append(
            compare(
                "jobs/s of a worker",
                settings.get(name, name),
                rows,
                "per_s",
                limit,
                target,
                above=True,
            )
        )
    for name, rows in list(pairs.items())[:1]:
        lines.append(compare("CPU per job, µs", settings.get(name, name), rows, "cpu_us"))
    body = load.body()
    parsing = (
        min(timeit.repeat(lambda: json.loads(body), number=1000, repeat=5)) * 1000
    )  # of one, in µs
    return [*lines, Line("of which json.loads of the body, µs", parsing)], pairs


def measure_large(plan: Plan) -> list[Line]:
    with Redis() as full, Redis() as empty:
        plan.say(f"a system of {plan.ready:,} ready jobs and {plan.dead:,} dead letters is filled")
        each = state.prepare(full, plan.ready, plan.dead)
        name, size = (
            f"{plan.ready:,} ready, {plan.dead:,} dead",
            sum(map(len, working.delivery(state.SMALL))),
        )
        taking = plan.in_turn(
            "large system, ingestion",
            lambda: state.ingest_on(full, plan.seconds),
            {"the empty system": lambda: state.ingest_on(empty, plan.seconds)},
        )
        doing = plan.in_turn(
            "large system, worker",
            lambda: state.work_on(full, plan.jobs, empty=False),
            {"the empty system": lambda: state.work_on(empty, plan.jobs, empty=True)},
        )
    lines = [
        compare(f"requests/s with {name}", peer, rows, "per_s", 0.9, "within 10%", above=True)
        for peer, rows in taking.items()
    ]
    lines += [
        compare(f"jobs/s with {name}", peer, rows, "per_s", 0.9, "within 10%", above=True)
        for peer, rows in doing.items()
    ]
    return [
        *lines,
        Line(
            f"bytes in Redis per ready job of {size:,}",
            each,
            limit=1.3 * size + 400,
            target="1.3 times + 400",
        ),
    ]


def measure_held(plan: Plan, kept: dict[str, Pairs], worked: dict[str, Pairs]) -> list[Line]:
    plan.say("bytes, memory, the way to the handler")
    cost, way = state.bytes_per_job(plan.kept), state.to_handler(40 if plan.quick else 200)
    return [
        Line("from socket to handler, idle, p50, ms", way["p50"], limit=3.0, target="under 3"),
        Line("the same, p99, ms", way["p99"]),
        Line(
            "memory of webhookd, MB (RSS)",
            median(ours_of(kept), "rss"),
            limit=35.0,
            target="under 35",
        ),
        Line("the same, shared pages divided (PSS)", median(ours_of(kept), "pss")),
        Line(
            "memory of worker, MB (RSS)",
            median(ours_of(worked), "rss"),
            limit=35.0,
            target="under 35",
        ),
        Line("the same, shared pages divided (PSS)", median(ours_of(worked), "pss")),
        Line(
            f"bytes in Redis per ready job of {cost['size']:,.0f}",
            cost["ready"],
            limit=1.3 * cost["size"] + 400,
            target="1.3 times + 400",
        ),
        Line("bytes in Redis per finished job", cost["done"], limit=350.0, target="under 350"),
    ]


def panels(
    kept: dict[str, Pairs], worked: dict[str, Pairs]
) -> list[tuple[str, list[tuple[str, float]]]]:
    def rows(pairs: dict[str, Pairs], key: str) -> list[tuple[str, float]]:
        own = [("webhookd", median(ours_of(pairs), key))] if pairs else []
        return own + [(name, median([b for _, b in found], key)) for name, found in pairs.items()]

    return [
        ("CPU of the server process per request, µs (less is better)", rows(kept, "cpu_us")),
        ("requests/s, one process, 32 keep-alive connections", rows(kept, "per_s")),
        ("jobs/s of one worker process", rows(worked, "per_s")),
    ]


def write(
    plan: Plan,
    lines: list[Line],
    charts: list[tuple[str, list[tuple[str, float]]]],
    notes: list[str],
) -> None:
    """Write both files; the quick form's stay out of the results that are kept."""
    folder: Path = PEERS / "quick" if plan.quick else HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    kind = (
        "Quick form: one short round, smaller counts."
        if plan.quick
        else f"{plan.rounds} rounds, peers in turn."
    )
    how = (
        f"{kind} Bodies of 5.6 KB signed by HMAC, {rig.CONNECTIONS} connections, every 202 after "
        "an fsync, one process each."
    )
    page = report.markdown(lines, notes, how)
    (folder / "bench.md").write_text(page)
    (folder / "bench.svg").write_text(report.chart(charts))
    print(page)
    plan.say(f"written to {folder.relative_to(HERE.parent)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="webhookd beside its peers, and the targets.", allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute")
    plan = Plan(parser.parse_args().quick)
    servers = [peer for peer in ingestion.SERVERS[1:] if ingestion.present(peer.needs)]
    workers = [
        peer
        for peer in working.PEER_WORKERS
        if ingestion.present(peer.needs) and not (plan.quick and peer is RQ_SIMPLE)
    ]
    missing = [
        peer.name
        for peer in (*ingestion.SERVERS[1:], *working.PEER_WORKERS)
        if not ingestion.present(peer.needs)
    ]
    plan.left_out += [f"{name}: not installed" for name in missing]
    lines, kept = measure_ingestion(plan, servers)
    lines += measure_processes(plan) + measure_delays(plan, servers, kept)
    done, worked = measure_work(plan, workers)
    lines += done + measure_held(plan, kept, worked) + measure_large(plan)
    notes = [f"{peer.name}: {peer.lacks}." for peer in (*servers, *workers)]
    notes += [f"Left out: {line}" for line in plan.left_out]
    write(plan, lines, panels(kept, worked), notes)


if __name__ == "__main__":
    try:
        main()
    except Void as error:
        sys.exit(f"The bench is void: {error}.")
