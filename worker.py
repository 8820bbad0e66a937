#!/usr/bin/env python3
"""The blocking worker loop: lease, run the handler, settle. One job at a time in each process.

Two threads. The main one leases a few jobs, runs them in turn and settles them together: fast handlers in batches of
a few milliseconds, slow ones at once. The minder keeps the leases, makes due retries ready, and takes over the jobs
of workers that are gone; it lives on while a handler computes.

Every way out of a job ends in a Settled: it returned → done; Retry or any exception → retry, or dead when no attempts
are left; GiveUp → dead. What kills the process settles nothing: another worker finds the lease and runs the job again.

Promises: a job that was accepted is run at least once. Does not promise exactly once: a worker may die between its
work and its settling, so handlers should be idempotent by `delivery.id`.
"""

import argparse
import faulthandler
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hookq import log, process
from hookq.config import VERSION, Config, Source, add_flags, load
from hookq.handlers import GiveUp, Handler, NotJson, Retry, find_handler, parse_body, place_of, time_limit
from hookq.job import Delivery
from hookq.retry import delay_s
from hookq.schemes import SCHEMES
from hookq.signing import Signer
from hookq.store import LEASE_S, RENEW_S, Away, Lease, Settled, Store

BLOCK_MS = 1000  # shorter than the socket's 5 s, and how long a drain may have to wait for an idle worker
SETTLE_S = 0.005  # how long a finished job may wait for others to be settled with
PREFETCH, PREFETCH_BYTES = 64, 4 << 20  # leased at once, at most
TICK_S = 0.5  # of the minder
GONE_LOOK_S = 1.0  # between the two looks after which a worker without a connection is gone
GRACE_S = 5.0  # over its time limit, before a handler that does not see signals costs the process
STALLED_S = 30.0  # without a poll while Redis answers: the loop hangs, and a new process will not
DRAIN_S = 5.0  # for settling while Redis is away at a stop
EX_SOFTWARE = 70

MAX_ERROR = 2000  # characters of an exception's message that are kept


class Worker:
    """The main loop and what the minder may look at: `held`, `current` and `polled_at`."""

    def __init__(self, settings: Config, name: str, signals: process.Signals) -> None:
        self.settings, self.name, self.signals = settings, name, signals
        self.store = Store(settings.redis_url, name)
        self.handlers: dict[str, Handler] = {
            source.signer.name: find_handler(source.handler, source.handler_dir) if source.handler else parse_body
            for source in settings.sources.values()
        }
        self.sources = set(settings.sources)
        self.lock = threading.Lock()
        self.held: dict[bytes, str] = {}
        self.current: tuple[Lease, float, float] | None = None
        self.polled_at = time.monotonic()
        self.finished: list[Settled] = []
        self.mean_s, self.mean_bytes = 0.01, 10_000.0
        self.done = 0

    def run(self) -> None:
        """Lease and work until a stop is asked for; then settle what is done and give back the rest."""
        again = True
        while not self.signals.asked:
            try:
                leases = self._lease(again)
                again = again and bool(leases)
                self._work(leases)
            except Away as error:
                again = True  # a reply may have been lost: what it leased is ours, and only we can know
                self._wait_for_redis(error)
        self._drain()

    def _lease(self, again: bool) -> list[Lease]:
        count = max(1, min(PREFETCH, int(0.05 / self.mean_s), int(PREFETCH_BYTES / self.mean_bytes)))
        leases = self.store.lease(self.sources, count, BLOCK_MS, again=again)
        self.polled_at = time.monotonic()
        with self.lock:
            self.held.update((lease.entry, lease.delivery.source) for lease in leases)
        return leases

    def _work(self, leases: Sequence[Lease]) -> None:
        """Run these jobs in turn; those that were not started when a stop is asked for are given back."""
        begun = 0.0
        for lease in leases:
            if self.signals.asked:
                self.finished.append(Settled(lease, "ready"))
                continue
            if lease.suspect:
                self._settle()
                self.store.announce(lease)
            started = time.monotonic()
            self.finished.append(self._attempt(lease, started))
            took = time.monotonic() - started
            self.mean_s += (took - self.mean_s) / 8 + 1e-6
            self.mean_bytes += (len(lease.delivery.body) - self.mean_bytes) / 8
            begun = begun or started
            if lease.suspect or time.monotonic() - begun > SETTLE_S:
                self._settle()
                begun = 0.0
                if lease.suspect:
                    self.store.announce(None)
        self._settle()

    def _attempt(self, lease: Lease, started: float) -> Settled:
        source = self.settings.sources.get(lease.delivery.source)
        limit_s = source.timeout_s if source else 0.0
        self.current = (lease, started, limit_s)
        try:
            return attempt(lease, source, self.handlers.get(lease.delivery.source), self.name, time.time, random.random)
        finally:
            self.current = None

    def _settle(self) -> None:
        """Settle what is finished; what Redis did not answer for stays, to be settled again: the fence makes that safe."""
        if not self.finished:
            return
        outcomes = self.store.settle(self.finished)
        with self.lock:
            for row in self.finished:
                self.held.pop(row.lease.entry, None)
        for row, settled in zip(self.finished, outcomes, strict=True):
            _tell(row, settled)
        self.done += len(self.finished)
        self.finished = []

    def _wait_for_redis(self, error: Away) -> None:
        log.event("redis.away", "error", why=str(error), then="trying again")
        pause = 0.05
        while not self.signals.asked:
            self.polled_at = time.monotonic()
            try:
                self._settle()
                self.store.ping()
                log.event("redis.up")
                return
            except Away:
                time.sleep(pause)
                pause = min(pause * 2, 1.0)

    def _drain(self) -> None:
        log.event("process.drain", unsettled=len(self.finished))
        give_up_at = time.monotonic() + DRAIN_S
        while self.finished and time.monotonic() < give_up_at:
            try:
                self._settle()
            except Away:
                time.sleep(0.1)
        # Nothing is lost if that failed: the leases run out, and the jobs run again.


