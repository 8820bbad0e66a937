"""The metrics: one table of all that is exported, how durations are counted, and the Prometheus
text of it.

Pure: numbers in, text out. Counters live in Redis as <field>:<label>[:<label>] and move in steps
and pipelines that are made anyway, so they are right over all processes and hosts. Every series
that is known starts at 0; labels are bounded: a source is one that was configured, or `_unknown`,
never a path of a stranger.

If you change a table here, also change ops/alerts.yml, ops/grafana.json and docs/metrics.md
(tests/test_metrics.py holds them together).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, NamedTuple

from hookq.job import REASONS

CODES: Final = (
    "200",
    "202",
    "400",
    "401",
    "404",
    "405",
    "408",
    "411",
    "413",
    "414",
    "417",
    "431",
    "501",
    "503",
    "505",
)
REJECTED: Final = (
    "signature",
    "timestamp",
    "malformed",
    "missing",
    "too_large",
    "unknown_source",
    "bad_request",
    "overloaded",
)
OUTCOMES: Final = ("done", "retry", "dead", "timeout")
BY: Final = ("page", "command")
LEVELS: Final = ("debug", "info", "warning", "error", "critical")
STATES: Final = ("ready", "leased", "retry", "dead")
UNKNOWN: Final = "_unknown"


class Metric(NamedTuple):
    """One row: its field in Redis ("" for a gauge, whose value is looked up when asked), type,
    help, and labels with the values that are known ("source" stands for every source).
    """

    field: str
    type: str
    help: str
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()


_SOURCE: Final = ("source", ("source",))
METRICS: Final = {
    "webhookd_http_requests_total": Metric("http", "counter", "Requests to ingestion by answer.", (("source", ("source", UNKNOWN)), ("code", CODES))),
    "webhookd_http_request_duration_seconds": Metric("http", "histogram", "From a whole request to its answer, deliveries only.", (_SOURCE,)),
    "webhookd_rejected_total": Metric("rejected", "counter", "Requests that are no delivery.", (("source", ("source", UNKNOWN)), ("reason", REJECTED))),
    "webhookd_accepted_total": Metric("accepted", "counter", "Deliveries that became a job.", (_SOURCE,)),
    "webhookd_duplicates_total": Metric("duplicates", "counter", "Deliveries that were known already.", (_SOURCE,)),
    "webhookd_jobs": Metric("", "gauge", "Jobs by state.", (_SOURCE, ("state", STATES))),
    "webhookd_oldest_job_age_seconds": Metric("", "gauge", "Age of the oldest ready or dead job, 0 if there is none.", (_SOURCE, ("state", ("ready", "dead")))),
    "webhookd_attempts_total": Metric("attempts", "counter", "Runs of handlers by how they ended.", (_SOURCE, ("outcome", OUTCOMES))),
    "webhookd_attempt_duration_seconds": Metric("attempt", "histogram", "How long handlers ran.", (_SOURCE,)),
    "webhookd_wait_seconds": Metric("wait", "histogram", "From ready to the start of the attempt.", (_SOURCE,)),
    "webhookd_delivery_duration_seconds": Metric("delivery", "histogram", "From received to done.", (_SOURCE,)),
    "webhookd_dead_total": Metric("dead", "counter", "Jobs that became dead letters.", (_SOURCE, ("reason", REASONS))),
    "webhookd_redriven_total": Metric("redriven", "counter", "Dead letters put back.", (("by", BY),)),
    "webhookd_discarded_total": Metric("discarded", "counter", "Dead letters discarded.", (("by", BY),)),
    "webhookd_restored_total": Metric("restored", "counter", "Discarded dead letters brought back.", (("by", BY),)),
    "webhookd_reclaimed_total": Metric("reclaimed", "counter", "Leases taken over from workers that were gone.", (_SOURCE,)),
    "webhookd_workers": Metric("", "gauge", "Workers with a heartbeat.", (("state", ("busy", "idle")),)),
    "webhookd_spooled": Metric("", "gauge", "Deliveries in the spool of this machine."),
    "webhookd_spool_bytes": Metric("", "gauge", "Bytes in it."),
    "webhookd_spooled_total": Metric("spooled", "counter", "Deliveries that went through a spool."),
    "webhookd_ledger_gap": Metric("", "gauge", "Accepted less all that is accounted for: 0, or something is wrong."),
    "webhookd_secret_last_used_timestamp_seconds": Metric("", "gauge", "When a secret last signed a delivery, 1 is the newest.", (_SOURCE, ("secret", ()))),
    "webhookd_last_accepted_timestamp_seconds": Metric("", "gauge", "When the last delivery was accepted, 0 for never.", (_SOURCE,)),
    "webhookd_last_done_timestamp_seconds": Metric("", "gauge", "When the last job was done, 0 for never.", (_SOURCE,)),
    "webhookd_redis_up": Metric("", "gauge", "Whether Redis answers."),
    "webhookd_redis_memory_used_bytes": Metric("", "gauge", "Memory that Redis uses."),
    "webhookd_redis_memory_max_bytes": Metric("", "gauge", "Its maxmemory, 0 for no limit."),
    "webhookd_redis_epoch_changes_total": Metric("epoch_changes", "counter", "How often Redis came back without its data."),
    "webhookd_log_messages_total": Metric("log", "counter", "Log lines by level.", (("level", LEVELS),)),
    "webhookd_scrape_duration_seconds": Metric("", "gauge", "How long it took to gather these."),
    "webhookd_build_info": Metric("", "gauge", "1, with the versions.", (("version", ()), ("python", ()))),
}  # fmt: skip

# Upper bounds in seconds: an answer is due in milliseconds, a handler in seconds, a delivery that
# is retried in hours.
BUCKETS: Final = {
    "http": (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    "attempt": (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    "wait": (0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0),
    "delivery": (0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0, 86_400.0),
}

Sample = tuple[dict[str, str], float]


def bucket(name: str, seconds: float) -> int:
    """Return the place of a duration in BUCKETS, one past the last for what is longer than all."""
    return bisect_left(BUCKETS[name], seconds)


class Durations:
    """Counts durations of one name where a microsecond matters; `drain` adds them to counters, as
    settle.lua names them: h:<name>:<source>:<place>, and the sum in microseconds
    hs:<name>:<source>.
    """

    def __init__(self, name: str) -> None:
        self.name, self.bounds = name, BUCKETS[name]
        self.rows: dict[str, list[float]] = {}

    def observe(self, source: str, seconds: float) -> None:
        row = self.rows.get(source) or self.rows.setdefault(source, [0.0] * (len(self.bounds) + 2))
        row[bisect_left(self.bounds, seconds)] += 1
        row[-1] += seconds

    def drain(self, counters: Counter[str]) -> None:
        for source, row in self.rows.items():
            for place, n in enumerate(row[:-1]):
                if n:
                    counters[f"h:{self.name}:{source}:{place}"] += int(n)
            counters[f"hs:{self.name}:{source}"] += int(1e6 * max(0.0, row[-1]))
        self.rows.clear()


def text(
    counters: Mapping[str, int] | None,
    gauges: Mapping[str, Iterable[Sample]],
    sources: Iterable[str],
) -> Iterator[str]:
    """Yield the lines of the Prometheus text format (version 0.0.4). `gauges` are samples by name,
    from whoever knows.

    `counters` is None while they cannot be read: at 0 they would look as if they had been reset.
    """
    known = sorted(sources)
    for name, metric in METRICS.items():
        yield f"# HELP {name} {metric.help}\n# TYPE {name} {metric.type}\n"
        if metric.type != "gauge" and counters is None:
            continue
        if counters is not None and metric.type == "histogram":
            for source in known:
                yield from _histogram(name, metric.field, source, counters)
        elif counters is not None and metric.type == "counter":
            for labels in _known_labels(metric, known):
                value = counters.get(":".join((metric.field, *labels.values())), 0)
                yield f"{name}{_labels(labels)} {value}\n"
        else:
            for labels, number in gauges.get(name, ()):
                yield f"{name}{_labels(labels)} {_number(number)}\n"


def _known_labels(metric: Metric, sources: list[str]) -> Iterator[dict[str, str]]:
    def values(allowed: tuple[str, ...]) -> list[str]:
        return [
            *(sources if "source" in allowed else ()),
            *(value for value in allowed if value != "source"),
        ]

    found: list[dict[str, str]] = [{}]
    for label, allowed in metric.labels:
        found = [{**before, label: value} for before in found for value in values(allowed)]
    yield from found


def _histogram(name: str, field: str, source: str, counters: Mapping[str, int]) -> Iterator[str]:
    bounds = [*(_number(bound) for bound in BUCKETS[field]), "+Inf"]
    totals = list(
        accumulate(counters.get(f"h:{field}:{source}:{place}", 0) for place in range(len(bounds)))
    )
    for bound, total in zip(bounds, totals, strict=True):
        yield f"{name}_bucket{_labels({'source': source, 'le': bound})} {total}\n"
    yield f"{name}_sum{_labels({'source': source})} {_number(counters.get(f'hs:{field}:{source}', 0) / 1e6)}\n"
    yield f"{name}_count{_labels({'source': source})} {totals[-1]}\n"


def _labels(labels: Mapping[str, str]) -> str:
    told = (f'{name}="{_quoted(value)}"' for name, value in labels.items())
    return f"{{{','.join(told)}}}" if labels else ""


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def gauges_of(
    status: Any, memory: tuple[int, int], version: str, python: str, took_s: float
) -> dict[str, list[Sample]]:
    """Return the samples of every gauge from a Status (hookq/operate/status.py). What cannot be known has
    no sample.
    """
    audit, now = status.audit, status.now
    busy = sum(1 for beat in status.workers.values() if beat.job)
    last = {
        (field.partition(":")[0], field.partition(":")[2]): at for field, at in status.last.items()
    }
    sources = audit.sources
    found: dict[str, list[Sample]] = {
        "webhookd_jobs": [
            ({"source": name, "state": state}, getattr(row, state))
            for name, row in sources.items()
            for state in STATES
        ],
        "webhookd_oldest_job_age_seconds": [
            (
                {"source": name, "state": state},
                max(0.0, now - oldest) if (oldest := getattr(row, f"oldest_{state}")) else 0.0,
            )
            for name, row in sources.items()
            for state in ("ready", "dead")
        ],
        "webhookd_workers": [
            ({"state": "busy"}, busy),
            ({"state": "idle"}, len(status.workers) - busy),
        ],
        "webhookd_spooled": [({}, audit.spooled)] if audit.spooled is not None else [],
        "webhookd_spool_bytes": [({}, audit.spool_bytes)] if audit.spool_bytes is not None else [],
        "webhookd_ledger_gap": [({}, audit.gap)],
        "webhookd_secret_last_used_timestamp_seconds": [
            ({"source": rest.partition(":")[0], "secret": rest.partition(":")[2]}, at)
            for (name, rest), at in sorted(last.items())
            if name == "secret"
        ],
        "webhookd_last_accepted_timestamp_seconds": [
            ({"source": name}, last.get(("accepted", name), 0)) for name in sources
        ],
        "webhookd_last_done_timestamp_seconds": [
            ({"source": name}, last.get(("done", name), 0)) for name in sources
        ],
        "webhookd_redis_up": [({}, 1)],
        "webhookd_redis_memory_used_bytes": [({}, memory[0])],
        "webhookd_redis_memory_max_bytes": [({}, memory[1])],
        "webhookd_scrape_duration_seconds": [({}, took_s)],
        "webhookd_build_info": [({"version": version, "python": python}, 1)],
    }
    return found
