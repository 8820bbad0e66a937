"""What is going on, gathered in a few round trips: as rows for the overview, as gauges for
/metrics. The sentences about it are in verdict.py.

Promises: the numbers of the ledger are of one moment; a list never reads a body. Does not promise
that the rest is of that moment too. A supervisord or a spool that cannot be asked is reported,
never taken for nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from hookq import daemon, metrics
from hookq.operate import dlq, phrases
from hookq.operate.audit import audit
from hookq.operate.supervisord import NoSupervisor, Program, programs
from hookq.settings import Settings
from hookq.store import dead, figures
from hookq.store.client import Client
from hookq.store.keys import host_of
from hookq.store.records import (
    Beat,
    Cause,
    Deed,
    Event,
    Facts,
    IngestionBeat,
    Ledger,
    Search,
    SourceLedger,
)

LIVE_S: Final = 10.0  # a worker without a heartbeat (one every 0.5 s) for this long is not shown
MINUTES: Final = 60
SAMPLES: Final = 500  # the latest events, among which waits and runs are looked for
RECENT_ACTS: Final = 20
HOUR_S: Final = 3600


class Recent(NamedTuple):
    """A delivery accepted lately."""

    id: str
    state: str
    source: str
    event_type: str


class SourceRow(NamedTuple):
    """One source: its jobs now, and its counters of the last hour."""

    name: str
    jobs: SourceLedger
    hour: Counter[str]
    rejected: Counter[str]  # by reason


class ProcessRow(NamedTuple):
    """One process, as supervisord and its heartbeat report it. `job` is (id, seconds) of what a
    worker runs; `doing` says it of a process without a job.
    """

    name: str
    host: str
    state: str
    pid: int
    up: str
    job: tuple[str, float] | None = None
    doing: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """Everything the overview shows. Times are unix seconds by Redis' clock."""

    now: float
    audit: Ledger
    host: str  # the one that `programs` run on
    workers: dict[str, Beat]
    ingestion: dict[str, IngestionBeat]  # of every host, silent ones too
    programs: list[Program]
    programs_why: str
    minutes: list[tuple[int, dict[str, int]]]
    causes: list[Cause]
    new_dead: int
    recent: list[Recent]
    acts: list[Deed]
    attempts: list[Facts]
    last: dict[str, float]
    risks: list[str]

    def hour(self, name: str) -> int:
        """Return how often a counter, whatever its labels, was raised in the last 60 minutes."""
        return sum(summed(counts, name) for _, counts in self.minutes)

    @property
    def oldest_ready_s(self) -> float:
        """How long the oldest ready job has waited, 0 if there is none."""
        rows = self.audit.sources.values()
        since = [row.oldest_ready for row in rows if row.oldest_ready]
        return max(0.0, self.now - min(since)) if since else 0.0


def gather(store: Client, settings: Settings) -> Status:
    """Return the status. Raises Away."""
    now, beats = store.now(), figures.workers(store)
    events = figures.latest_events(store, SAMPLES)
    try:
        running, why = programs(settings.state_dir), ""
    except NoSupervisor as error:
        running, why = [], f"{error}: only workers that report to Redis are shown."
    return Status(
        now=now,
        audit=audit(store, settings.state_dir),
        host=daemon.host(),
        ingestion=figures.ingestion(store),
        workers={name: beat for name, beat in beats.items() if now - beat.at < LIVE_S},
        programs=running,
        programs_why=why,
        minutes=figures.minutes(store, MINUTES),
        causes=dlq.by_cause(store, Search()),
        new_dead=dead.count_dead(store, Search(since=now - HOUR_S)) or 0,
        recent=_recent(store, events),
        acts=figures.acts(store, RECENT_ACTS),
        attempts=[e.facts for e in events if "run_ms" in e.facts and e.at > now - HOUR_S],
        last=figures.last(store),
        risks=figures.health(store, settings.durability)[1],
    )


def _recent(store: Client, events: list[Event]) -> list[Recent]:
    """Return the deliveries accepted last, the latest first; `events` tell how finished ones
    ended.
    """
    ended = {
        event.id: event.event for event in reversed(events) if event.event != "delivery.duplicate"
    }
    finished = {"job.complete": "done", "job.discard": "discarded"}
    deliveries = figures.recent(store)
    states = figures.states(store, [id for id, _, _ in deliveries])
    return [
        Recent(id, states[id] or finished.get(ended.get(id, ""), "ready"), source, event_type)
        for id, source, event_type in deliveries
    ]


# ---------------- rows of the overview


def summed(counts: Mapping[str, int], name: str) -> int:
    """Return a counter of one minute, all its labels together."""
    return sum(n for field, n in counts.items() if field.split(":")[0] == name)


