"""Metrics: the table, what is exported, what is documented, alerts and panels are held together;
and a real Prometheus.
"""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections import Counter

import pytest
import test_dashboard
import test_stack
from conftest import ROOT, accepted, free_port, until
from prometheus_client.parser import text_string_to_metric_families

from hookq import metrics
from hookq.metrics import BUCKETS, METRICS
from hookq.store.records import Settled, Times

page, stack = test_dashboard.page, test_stack.stack
ALERTS, GRAFANA = ROOT / "ops/alerts.yml", ROOT / "ops/grafana.json"
EXPORTED = set(METRICS) | {
    f"{name}_{part}"
    for name, row in METRICS.items()
    if row.type == "histogram"
    for part in ("bucket", "sum", "count")
}


def scraped(page):
    """Return {(name, labels): value}, read by an independent parser."""
    status, text, headers = page.ask(path="/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(text))
    assert len({(family.name, family.type) for family in families}) == len(families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def one(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


TIMES = Times(0, 1000, 3, 400000, 2, 700000)


def run(store, outcome="done", label="done", times=TIMES):
    lease = store.lease({"github": 1}, 100)[0]
    reason = {"reason": "gave_up", "cause": "x"} if outcome == "dead" else {}
    store.settle([Settled(lease, outcome, {"attempt": 1}, label=label, times=times, **reason)])


def test_every_series_that_is_known_starts_at_0(page, store):
    store.lease({"github": 1}, 1)  # a worker has asked for it: the source is known
    found = scraped(page)
    for name, row in METRICS.items():
        if row.type == "counter" and "log" not in name:
            series = {labels: value for (sample, labels), value in found.items() if sample == name}
            assert series and set(series.values()) == {0}, name
    assert one(found, "webhookd_rejected_total", source="_unknown", reason="unknown_source") == 0
    assert one(found, "webhookd_attempt_duration_seconds_count", source="github") == 0
    assert (
        one(found, "webhookd_jobs", source="github", state="retry") == 0
        and one(found, "webhookd_redis_up") == 1
    )


def test_exported_metrics_are_those_of_the_table(page, store):
    accepted(store, 2)
    run(store)
    _, text, _ = page.ask(path="/metrics")
    assert dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)) == {
        name: row.type for name, row in METRICS.items()
    }
    names = {name for name, _ in scraped(page)}
    assert names <= EXPORTED and EXPORTED - names <= {
        name for name, row in METRICS.items() if row.type == "histogram"
    }


def test_counts_follow_the_jobs_through_their_states(page, store):
    accepted(store, 4)
    run(store)
    run(store, "retry", "timeout", Times(8, 9000000, 11, 99000000, 9, 99000000))
    run(store, "dead", "dead", Times(1, 60000, 1, 20000, 1, 200000))
    found = scraped(page)
    states = {
        state: one(found, "webhookd_jobs", source="github", state=state)
        for state in ("ready", "leased", "retry", "dead")
    }
    assert states == {"ready": 1, "leased": 0, "retry": 1, "dead": 1}
    outcomes = {
        outcome: one(found, "webhookd_attempts_total", source="github", outcome=outcome)
        for outcome in ("done", "retry", "dead", "timeout")
    }
    assert outcomes == {"done": 1, "retry": 0, "dead": 1, "timeout": 1}
    assert one(found, "webhookd_dead_total", source="github", reason="gave_up") == 1
    assert one(found, "webhookd_delivery_duration_seconds_count", source="github") == 1
    assert one(found, "webhookd_attempt_duration_seconds_sum", source="github") == pytest.approx(
        0.4 + 99 + 0.02
    )
    assert one(found, "webhookd_last_done_timestamp_seconds", source="github") == pytest.approx(
        time.time(), abs=60
    )
    assert one(found, "webhookd_oldest_job_age_seconds", source="github", state="ready") >= 0
    assert (
        one(found, "webhookd_ledger_gap") == 0
        and one(found, "webhookd_secret_last_used_timestamp_seconds", source="github", secret="0")
        > 0
    )
    store.redis.zadd("{hookq}:retry", dict.fromkeys(store.redis.zrange("{hookq}:retry", 0, -1), 0))
    assert (
        store.promote() and one(scraped(page), "webhookd_jobs", source="github", state="retry") == 0
    )


def test_settle_that_was_refused_is_not_counted(page, store, other):
    accepted(store)
    lease = store.lease({"github": 1}, 100)[0]
    other.reclaim("w1")
    store.settle(
        [Settled(lease, "done", {"attempt": 1}, label="done", times=Times(0, 1, 0, 1, 0, 1))]
    )
    assert one(scraped(page), "webhookd_attempts_total", source="github", outcome="done") == 0


@pytest.mark.parametrize("name", BUCKETS)
def test_buckets_are_cumulative_and_end_with_all(name):
    counters, durations = Counter(), metrics.Durations(name)
    exported = next(
        key for key, row in METRICS.items() if row.type == "histogram" and row.field == name
    )
    for value in [0, *BUCKETS[name], *(bound + 1e-6 for bound in BUCKETS[name])]:
        durations.observe("s", value)
    durations.drain(counters)
    samples = [
        s
        for f in text_string_to_metric_families("".join(metrics.text(counters, {}, ["s"])))
        if f.name == exported
        for s in f.samples
    ]
    totals = [s.value for s in samples if s.name.endswith("_bucket")]
    assert (
        totals == sorted(totals)
        and totals[-1]
        == next(s.value for s in samples if s.name.endswith("_count"))
        == 2 * len(BUCKETS[name]) + 1
    )
    assert (
        totals[0] == 2
        and [s.labels["le"] for s in samples if s.name.endswith("_bucket")][-1] == "+Inf"
    )


def test_strange_label_values_stay_within_their_quotes():
    gauges = {
        "webhookd_secret_last_used_timestamp_seconds": [
            ({"source": 'a"b\\c\nd', "secret": "1"}, 1.5)
        ]
    }
    families = text_string_to_metric_families("".join(metrics.text({}, gauges, [])))
    assert (
        next(s.labels["source"] for f in families for s in f.samples if "secret" in s.labels)
        == 'a"b\\c\nd'
    )


def test_while_redis_is_away_only_that_is_told(running, private_redis):
    port = free_port()
    running("dashboard.py", redis=private_redis, DASHBOARD_PORT=port).saw("process.start")
    made = test_dashboard.Page(port)
    until(lambda: made.ask(path="/readyz")[0] == 200)
    private_redis.stop()
    assert scraped(made) == {("webhookd_redis_up", ()): 0}


def test_documents_alerts_and_panels_name_what_is_exported():
    documented = set(
        re.findall(r"^\| `(webhookd_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE)
    )
    assert documented == set(METRICS)
    for path in (ALERTS, GRAFANA):
        used = set(re.findall(r"\bwebhookd_\w+", path.read_text()))
        assert used and used <= EXPORTED, used - EXPORTED
    assert {panel["type"] for panel in json.loads(GRAFANA.read_text())["panels"]} == {
        "timeseries",
        "stat",
    }


needs_prometheus = pytest.mark.skipif(
    not shutil.which("promtool"),
    reason="there is no prometheus here: sh hookq/setup.sh prometheus installs it",
)


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_the_alerts():
    done = subprocess.run(
        ["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "14 rules found" in done.stdout, done.stdout + done.stderr


@needs_prometheus
def test_prometheus_scrapes_the_stack_and_its_alert_fires(stack, tmp_path):
    stack.start()
    stack.post()
    stack.settled(done=1)
    (tmp_path / "alerts.yml").write_text(re.sub(r"for: \d+m", "for: 1s", ALERTS.read_text()))
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: [alerts.yml]\nscrape_configs:\n"
        "  - job_name: webhookd\n    basic_auth: {username: operator, password: a-password}\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{stack.dash}']}}]\n"
    )
    port = free_port()
    flags = [
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        prometheus = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log)

    def ask(what):
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/api/v1/{what}", timeout=5
            ) as answer:
                return json.load(answer)["data"]
        except OSError:
            return {}

    def firing():
        return {
            alert["labels"]["alertname"]
            for alert in ask("alerts").get("alerts", [])
            if alert["state"] == "firing"
        }

    try:
        until(
            lambda: ask("query?query=webhookd_accepted_total").get("result"), 30, "a first scrape"
        )
        assert ask("query?query=sum(webhookd_accepted_total)")["result"][0]["value"][1] == "1"
        assert not firing() & {"WebhookdNoWorkers", "WebhookdDown", "WebhookdLedgerGap"}
        stack.ctl("stop", "worker:*")
        until(lambda: "WebhookdNoWorkers" in firing(), 40, "the alert")
    finally:
        prometheus.terminate()
        prometheus.wait(20)
