"""The status in sentences: one verdict with its reasons, the worst first, and the counts with their
notes.

Rules: a clause is true of the numbers it was made from; each leads to the place on the overview
that shows why. Pure: a Status in, text out.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from hookq.operate.phrases import ago, counted, millis, plural, seconds
from hookq.operate.status import HOUR_S, LIVE_S, Status
from hookq.store.records import Facts, IngestionBeat

# A ready job that waits longer than this is worth a warning; ops/alerts.yml has the same figure.
OLD_READY_S: Final = 60.0
FEW: Final = 20  # up to so many attempts, percentiles say little


class Clause(NamedTuple):
    """A sentence, and where on the overview it leads."""

    text: str
    href: str


class Verdict(NamedTuple):
    """`level` is ok, warn or bad."""

    level: str
    clauses: list[Clause]


class Number(NamedTuple):
    """One count of the overview; `key` is its name for app.js."""

    key: str
    name: str
    number: str
    note: str


def verdict(status: Status) -> Verdict:
    bad, warn = list(_bad(status)), list(_warn(status))
    level = "bad" if bad else "warn" if warn else "ok"
    good = [Clause("All good.", "#counts")] if level == "ok" else []
    return Verdict(level, [*bad, *warn, *good, *_facts(status)])


def _bad(status: Status) -> Iterator[Clause]:
    counts, oldest_s = status.audit, status.oldest_ready_s
    if counts.gap:
        differ = "what was accepted and what is there differ"
        yield Clause(f"The ledger's gap is {counts.gap:,}: {differ}.", "#counts")
    if not status.workers:
        waiting = f"{plural(counts.ready, 'job')} {_is(counts.ready)} ready"
        oldest = f" (oldest {seconds(oldest_s)})" if oldest_s else ""
        yield Clause(f"No workers are running and {waiting}{oldest}.", "#workers")
    if status.audit.spool_why:
        yield Clause(status.audit.spool_why, "#counts")
    for program in status.programs:
        if program.state in ("FATAL", "EXITED", "BACKOFF", "UNKNOWN"):
            yield Clause(f"{program.name} is {program.state}: its log says why.", "#workers")


def _warn(status: Status) -> Iterator[Clause]:
    spooled, oldest_s = status.audit.spooled, status.oldest_ready_s
    if spooled:
        text = f"{plural(spooled, 'delivery')} {_is(spooled)} in the spool."
        yield Clause(text, "#counts")
    if status.workers and oldest_s > OLD_READY_S:
        yield Clause(f"The oldest ready job has waited {seconds(oldest_s)}.", "#counts")
    yield from _elsewhere(status)
    if status.new_dead:
        causes = sum(cause.last_at > status.now - HOUR_S for cause in status.causes)
        text = f"{counted(status.new_dead)} from {plural(causes, 'cause')} in the last hour."
        yield Clause(text, "#causes")
    yield from (Clause(f"Redis: {risk}", "#counts") for risk in status.risks)


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _elsewhere(status: Status) -> Iterator[Clause]:
    """Yield what other hosts' ingestion reports: a spool in use; or nothing any more, when the host
    may be cut off.
    """
    hosts: dict[str, list[IngestionBeat]] = {}
    for beat in status.ingestion.values():
        hosts.setdefault(beat.host, []).append(beat)
    for host, beats in sorted(hosts.items()):
        last = max(beats, key=lambda beat: beat.at)
        spooled, silent_s = plural(last.spooled, "delivery"), status.now - last.at
        if silent_s > LIVE_S:
            text = f"Ingestion on {host} was last heard from {seconds(silent_s)} ago"
            yield Clause(f"{text}, with {spooled} in its spool.", "#workers")
        elif last.spooled and host != status.host:
            yield Clause(f"The spool of {host} has {spooled}.", "#workers")


def _facts(status: Status) -> Iterator[Clause]:
    accepted = [at for name, at in status.last.items() if name.startswith("accepted:")]
    received = f"Last delivery {ago(max(accepted), status.now)}." if accepted else ""
    yield Clause(received or "Nothing received yet.", "#recent")
    ready, dead = status.audit.ready, status.audit.dead
    if status.workers and status.oldest_ready_s <= OLD_READY_S:
        oldest = f"Oldest ready job {seconds(status.oldest_ready_s)}."
        yield Clause(oldest if ready else "No jobs waiting.", "#counts")
    if status.workers:
        up = len(status.workers)
        wanted = sum(program.name.startswith("worker") for program in status.programs)
        yield Clause(f"{up} of {plural(max(wanted, up), 'worker')} up.", "#workers")
    if not status.new_dead:
        text = f"{counted(dead)}, none new in the last hour." if dead else "No dead letters."
        yield Clause(text, "#causes")


def numbers(status: Status) -> list[Number]:
    """Return the counts, in the order in which they are shown."""
    counts = status.audit
    oldest = f"oldest {seconds(status.oldest_ready_s)}" if counts.ready else "none waiting"
    due = "failed attempts that will run again" if counts.retry else "none waiting for a retry"
    spooled = "unknown" if counts.spooled is None else f"{counts.spooled:,}"
    missing = "see README" if counts.gap else "nothing is missing"
    done, accepted = f"{status.hour('done'):,}", f"{status.hour('accepted'):,}"
    new_dead = f"{status.new_dead:,} new in the last hour"
    return [
        Number("ready", "ready", f"{counts.ready:,}", oldest),
        Number(
            "leased", "leased", f"{counts.leased:,}", f"by {plural(len(status.workers), 'worker')}"
        ),
        Number("retry", "retry", f"{counts.retry:,}", due),
        Number("dead", "dead", f"{counts.dead:,}", new_dead),
        Number("done", "done, 1 h", done, f"{counts.done:,} in all"),
        Number("accepted", "accepted, 1 h", accepted, f"{counts.accepted:,} in all"),
        Number("spooled", "spooled", spooled, "on this machine"),
        Number("gap", "ledger gap", f"{counts.gap:,}", missing),
    ]


def times(attempts: list[Facts]) -> str:
    """Return waits and runs of the last attempts in words."""
    if not attempts:
        return "No data for this hour."
    spreads = "; ".join(
        f"{name} p50 {millis(half)}, p95 {millis(most)}"
        for name, (half, most) in (
            ("Wait", _spread(attempts, "wait_ms")),
            ("run", _spread(attempts, "run_ms")),
        )
    )
    return f"{spreads} (n={len(attempts)}{'' if len(attempts) > FEW else ': few'})."


def _spread(attempts: list[Facts], name: str) -> tuple[float, float]:
    """Return the median and the 95th percentile."""
    values = sorted(attempt.get(name, 0.0) for attempt in attempts)
    return values[len(values) // 2], values[min(len(values) - 1, len(values) * 95 // 100)]
