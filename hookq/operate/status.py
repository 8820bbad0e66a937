"""What is going on, gathered in a few round trips, and the one sentence that says it, the worst
first.

Promises: the numbers of the ledger are of one moment; a list never reads a body. Does not promise:
that all the rest is of that moment too. supervisord or a spool that cannot be asked is said, never
taken for nothing.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hookq import daemon
from hookq.operate import dlq
from hookq.operate.supervisord import NoSupervisor, Program, programs
from hookq.settings import Settings
from hookq.store import dead, figures
from hookq.store.client import Client
from hookq.store.records import Beat, Cause, Deed, Facts, IngestionBeat, Ledger, Search

LIVE_S: Final = 10.0  # without a heartbeat (one every 0.5 s) before a worker is no longer shown
OLD_READY_S: Final = (
    60.0  # a ready job that waits longer is a matter of its own (ops/alerts has the same figure)
)
MINUTES: Final = 60
SAMPLES: Final = 500  # attempts from which waits and runs are told
RECENT_ACTS: Final = 20

Clause = tuple[str, str]  # a sentence, and where on the page it leads


@dataclass(frozen=True, slots=True)
class Status:
    """Everything the overview shows. Times are unix seconds by Redis' clock."""

    now: float
    audit: Ledger
    host: str  # of whom `programs` are
    workers: dict[str, Beat]
    ingestion: dict[str, IngestionBeat]  # of every host, also of one that is silent
    programs: list[Program]
    programs_why: str
    minutes: list[tuple[int, dict[str, int]]]
    causes: list[Cause]
    new_dead: int
    recent: list[tuple[str, str, str, str]]
    acts: list[Deed]
    attempts: list[Facts]
    last: dict[str, float]
    risks: list[str]

    def hour(self, name: str) -> int:
        """Return how often a counter, of whatever labels, was raised in the last 60 minutes."""
        return sum(
            n
            for _, counts in self.minutes
            for field, n in counts.items()
            if field.split(":")[0] == name
        )

    @property
    def oldest_ready_s(self) -> float:
        """How long the oldest ready job has waited, 0 if there is none."""
        since = [
            source.oldest_ready for source in self.audit.sources.values() if source.oldest_ready
        ]
        return max(0.0, self.now - min(since)) if since else 0.0


def gather(store: Client, settings: Settings) -> Status:
    """Return the status. Raises Away."""
    now, beats, events, state_dir = (
        store.now(),
        figures.workers(store),
        figures.latest_events(store, SAMPLES),
        settings.state_dir,
    )
    try:
        running, why = programs(state_dir), ""
    except NoSupervisor as error:
        running, why = [], f"{error}: only workers that report to Redis are shown."
    ended = {
        event.id: event.event for event in reversed(events) if event.event != "delivery.duplicate"
    }
    recent = figures.recent(store)
    states = figures.states(store, [id for id, _, _ in recent])
    done = {"job.complete": "done", "job.discard": "discarded"}
    return Status(
        now=now,
        audit=dlq.audit(store, state_dir),
        host=daemon.host(),
        ingestion=figures.ingestion(store),
        workers={name: beat for name, beat in beats.items() if now - beat.at < LIVE_S},
        programs=running,
        programs_why=why,
        minutes=figures.minutes(store, MINUTES),
        causes=dlq.by_cause(store, Search()),
        new_dead=dead.count_dead(store, Search(since=now - 3600)) or 0,
        recent=[
            (id, states[id] or done.get(ended.get(id, ""), "ready"), source, event_type)
            for id, source, event_type in recent
        ],
        acts=figures.acts(store, RECENT_ACTS),
        attempts=[e.facts for e in events if "run_ms" in e.facts and e.at > now - 3600],
        last=figures.last(store),
        risks=figures.health(store, settings.durability)[1],
    )


def numbers(status: Status) -> dict[str, tuple[str, str, str]]:
    """Return key → (name, number, note) of the counts, in the order in which they are shown."""
    audit = status.audit
    due = "attempts that failed and come again"
    return {
        "ready": (
            "ready",
            f"{audit.ready:,}",
            f"oldest {seconds(status.oldest_ready_s)}" if audit.ready else "nothing waits",
        ),
        "leased": ("leased", f"{audit.leased:,}", f"by {len(status.workers)} workers"),
        "retry": (
            "retry",
            f"{audit.retry:,}",
            due if audit.retry else "none waits for another attempt",
        ),
        "dead": ("dead", f"{audit.dead:,}", f"{status.new_dead:,} new in the last hour"),
        "done": ("done, 1 h", f"{status.hour('done'):,}", f"{audit.done:,} in all"),
        "accepted": (
            "accepted, 1 h",
            f"{status.hour('accepted'):,}",
            f"{audit.accepted:,} in all",
        ),
        "spooled": (
            "spooled",
            "unknown" if audit.spooled is None else f"{audit.spooled:,}",
            "on this machine",
        ),
        "gap": (
            "ledger gap",
            f"{audit.gap:,}",
            "nothing is missing" if not audit.gap else "see README",
        ),
    }


