"""The metrics: one table of everything exported, how durations are counted, and the Prometheus
text of both.

Pure: numbers in, text out. Counters live in Redis as <field>:<label>[:<label>] and are raised in
steps and pipelines that run anyway, so they count all processes and hosts. Every known series starts
at 0. Labels are bounded: a source is one that was configured, or `_unknown`, never a stranger's
path.

A change to a table here belongs into ops/alerts.yml, ops/grafana.json and docs/metrics.md, too
(tests/test_metrics.py compares them).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, NamedTuple

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
    """One row: its field in Redis ("" for a gauge, whose value is read at each scrape), type, help,
    and labels with their known values ("source" stands for every source).
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
    """Return the index of a duration in BUCKETS, one past the last for one longer than all."""
    return bisect_left(BUCKETS[name], seconds)


class Durations:
    """Counts durations of one name where a microsecond matters. `drain` adds them to counters with
    the names that settle.lua uses: h:<name>:<source>:<index>, and the sum in microseconds
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
            for index, n in enumerate(row[:-1]):
                if n:
                    counters[f"h:{self.name}:{source}:{index}"] += int(n)
            counters[f"hs:{self.name}:{source}"] += int(1e6 * max(0.0, row[-1]))
        self.rows.clear()


def text(
    counters: Mapping[str, int] | None,
    gauges: Mapping[str, Iterable[Sample]],
    sources: Iterable[str],
) -> Iterator[str]:
    """Yield the lines of the Prometheus text format (version 0.0.4). `gauges` are samples by name.

    `counters` is None while they cannot be read: at 0 they would look as if they had been reset.
    """
    names = sorted(sources)
    for name, metric in METRICS.items():
        yield f"# HELP {name} {metric.help}\n# TYPE {name} {metric.type}\n"
        if metric.type != "gauge" and counters is None:
            continue
        if counters is not None and metric.type == "histogram":
            for source in names:
                yield from _histogram(name, metric.field, source, counters)
        elif counters is not None and metric.type == "counter":
            for labels in _known_labels(metric, names):
                value = counters.get(":".join((metric.field, *labels.values())), 0)
                yield f"{name}{_labels(labels)} {value}\n"
        else:
            for labels, number in gauges.get(name, ()):
                yield f"{name}{_labels(labels)} {_number(number)}\n"


def _known_labels(metric: Metric, sources: list[str]) -> list[dict[str, str]]:
    """Return every combination of the values that are known for the labels of a metric."""
    rows: list[dict[str, str]] = [{}]
    for label, allowed in metric.labels:
        values = sources if "source" in allowed else []
        values = [*values, *(value for value in allowed if value != "source")]
        rows = [{**row, label: value} for row in rows for value in values]
    return rows


def _histogram(name: str, field: str, source: str, counters: Mapping[str, int]) -> Iterator[str]:
    bounds = [*(_number(bound) for bound in BUCKETS[field]), "+Inf"]
    totals = list(
        accumulate(counters.get(f"h:{field}:{source}:{index}", 0) for index in range(len(bounds)))
    )
    for bound, total in zip(bounds, totals, strict=True):
        yield f"{name}_bucket{_labels({'source': source, 'le': bound})} {total}\n"
    yield f"{name}_sum{_labels({'source': source})} {_number(counters.get(f'hs:{field}:{source}', 0) / 1e6)}\n"
    yield f"{name}_count{_labels({'source': source})} {totals[-1]}\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = (f'{name}="{_quoted(value)}"' for name, value in labels.items())
    return f"{{{','.join(pairs)}}}" if labels else ""


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))