def sources(status: Status) -> list[SourceRow]:
    """Return the sources by name; requests for no source were rejected as `_unknown`."""
    rows = {
        name: SourceRow(name, jobs, Counter(), Counter())
        for name, jobs in sorted(status.audit.sources.items())
    }
    for _, counts in status.minutes:
        for field, n in counts.items():
            name, source, *label = field.split(":")
            new = SourceRow(source, SourceLedger(), Counter(), Counter())
            row = rows.setdefault(source, new)
            row.hour[name] += n
            if name == "rejected":
                row.rejected[label[0]] += n
    return list(rows.values())


def processes(status: Status) -> Iterator[ProcessRow]:
    """Yield supervisord's processes with what their heartbeats report, then those of other hosts,
    which it does not know.
    """
    reports: dict[tuple[str, int], tuple[str, Beat | IngestionBeat]] = {}
    for name, of_worker in status.workers.items():
        reports[host_of(name), of_worker.pid] = "worker", of_worker
    for of_ingestion in status.ingestion.values():
        reports[of_ingestion.host, of_ingestion.pid] = "webhookd", of_ingestion
    for program in status.programs:
        _, own = reports.pop((status.host, program.pid), ("", None))
        error = f": {program.spawn_error}" if program.spawn_error else ""
        up_s = max(0, program.now - program.since)
        up = phrases.seconds(up_s) if program.state == "RUNNING" else "not up"
        state = program.state + error
        yield ProcessRow(program.name, status.host, state, program.pid, up, *_doing(own))
    for (host, pid), (kind, beat) in sorted(reports.items(), key=lambda row: row[0]):
        silent_s = status.now - beat.at
        silent = f"silent for {phrases.seconds(silent_s)}"
        state = "heartbeat" if silent_s < LIVE_S else silent
        yield ProcessRow(kind, host, state, pid, phrases.seconds(beat.up_s), *_doing(beat))


def _doing(beat: Beat | IngestionBeat | None) -> tuple[tuple[str, float] | None, str]:
    """Return `job` and `doing` of a heartbeat."""
    if isinstance(beat, Beat):
        return ((beat.job.id, beat.job.for_s), "") if beat.job else (None, "nothing")
    if beat:
        connections = phrases.plural(beat.connections, "connection")
        return None, f"{connections}, {beat.spooled:,} spooled"
    return None, ""


# ---------------- gauges

Gauges = dict[str, list[metrics.Sample]]


def gauges(
    status: Status, memory: tuple[int, int], version: str, python: str, took_s: float
) -> Gauges:
    """Return the samples of every gauge. What cannot be known has no sample."""
    counts = status.audit
    spool = {"spooled": counts.spooled, "spool_bytes": status.audit.spool_bytes}
    busy = sum(1 for beat in status.workers.values() if beat.job)
    idle = len(status.workers) - busy
    return {
        **_source_gauges(status),
        **{f"webhookd_{name}": [({}, n)] for name, n in spool.items() if n is not None},
        "webhookd_workers": [({"state": "busy"}, busy), ({"state": "idle"}, idle)],
        "webhookd_ledger_gap": [({}, counts.gap)],
        "webhookd_redis_up": [({}, 1)],
        "webhookd_redis_memory_used_bytes": [({}, memory[0])],
        "webhookd_redis_memory_max_bytes": [({}, memory[1])],
        "webhookd_scrape_duration_seconds": [({}, took_s)],
        "webhookd_build_info": [({"version": version, "python": python}, 1)],
    }


def _source_gauges(status: Status) -> Gauges:
    last = {tuple(field.split(":")): at for field, at in sorted(status.last.items())}
    rows: Gauges = {
        "webhookd_jobs": [],
        "webhookd_oldest_job_age_seconds": [],
        "webhookd_last_accepted_timestamp_seconds": [],
        "webhookd_last_done_timestamp_seconds": [],
    }
    for name, jobs in status.audit.sources.items():
        rows["webhookd_jobs"] += [
            ({"source": name, "state": state}, getattr(jobs, state)) for state in metrics.STATES
        ]
        for state, since in (("ready", jobs.oldest_ready), ("dead", jobs.oldest_dead)):
            age_s = max(0.0, status.now - since) if since else 0.0
            labels = {"source": name, "state": state}
            rows["webhookd_oldest_job_age_seconds"].append((labels, age_s))
        for event in ("accepted", "done"):
            at = last.get((event, name), 0.0)
            rows[f"webhookd_last_{event}_timestamp_seconds"].append(({"source": name}, at))
    rows["webhookd_secret_last_used_timestamp_seconds"] = [
        ({"source": key[1], "secret": key[2]}, at) for key, at in last.items() if key[0] == "secret"
    ]
    return rows