def verdict(status: Status) -> tuple[str, list[Clause]]:
    """Return (level, clauses): ok, warn or bad, and sentences that are always true, the worst
    first.
    """
    audit, oldest_s = status.audit, status.oldest_ready_s
    bad: list[Clause] = []
    warn: list[Clause] = []
    if audit.gap:
        bad.append(
            (
                f"The ledger's gap is {audit.gap:,}: what was accepted and what is there differ.",
                "#counts",
            )
        )
    if not status.workers:
        waiting = f"{plural(audit.ready, 'job')} {'is' if audit.ready == 1 else 'are'} ready"
        bad.append(
            (
                "No workers are running and "
                f"{waiting}{f' (oldest {seconds(oldest_s)})' if oldest_s else ''}.",
                "#workers",
            )
        )
    if audit.spool_why:
        bad.append((audit.spool_why, "#counts"))
    elif audit.spooled:
        warn.append(
            (
                f"{plural(audit.spooled, 'delivery')} "
                f"{'is' if audit.spooled == 1 else 'are'} in the spool.",
                "#counts",
            )
        )
    if status.workers and oldest_s > OLD_READY_S:
        warn.append((f"The oldest ready job has waited {seconds(oldest_s)}.", "#counts"))
    warn += elsewhere(status)
    if status.new_dead:
        causes = sum(cause.last_at > status.now - 3600 for cause in status.causes)
        warn.append(
            (
                f"{dlq.counted(status.new_dead)} from {plural(causes, 'cause')} in the last hour.",
                "#causes",
            )
        )
    for program in status.programs:
        if program.state in ("FATAL", "EXITED", "BACKOFF", "UNKNOWN"):
            bad.append((f"{program.name} is {program.state}: its log says why.", "#workers"))
    warn += [(f"Redis: {risk}", "#counts") for risk in status.risks]
    level = "bad" if bad else "warn" if warn else "ok"
    return level, [
        *bad,
        *warn,
        *([] if bad or warn else [("All good.", "#counts")]),
        *_facts(status),
    ]


def elsewhere(status: Status) -> Iterable[Clause]:
    """Yield what other hosts' ingestion tells: a spool in use; or nothing, which may be a host that
    is cut off.
    """
    hosts: dict[str, list[IngestionBeat]] = {}
    for beat in status.ingestion.values():
        hosts.setdefault(beat.host, []).append(beat)
    for host, beats in sorted(hosts.items()):
        last = max(beats, key=lambda beat: beat.at)
        spooled, silent_s = plural(last.spooled, "delivery"), status.now - last.at
        if silent_s > LIVE_S:
            yield (
                f"Ingestion on {host} was last heard of {seconds(silent_s)} ago, with "
                f"{spooled} in its spool.",
                "#workers",
            )
        elif last.spooled and host != status.host:
            yield f"The spool of {host} has {spooled}.", "#workers"


def _facts(status: Status) -> list[Clause]:
    last = max(
        (at for name, at in status.last.items() if name.startswith("accepted:")), default=0.0
    )
    facts = [
        (
            f"Last delivery {seconds(status.now - last)} ago." if last else "Nothing received yet.",
            "#recent",
        )
    ]
    if status.workers and status.oldest_ready_s <= OLD_READY_S:
        facts.append(
            (
                f"Oldest ready job {seconds(status.oldest_ready_s)}."
                if status.audit.ready
                else "No job waits.",
                "#counts",
            )
        )
    if status.workers:
        wanted = sum(program.name.startswith("worker") for program in status.programs) or len(
            status.workers
        )
        facts.append(
            (
                f"{len(status.workers)} of "
                f"{plural(max(wanted, len(status.workers)), 'worker')} up.",
                "#workers",
            )
        )
    if not status.new_dead:
        dead = status.audit.dead
        facts.append(
            (
                f"{dlq.counted(dead)}, none new in the last hour." if dead else "No dead letters.",
                "#causes",
            )
        )
    return facts


def times(attempts: Sequence[Facts]) -> str:
    """Return waits and runs of the last attempts in words."""
    if not attempts:
        return "No data for this hour."
    told = [
        f"{name} p50 {millis(half)}, p95 {millis(most)}"
        for name, (half, most) in (
            ("Wait", _spread(attempts, "wait_ms")),
            ("run", _spread(attempts, "run_ms")),
        )
    ]
    return f"{'; '.join(told)} (n={len(attempts)}{'' if len(attempts) > 20 else ': few'})."


def _spread(attempts: Sequence[Facts], name: str) -> tuple[float, float]:
    values = sorted(attempt.get(name, 0.0) for attempt in attempts)
    return values[len(values) // 2], values[min(len(values) - 1, len(values) * 95 // 100)]


def by_source(status: Status) -> dict[str, dict[str, Any]]:
    """Return source → what the last hour and the ledger say of it; rejected requests for no source
    are of `_unknown`.
    """
    found: dict[str, dict[str, Any]] = {
        name: {**n._asdict(), "counts": Counter()}
        for name, n in sorted(status.audit.sources.items())
    }
    for _, counts in status.minutes:
        for field, n in counts.items():
            name, source, *label = field.split(":")
            row = found.setdefault(
                source, {"ready": 0, "leased": 0, "dead": 0, "counts": Counter()}
            )
            row["counts"][name] += n
            if name == "rejected":
                row["counts"][f"rejected {label[0]}"] += n
    return found


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else dlq.age(value)


def millis(value: float) -> str:
    return f"{value:.1f} ms" if value < 1000 else seconds(value / 1000)


def plural(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1] + 'ies' if noun.endswith('y') else noun + 's'}"