def attempt(
    lease: Lease, source: Source | None, handler: Handler | None, worker: str, clock: Callable[[], float], dice: Callable[[], float]
) -> Settled:
    """Run one job and return what becomes of it; nothing that a handler does escapes from here."""
    delivery = lease.delivery
    policy = source or Source(Signer(delivery.source, SCHEMES["hmac"]))
    number = delivery.attempt + 1
    if number > policy.max_attempts:  # the last attempts ended with their workers
        return Settled(lease, "dead", {"worker": worker, "error": "no attempts are left"}, reason="max_attempts")
    started = clock()
    facts: dict[str, Any] = {"attempt": number, "of": policy.max_attempts, "worker": worker}
    facts["wait_ms"] = round(1000 * max(0.0, started - delivery.received_at), 1)
    error = _run(handler, delivery, number, policy.timeout_s)
    facts["run_ms"] = round(1000 * (clock() - started), 1)
    if error is None:
        return Settled(lease, "done", facts)
    facts["error"] = f"{type(error).__name__}: {error}"[:MAX_ERROR]
    facts["place"] = place_of(error)
    if isinstance(error, NotJson):
        facts["error"] = f"not_json: {error}"[:MAX_ERROR]
        return Settled(lease, "dead", facts, reason="not_json")
    if isinstance(error, GiveUp):
        return Settled(lease, "dead", facts, reason="gave_up")
    asked_s = error.after_s if isinstance(error, Retry) else None
    delay = delay_s(number, policy.max_attempts, policy.retry_base_s, policy.retry_max_s, dice, asked_s)
    if delay is None:
        return Settled(lease, "dead", facts, reason="max_attempts" if source else "no_source")
    return Settled(lease, "retry", facts, delay_s=delay)


class NoSource(Exception):
    """The settings do not have this source any more."""


def _run(handler: Handler | None, delivery: Delivery, number: int, limit_s: float) -> BaseException | None:
    if handler is None:
        return NoSource(f"the settings have no source {delivery.source}")
    seen = Delivery(
        delivery.id, delivery.source, delivery.delivery_id, delivery.event_type, delivery.received_at, delivery.head, delivery.body, number
    )
    try:
        with time_limit(limit_s):
            handler(seen)
    except BaseException as error:  # also SystemExit: a handler decides about its job, never about the worker
        return error
    return None


def _tell(row: Settled, settled: bool) -> None:
    delivery, facts = row.lease.delivery, row.facts
    names = {"done": "job.complete", "retry": "job.reschedule", "dead": "job.bury", "ready": "job.release"}
    if not settled:
        log.event("lease.lost", "warning", source=delivery.source, id=delivery.id, outcome=row.outcome)
        return
    level = {"retry": "warning", "dead": "error"}.get(row.outcome, "info")
    told = {key: facts.get(key) for key in ("attempt", "wait_ms", "run_ms", "error", "place")}
    if row.outcome == "retry":
        told["delay_s"] = round(row.delay_s, 3)
    reason = row.reason or None
    log.event(names[row.outcome], level, source=delivery.source, id=delivery.id, event_type=delivery.event_type, reason=reason, **told)


