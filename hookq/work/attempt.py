"""One attempt: run a job's handler, and decide what becomes of the job. Pure: clock and dice are
arguments; the handler alone touches the world.

    the handler                           the job becomes
    returns                               done
    raises GiveUp                         dead: gave_up
    raises NotJson (the default one)      dead: not_json
    raises anything else, or runs over    retry; after the last attempt dead: max_attempts
    its time limit
    is missing, since the settings lack   retry; after the last attempt dead: no_source
    the source

Promises: each attempt ends in one Settled, whatever its handler does, unless the process dies. Then
the lease is reclaimed and the job runs again. Nothing is settled here: a Settled is a proposal, and
Redis refuses it when the lease was lost meanwhile (R5).
"""

import math
from collections.abc import Callable
from typing import Any, Final

from hookq.job import Delivery, cause_of
from hookq.metrics import bucket
from hookq.outcome import (
    GiveUp,
    NotJson,
    Outcome,
    Retry,
    TimeLimit,
    place_of,
    text_of,
    trace_of,
)
from hookq.schemes import SCHEMES
from hookq.signing import Verifier
from hookq.sources import Source
from hookq.store.records import Lease, Settled, Times
from hookq.work.python import Runner
from hookq.work.retry import delay_s

MAX_ERROR: Final = 2000  # characters of an exception's message that are kept

# What ends an attempt → its event and level in the log.
EVENTS: Final = {
    "done": ("job.complete", "info"),
    "retry": ("job.reschedule", "warning"),
    "dead": ("job.bury", "error"),
    "ready": ("job.release", "info"),
}


class NoSource(Exception):
    """The settings no longer have this source."""


def attempt(
    lease: Lease,
    source: Source | None,
    run: Runner | None,
    worker: str,
    clock: Callable[[], float],
    dice: Callable[[], float],
) -> Settled:
    """Run one job and return what becomes of it; nothing that a handler raises escapes.

    `run` is None when the settings lack the source. A new deployment may bring it back, so its jobs
    are retried like failed ones, by the defaults.
    """
    delivery = lease.delivery
    policy = source or Source(delivery.source, Verifier(SCHEMES["hmac"]))
    number = delivery.attempt + 1
    # Each attempt so far was charged by a reclaim: their workers died, and none of them settled.
    if number > policy.max_attempts:
        spent: dict[str, Any] = {"worker": worker, "error": "no attempts are left"}
        return Settled(lease, "dead", spent, reason="max_attempts", cause="max_attempts")
    started = clock()
    wait_s = started - lease.ready_at
    facts: dict[str, Any] = {
        "attempt": number,
        "of": policy.max_attempts,
        "worker": worker,
        # These two stand in the delivery, which is gone once the job is done.
        "event_type": delivery.event_type,
        "delivery_id": delivery.delivery_id,
        "wait_ms": round(1000 * max(0.0, wait_s), 1),
    }
    error: BaseException | None
    if run:
        error, more = _run(run, delivery._replace(attempt=number), policy.timeout_s)
        facts |= more
    else:
        error = NoSource(f"the settings have no source {delivery.source}")
    ended = clock()
    facts["run_ms"] = round(1000 * (ended - started), 1)
    times = _times(wait_s, ended - started, ended - delivery.received_at)
    if error is None:
        return Settled(lease, "done", facts, label="done", times=times)
    return _failed(lease, policy, facts, error, times, dice)


def end_line(row: Settled, settled: bool) -> tuple[str, str, dict[str, Any]]:
    """Return the log line of an attempt's end: event, level, facts. What was not settled says so,
    since it changed nothing.
    """
    delivery, facts = row.lease.delivery, row.facts
    line: dict[str, Any] = {"source": delivery.source, "id": delivery.id}
    if not settled:
        line["outcome"] = row.outcome
        return "lease.lost", "warning", line
    line |= {
        "event_type": delivery.event_type,
        "reason": row.reason or None,
        "traceparent": delivery.traceparent,
    }
    for key in ("attempt", "wait_ms", "run_ms", "delay_s", "error", "place"):
        line[key] = facts.get(key)
    return *EVENTS[row.outcome], line


def _run(run: Runner, delivery: Delivery, limit_s: float) -> Outcome:
    """Run the handler. A fault of ours on the way fails the attempt, as one of the handler does: if
    it escaped, it would end the worker, and the next one, and so on.
    """
    try:
        return run(delivery, limit_s)
    except Exception as error:
        return error, {}


def _failed(
    lease: Lease,
    policy: Source,
    facts: dict[str, Any],
    error: BaseException,
    times: Times,
    dice: Callable[[], float],
) -> Settled:
    """Return a retry, or a dead letter when no attempt is left or none could help."""
    place, text, reason = place_of(error), text_of(error), _reason(error)
    if reason == "not_json":
        text = text.replace("NotJson", "not_json", 1)
    facts |= {"error": text[:MAX_ERROR], "place": place}
    timeout = isinstance(error, TimeLimit)
    if reason not in ("gave_up", "not_json"):
        delay = _delay_s(error, facts["attempt"], policy, dice)
        if delay is not None:
            facts["delay_s"] = round(delay, 3)
            label = "timeout" if timeout else "retry"
            return Settled(lease, "retry", facts, delay_s=delay, label=label, times=times)
    return Settled(
        lease,
        "dead",
        facts,
        reason=reason,
        cause=cause_of(reason, error, place),
        trace=trace_of(error),
        label="timeout" if timeout else "dead",
        times=times,
    )


def _reason(error: BaseException) -> str:
    """Return why the job would become a dead letter."""
    if isinstance(error, NotJson):
        return "not_json"
    if isinstance(error, GiveUp):
        return "gave_up"
    return "no_source" if isinstance(error, NoSource) else "max_attempts"


def _delay_s(
    error: BaseException, number: int, policy: Source, dice: Callable[[], float]
) -> float | None:
    """Return seconds until the next attempt, None when there is none left."""
    asked_s = error.after_s if isinstance(error, Retry) else None
    # A subclass of a handler's own may have put anything there. No time of NaN is ever due, and
    # Redis would refuse the whole batch for it.
    if not isinstance(asked_s, float) or math.isnan(asked_s):
        asked_s = None
    return delay_s(
        number, policy.max_attempts, policy.retry_base_s, policy.retry_max_s, dice, asked_s
    )


def _times(wait_s: float, run_s: float, all_s: float) -> Times:
    """Return how long it took, as it is counted. The clocks of hosts differ a little, but none may
    come out negative.
    """
    wait_s, run_s, all_s = max(0.0, wait_s), max(0.0, run_s), max(0.0, all_s)
    return Times(
        bucket("wait", wait_s),
        int(1e6 * wait_s),
        bucket("attempt", run_s),
        int(1e6 * run_s),
        bucket("delivery", all_s),
        int(1e6 * all_s),
    )