class Minder(threading.Thread):
    """Keeps the leases and looks after those of others. A client of its own, under the same name as the worker's."""

    def __init__(self, worker: Worker) -> None:
        super().__init__(daemon=True)
        self.worker = worker
        self.store = Store(worker.settings.redis_url, worker.name)
        self.missing: set[str] = set()
        self.looked_at = self.renewed_at = self.answered_at = 0.0
        self.epoch = ""
        self.started_at = time.time()

    def run(self) -> None:
        process.boot_check(self.worker.settings.redis_url, self.worker.name)
        while True:
            self._watchdog()
            try:
                self._tick(time.monotonic())
            except Away:
                pass  # the main loop says so; the next tick connects again
            except Exception as error:  # without a minder the leases run out under the handler: better a new process
                log.event("worker.failed", "critical", error=repr(error), place=place_of(error))
                os._exit(EX_SOFTWARE)
            time.sleep(TICK_S)

    def _tick(self, now: float) -> None:
        worker, store = self.worker, self.store
        current = worker.current
        job = {"id": current[0].delivery.id, "source": current[0].delivery.source, "for_s": round(now - current[1], 1)} if current else None
        store.beat({"at": time.time(), "started_at": self.started_at, "pid": os.getpid(), "done": worker.done, "job": job})
        self.answered_at = time.monotonic()
        if now - self.renewed_at >= RENEW_S:
            self.renewed_at = now
            with worker.lock:
                held = dict(worker.held)
            store.renew({source: [entry for entry, name in held.items() if name == source] for source in set(held.values())})
            worker.sources = set(worker.settings.sources) | store.sources()
            self._same_redis()
        while promoted := store.promote():
            for source, id in promoted:
                log.event("job.promote", source=source, id=id)
        if now - self.looked_at >= GONE_LOOK_S:
            self.looked_at = now
            self._reclaim()

    def _reclaim(self) -> None:
        """Take over from workers without a connection in two looks, and whatever lease has run out."""
        holders = self.store.holders()
        connected = self.store.connected()
        missing = holders - connected if connected is not None else set()
        for name in holders:
            gone = name in missing and name in self.missing
            for source, id, outcome, deaths in self.store.reclaim(name, idle_s=0 if gone else LEASE_S):
                log.event("job.reclaim", "warning", source=source, id=id, worker=name, outcome=outcome, deaths=deaths)
        self.missing = missing

    def _same_redis(self) -> None:
        epoch = self.store.epoch()
        if self.epoch and epoch != self.epoch:
            log.event("redis.emptied", "critical", why="Redis came back without its data: jobs that were not done are lost")
        self.epoch = epoch

    def _watchdog(self) -> None:
        """End the process when it can do no more good; its jobs are run by another.

        The timer below belongs to C: it also fires when a handler holds the interpreter and this thread is stuck.
        """
        worker = self.worker
        limit_s = max((source.timeout_s for source in worker.settings.sources.values()), default=0.0) + GRACE_S
        faulthandler.dump_traceback_later(limit_s + TICK_S, exit=True)
        now, current = time.monotonic(), worker.current
        if current and now - current[1] > current[2] + GRACE_S:
            log.event("worker.stuck", "critical", id=current[0].delivery.id, why="its handler did not stop at its time limit")
            faulthandler.dump_traceback()
            os._exit(EX_SOFTWARE)
        idle = not current and not worker.signals.asked
        if idle and self.answered_at > now - 2 * TICK_S and now - worker.polled_at > STALLED_S:
            log.event("worker.stalled", "critical", why=f"no poll for {STALLED_S:g} s while Redis answers")
            os._exit(EX_SOFTWARE)


def main() -> None:
    parser = argparse.ArgumentParser(prog="worker.py", description="Works on the jobs that webhookd.py has taken in.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    add_flags(parser, "STATE_DIR", "WEBHOOKS_FILE")
    flags = {name: value for name, value in vars(parser.parse_args()).items() if name.isupper()}
    sys.path.insert(0, str(Path.cwd()))

    def read_settings() -> Config:
        return load(flags, root=process.root())

    signals = process.Signals()
    settings = process.load_or_exit(read_settings)
    worker = Worker(settings, process.name_of("worker"), signals)
    log.event("process.start", program="worker", version=VERSION, worker=worker.name, sources=sorted(settings.sources))
    Minder(worker).start()
    while True:
        worker.run()
        if signals.stop:
            break
        if process.reload_wanted(signals, read_settings):
            process.reexec()
    log.event("process.end", program="worker", done=worker.done)


if __name__ == "__main__":
    main()
