#!/usr/bin/env python3
"""The blocking worker loop: lease, run the handler, settle. One job in Python at a time in each
process.

Two threads, and more for what waits. The main one leases a few jobs, runs them in turn and settles
them together: fast handlers in batches of a few milliseconds, while the next batch runs; slow ones
at once. The minder keeps the leases, makes due retries ready, and takes over the jobs of workers
that are gone; it lives on while a handler computes. Jobs that wait for somebody else, a URL or a
command, run beside the main thread, up to `concurrency` of each source.

Every way out of a job ends in a Settled: it returned → done; Retry or any exception → retry, or
dead when no attempts are left; GiveUp → dead. What kills the process settles nothing: another
worker finds the lease and runs the job again.

Promises: a job that was accepted is run at least once. Does not promise exactly once: a worker may
die between its work and its settling, so handlers should be idempotent by `delivery.id`.
"""

import argparse
import contextlib
import faulthandler
import fnmatch
import functools
import mmap
import os
import random
import re
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from hookq import log, process
from hookq.command import Command
from hookq.config import VERSION, Config, Source, add_flags, load
from hookq.forward import Target
from hookq.handlers import (
    GiveUp,
    NotJson,
    Retry,
    Runner,
    Spec,
    TimeLimit,
    find_handler,
    in_process,
    kind_of,
    parse_body,
    place_of,
    stop_watch,
    text_of,
    trace_of,
    watch_time,
)
from hookq.job import Delivery, cause_of
from hookq.link import Away
from hookq.metrics import bucket
from hookq.retry import delay_s
from hookq.schemes import SCHEMES
from hookq.signing import Signer
from hookq.store import LEASE_S, RENEW_S, Lease, Settled, Store

BLOCK_MS = (
    1000  # shorter than the socket's 5 s, and how long a drain may have to wait for an idle worker
)
SETTLE_S = 0.005  # how long a finished job may wait for others to be settled with
# of work: the next batch is leased during a shorter one; during a longer one others may want its
# jobs
AHEAD_S = 0.01
PREFETCH, PREFETCH_BYTES = 32, 4 << 20  # leased at once, at most
TICK_S = 0.5  # of the minder
GONE_LOOK_S = 1.0  # between two looks for workers without a connection
GRACE_S = 5.0  # over its time limit, before a handler that does not see signals costs the process
CLOCK_SET_S = (
    5.0  # Redis' clock, against ours that nobody sets: more than the two drift, and a slow answer
)
STALLED_S = 30.0  # without a poll while Redis answers: the loop hangs, and a new process will not
PAUSE_S, MAX_PAUSE_S = (
    0.05,
    1.0,
)  # before Redis is asked again; halved at random, so that workers do not come all at once
PROMOTE_ROUNDS = 10  # of 100 due retries in one tick: leases must be renewed meanwhile
FULL_S = 0.01  # how long a free place beside may go unseen while others wait for Redis
# without a heartbeat, where no list of clients tells who lives; longer than clocks are apart
FORGET_S = 300.0
DRAIN_S = 5.0  # for settling while Redis is away at a stop
EX_SOFTWARE = 70

MAX_ERROR = 2000  # characters of an exception's message that are kept


class Hand:
    """Which entry is in hand: 64 bytes of a file in STATE_DIR, written through shared memory before
    each job.

    It costs a microsecond and outlives a kill -9, so that other workers of this machine know which
    of the leases of a dead one killed it (R9). A worker on another machine does not see it, and
    takes all of them for suspects.
    """

    def __init__(self, state_dir: Path, worker: str) -> None:
        self.path = state_dir / "hand" / worker
        self.memory: mmap.mmap | None = None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.path.open("w+b") as file:
                os.posix_fallocate(
                    file.fileno(), 0, 64
                )  # a full disk is told now, not by a SIGBUS later
                self.memory = mmap.mmap(file.fileno(), 64)
        except OSError as error:
            log.event("hand.failed", "warning", why=f"{self.path}: {error.strerror}")

    def take(self, entry: bytes) -> None:
        if self.memory:
            self.memory[:] = entry.ljust(64, b"\0")

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    @staticmethod
    def of(state_dir: Path, worker: str) -> bytes | None:
        """Return what that worker had in hand, b"" for nothing, or None when it was not of this
        machine.
        """
        try:
            return (state_dir / "hand" / worker).read_bytes().rstrip(b"\0")
        except OSError:
            return None


class Way(NamedTuple):
    """How a job is run: by what, and whether that waits for somebody else."""

    run: Runner
    waits: bool


def way_of(spec: Spec, source: Source) -> Way:
    kind = kind_of(spec)
    if kind == "http":
        first_byte_s, private = source.first_byte_s, source.allow_private
        schemes = filter(None, (source.signer.scheme, source.signer.scheme.or_else))
        withheld = [scheme.header for scheme in schemes if scheme.algorithm == "token"]
        made = Target(
            str(spec),
            source.target_secret,
            source.answers,
            private=private,
            first_byte_s=first_byte_s,
            withheld=withheld,
        )
        return Way(made.run, True)
    if kind == "command":
        return Way(Command(tuple(spec), source.handler_dir).run, True)
    if kind == "ignore":
        return Way(lambda _delivery, _limit_s: (None, {"ignored": True}), False)
    return Way(
        in_process(find_handler(str(spec), source.handler_dir) if kind == "python" else parse_body),
        False,
    )


class Ways:
    """The ways of one source: the first rule whose pattern fits the event type, else the
    default.
    """

    def __init__(self, source: Source) -> None:
        self.rules = [
            (re.compile(fnmatch.translate(event)).match, way_of(spec, source))
            for event, spec in source.rules
        ]
        self.default = way_of(source.handler, source)
        self.waits = any(way.waits for way in [self.default, *(way for _, way in self.rules)])

    def of(self, event_type: str) -> Way:
        return (
            next((way for fits, way in self.rules if fits(event_type)), self.default)
            if self.rules
            else self.default
        )


class Beside:
    """Jobs that run beside the main thread, each in one of its own, up to `concurrency` of a source
    at a time.

    What has ended is settled at once, by one more thread, however long the main one is busy. What
    Redis does not answer for is settled again: the fence makes that safe.
    """

    def __init__(
        self,
        settings: Config,
        waiting: Sequence[str],
        name: str,
        settled: Callable[[Sequence[Settled], Sequence[bool]], None],
    ) -> None:
        self.limits = {
            source.signer.name: source.concurrency for source in settings.sources.values()
        }
        self.running: Counter[str] = Counter()
        self.leases: dict[
            bytes, tuple[Lease, float]
        ] = {}  # and when they began; until they are settled
        self.freed = threading.Event()
        self.lock = threading.Lock()
        self.ended: SimpleQueue[Settled | None] = SimpleQueue()
        self.store, self.settled = Store(settings.redis_url, name), settled
        threading.stack_size(512 * 1024)  # of each: 8 MB would be counted against WORKER_MEMORY
        self.pool = ThreadPoolExecutor(sum(self.limits[name] for name in waiting), "beside")
        self.settler = threading.Thread(target=self._settle, daemon=True)
        self.settler.start()

    def free(self, source: str) -> int:
        return self.limits.get(source, 1) - self.running[source]

    def start(self, lease: Lease, work: Callable[[Lease], Settled]) -> None:
        with self.lock:
            self.running[lease.delivery.source] += 1
            self.leases[lease.entry] = lease, time.monotonic()
        with contextlib.suppress(
            RuntimeError
        ):  # no further thread can be had: it is queued, and one of those that are here takes it
            self.pool.submit(self._run, lease, work)

    def _run(self, lease: Lease, work: Callable[[Lease], Settled]) -> None:
        self.ended.put(work(lease))  # nothing escapes from there
        with self.lock:
            self.running[lease.delivery.source] -= 1
        self.freed.set()

    def _settle(self) -> None:
        last = False
        while not last:
            rows = [self.ended.get()]
            while not self.ended.empty():
                rows.append(self.ended.get())
            last, known = None in rows, [row for row in rows if row]
            while known:
                try:
                    self.settled(known, self.store.settle(known))
                    break
                except Away:  # the main loop says so
                    time.sleep(PAUSE_S)
                # without a settler nothing would be settled any more: better a new process
                except Exception as error:
                    log.event("worker.failed", "critical", error=repr(error), place=place_of(error))
                    os._exit(EX_SOFTWARE)
            with self.lock:
                for row in known:
                    self.leases.pop(row.lease.entry, None)

    def end(self) -> None:
        """Wait for what runs, each as long as its time limit lets it, and settle it."""
        self.pool.shutdown()
        self.ended.put(None)
        self.settler.join(
            DRAIN_S
        )  # nothing is lost if that was too short: the leases run out, and the jobs run again


class Worker:
    """The main loop and what the minder may look at: `held`, `current`, `beside` and
    `polled_at`.
    """

    def __init__(self, settings: Config, name: str, signals: process.Signals) -> None:
        self.settings, self.name, self.signals = settings, name, signals
        self.store = Store(settings.redis_url, name)
        self.ways = {source.signer.name: Ways(source) for source in settings.sources.values()}
        self.sources = set(settings.sources)
        self.hand = Hand(settings.state_dir, name)
        self.lock = threading.Lock()
        self.held: dict[bytes, str] = {}
        self.current: tuple[Lease, float, float] | None = None
        self.polled_at = time.monotonic()
        self.finished: list[Settled] = []
        self.asked: list[Settled] = []  # those of which Redis has been told, and has not answered
        self.mean_s, self.mean_bytes, self.spread = 0.01, 10_000.0, 1
        self.done = 0
        self.away = False
        self.ahead_s: float | None = (
            None  # of Redis' clock, which all hosts have in common, before ours that nobody sets
        )
        self.full = False  # of memory: it starts anew after the job that filled it
        self.beside: Beside | None = None

    def clock(self) -> float:
        """Return the time by Redis' clock, as it was seen last."""
        return time.time() if self.ahead_s is None else time.monotonic() + self.ahead_s

    def run(self) -> None:
        """Lease and work until a stop is asked for; then settle what is done and give back the
        rest.
        """
        again, pause_s = True, PAUSE_S
        # The first jobs are dated by it, too; later looks are the minder's, which tells of a step.
        if self.ahead_s is None:
            with contextlib.suppress(Away):
                self.ahead_s = self.store.now() - time.monotonic()
        waiting = [name for name, ways in self.ways.items() if ways.waits]
        self.beside = Beside(self.settings, waiting, self.name, self._settled) if waiting else None
        while not (self.signals.asked or self.full):
            self.polled_at = time.monotonic()
            try:
                # what a lost connection left over: it must not be leased, and run, again
                self._settle()
                leases = self._lease(again)
                again = again and bool(leases)
                self._is_away(False)
                pause_s = PAUSE_S
                self._work(leases)
            except Away as error:
                again = (
                    True  # a reply may have been lost: what it leased is ours, and only we can know
                )
                self.store.forget()
                self.asked, self.finished = [], self.asked + self.finished
                self._is_away(True, str(error))
                time.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        self._drain()

    def _is_away(self, away: bool, why: str = "") -> None:
        """Write one line for each change: a Redis that refuses is asked again for hours."""
        if away != self.away:
            self.away = away
            log.event("redis.away", "error", why=why, then="trying again") if away else log.event(
                "redis.up"
            )

    def _count(self) -> int:
        # COUNT is per stream: what several busy sources give at once is still one batch.
        return max(
            1,
            min(PREFETCH, int(0.05 / self.mean_s), int(PREFETCH_BYTES / self.mean_bytes))
            // self.spread,
        )

    def _lease(self, again: bool) -> list[Lease]:
        more = len(self.held) if again else 0  # what is held already comes first
        if not self.beside:
            return self._took(
                self.store.lease(self.sources, self._count() + more, BLOCK_MS, again=again)
            )
        self.beside.freed.clear()
        free = {
            name: self.beside.free(name)
            for name in self.sources
            if name in self.ways and self.ways[name].waits
        }
        sources = {name for name in self.sources if free.get(name, 1) > 0}
        if not sources:
            self.beside.freed.wait(FULL_S)
            return self._took([])
        count = min([self._count(), *(places for places in free.values() if places > 0)])
        block_ms = int(1000 * FULL_S) if len(sources) < len(self.sources) else BLOCK_MS
        known = set(
            self.beside.leases
        )  # before it is asked: what is settled meanwhile is not to run again
        leases = self.store.lease(sources, count + more, block_ms, again=again)
        return self._took([lease for lease in leases if lease.entry not in known])

    def _took(self, leases: list[Lease]) -> list[Lease]:
        self.polled_at = time.monotonic()
        self.spread = max(1, len({lease.delivery.source for lease in leases}))
        with self.lock:
            self.held.update((lease.entry, lease.delivery.source) for lease in leases)
        strange = sum(not lease.known for lease in leases)
        if strange:
            why = (
                "a newer version wrote them: they are kept, and run by a worker of that version "
                "when this one has ended"
            )
            log.event("job.unknown", "error", jobs=strange, why=why)
        return [lease for lease in leases if lease.known] if strange else leases

    def _work(self, leases: list[Lease]) -> None:
        """Run these jobs and those that are ready after them; what is quick is settled, and the
        next leased, meanwhile.
        """
        while leases:
            ahead = (
                len(leases) >= self._count()
                and len(leases) * self.mean_s < AHEAD_S
                and not (self.beside or self.stopping)
            )
            if ahead:
                self.asked, self.finished = self.finished, []
                self.store.ask(self.asked, self.sources, self._count())
            self._run(leases)
            leases = self._answer() if ahead else []
        self._settle()

    def _answer(self) -> list[Lease]:
        outcomes, leases = self.store.answer()
        asked, self.asked = self.asked, []
        self._settled(asked, outcomes)
        return self._took(leases)

    def _run(self, leases: Sequence[Lease]) -> None:
        """Run these jobs in turn; those that were not started when a stop is asked for are given
        back.
        """
        begun = 0.0
        watch_time()
        for lease in leases:
            if self.stopping:
                self.finished.append(Settled(lease, "ready"))
                continue
            ways = self.ways.get(lease.delivery.source)
            way = ways.of(lease.delivery.event_type) if ways else None
            if self.beside and way and way.waits:
                self.beside.start(lease, functools.partial(self._attempt, way=way))
                continue
            if lease.suspect:
                self._settle()
                self.store.announce(lease)
            started = time.monotonic()
            self.finished.append(self._in_hand(lease, way, started))
            took = time.monotonic() - started
            self.mean_s += (took - self.mean_s) / 8 + 1e-6
            self.mean_bytes += (len(lease.delivery.body) - self.mean_bytes) / 8
            begun = begun or started
            if lease.suspect or time.monotonic() - begun > SETTLE_S:
                self._settle()
                begun = 0.0
                if lease.suspect:
                    self.store.announce(None)

    @property
    def stopping(self) -> bool:
        return self.signals.asked or self.full

    def _in_hand(self, lease: Lease, way: Way | None, started: float) -> Settled:
        """Run a job in this thread, where it may cost the process: others can see which one that
        was.
        """
        source = self.settings.sources.get(lease.delivery.source)
        self.current = (lease, started, source.timeout_s if source else 0.0)
        self.hand.take(lease.entry)
        try:
            return self._attempt(lease, way)
        finally:
            self.hand.take(b"")
            self.polled_at = time.monotonic()
            self.current = None

    def _attempt(self, lease: Lease, way: Way | None) -> Settled:
        source = self.settings.sources.get(lease.delivery.source)
        settled = attempt(
            lease, source, way.run if way else None, self.name, self.clock, random.random
        )
        if str(settled.facts.get("error")).startswith("MemoryError"):
            self.full = True
            log.event(
                "worker.full",
                "error",
                id=lease.delivery.id,
                why="a handler met WORKER_MEMORY; the worker starts anew",
            )
        return settled

    def _settle(self) -> None:
        """Settle what is finished; what Redis did not answer for stays, to be settled again: the
        fence makes that safe.
        """
        if not self.finished:
            return
        outcomes = self.store.settle(self.finished)
        finished, self.finished = self.finished, []
        self._settled(finished, outcomes)

    def _settled(self, rows: Sequence[Settled], outcomes: Sequence[bool]) -> None:
        with self.lock:
            for row in rows:
                self.held.pop(row.lease.entry, None)
            self.done += len(rows)
        log.events(_told(row, settled) for row, settled in zip(rows, outcomes, strict=True))

    def _drain(self) -> None:
        log.event("process.drain", unsettled=len(self.finished))
        give_up_at = time.monotonic() + DRAIN_S
        while self.finished and time.monotonic() < give_up_at:
            try:
                self._settle()
            except Away:
                time.sleep(0.1)
        if self.beside:
            self.beside.end()
        # Nothing is lost if that failed: the leases run out, and the jobs run again.
        self.hand.close()
        stop_watch()


def attempt(
    lease: Lease,
    source: Source | None,
    run: Runner | None,
    worker: str,
    clock: Callable[[], float],
    dice: Callable[[], float],
) -> Settled:
    """Run one job and return what becomes of it; nothing that a handler does escapes from here."""
    delivery = lease.delivery
    policy = source or Source(Signer(delivery.source, SCHEMES["hmac"]))
    number = delivery.attempt + 1
    if number > policy.max_attempts:  # the last attempts ended with their workers
        facts: dict[str, Any] = {"worker": worker, "error": "no attempts are left"}
        return Settled(lease, "dead", facts, reason="max_attempts", cause="max_attempts")
    started = clock()
    wait_s = max(0.0, started - lease.ready_at)
    facts = {"attempt": number, "of": policy.max_attempts, "worker": worker}
    facts |= {
        "event_type": delivery.event_type,
        "delivery_id": delivery.delivery_id,
    }  # the job itself is gone once done
    facts["wait_ms"] = round(1000 * wait_s, 1)
    error: BaseException | None = NoSource(f"the settings have no source {delivery.source}")
    if run:
        error, more = _whole(run, delivery._replace(attempt=number), policy.timeout_s)
        facts |= more
    ended = clock()
    facts["run_ms"] = round(1000 * (ended - started), 1)
    durations = (
        ("wait", wait_s),
        ("attempt", max(0.0, ended - started)),
        ("delivery", max(0.0, ended - delivery.received_at)),
    )
    counted = " ".join(
        f"{bucket(name, seconds)} {int(1e6 * seconds)}" for name, seconds in durations
    )
    if error is None:
        return Settled(lease, "done", facts, counted=f"done {counted}")
    facts["error"] = text_of(error)[:MAX_ERROR]
    facts["place"] = place_of(error)
    reason = ""
    if isinstance(error, NotJson):
        facts["error"] = text_of(error).replace("NotJson", "not_json", 1)[:MAX_ERROR]
        reason = "not_json"
    elif isinstance(error, GiveUp):
        reason = "gave_up"
    else:
        asked_s = (
            error.after_s if isinstance(error, Retry) and isinstance(error.after_s, float) else None
        )
        delay = delay_s(
            number, policy.max_attempts, policy.retry_base_s, policy.retry_max_s, dice, asked_s
        )
        if delay is not None:
            label = "timeout" if isinstance(error, TimeLimit) else "retry"
            return Settled(
                lease,
                "retry",
                {**facts, "delay_s": round(delay, 3)},
                delay_s=delay,
                counted=f"{label} {counted}",
            )
        reason = "max_attempts" if source else "no_source"
    label = "timeout" if isinstance(error, TimeLimit) else "dead"
    cause, trace = cause_of(reason, error, facts["place"]), trace_of(error)
    return Settled(
        lease, "dead", facts, reason=reason, cause=cause, trace=trace, counted=f"{label} {counted}"
    )


def _whole(
    run: Runner, delivery: Delivery, limit_s: float
) -> tuple[BaseException | None, dict[str, Any]]:
    """Run it; an exception of our own must not keep the job from being settled."""
    try:
        return run(delivery, limit_s)
    except Exception as error:
        return error, {}


class NoSource(Exception):
    """The settings do not have this source any more."""


def _told(row: Settled, settled: bool) -> tuple[str, str, dict[str, Any]]:
    """Return the line of the log about the end of an attempt."""
    delivery, facts = row.lease.delivery, row.facts
    told: dict[str, Any] = {"source": delivery.source, "id": delivery.id}
    if not settled:
        return "lease.lost", "warning", {**told, "outcome": row.outcome}
    names = {
        "done": "job.complete",
        "retry": "job.reschedule",
        "dead": "job.bury",
        "ready": "job.release",
    }
    level = {"retry": "warning", "dead": "error"}.get(row.outcome, "info")
    told |= {
        "event_type": delivery.event_type,
        "reason": row.reason or None,
        "traceparent": delivery.traceparent,
    }
    told |= {
        key: facts.get(key) for key in ("attempt", "wait_ms", "run_ms", "delay_s", "error", "place")
    }
    return names[row.outcome], level, told


class Minder(threading.Thread):
    """Keeps the leases and looks after those of others. A client of its own, under the same name as
    the worker's.
    """

    def __init__(self, worker: Worker) -> None:
        super().__init__(daemon=True)
        self.worker = worker
        self.store = Store(worker.settings.redis_url, worker.name)
        self.looked_at = self.renewed_at = self.answered_at = self.idle_at = 0.0
        self.up_since = time.monotonic()
        self.epoch = ""
        self.started_at = time.monotonic()
        # before the first job: one that holds the interpreter would keep this thread from ever
        # doing it
        self._watchdog()

    def run(self) -> None:
        process.boot_check(self.worker.settings, self.worker.name)
        while True:
            self._watchdog()
            try:
                self._tick(time.monotonic())
            except Away:  # the main loop says so; the next tick connects again
                self.up_since = time.monotonic()
            # without a minder the leases run out under the handler: better a new process
            except Exception as error:
                log.event("worker.failed", "critical", error=repr(error), place=place_of(error))
                os._exit(EX_SOFTWARE)
            time.sleep(TICK_S)

    def _tick(self, now: float) -> None:
        worker, store = self.worker, self.store
        current = worker.current
        beside = list(worker.beside.leases.values()) if worker.beside else []
        lease, began = current[:2] if current else beside[0] if beside else (None, now)
        job = (
            {
                "id": lease.delivery.id,
                "source": lease.delivery.source,
                "for_s": round(now - began, 1),
            }
            if lease
            else None
        )
        beat = {
            "up_s": round(now - self.started_at),
            "pid": os.getpid(),
            "done": worker.done,
            "job": job,
        }
        store.beat(beat, log.take_counts())
        self.answered_at = time.monotonic()
        if now - self.renewed_at >= RENEW_S:
            self.renewed_at = now
            with worker.lock:
                held = dict(worker.held)
            store.renew(
                {
                    source: [entry for entry, name in held.items() if name == source]
                    for source in set(held.values())
                }
            )
            worker.sources = set(worker.settings.sources) | store.sources()
            self._same_redis()
            self._clock_was_set(now)
        for _ in range(PROMOTE_ROUNDS):
            promoted = store.promote()
            for source, id in promoted:
                log.event("job.promote", source=source, id=id)
            if not promoted:
                break
        if (
            now - self.looked_at >= GONE_LOOK_S - TICK_S / 4
        ):  # or every other look comes a tick late
            self.looked_at = now
            self._look_for_gone(now)

    def _look_for_gone(self, now: float) -> None:
        """Take over from workers without a connection in two looks, and whatever lease has
        run out.
        """
        holders = self.store.holders()
        gone = self.store.gone(holders)
        for name in gone or ():
            self._reclaim(name)
        # While Redis was away nobody could renew: those leases have not run out.
        if (
            now - self.idle_at >= RENEW_S
            and now - self.up_since > LEASE_S
            and not self._clock_was_set(now)
        ):
            self.idle_at = now
            redis_now = self.store.now()
            old = {
                name
                for name, beat in self.store.workers().items()
                if redis_now - beat["at"] > FORGET_S
            }
            for name in holders - (gone or set()):
                self._reclaim(name, 0.0 if gone is None and name in old else LEASE_S)

    def _reclaim(self, name: str, idle_s: float = 0.0) -> None:
        state_dir = self.worker.settings.state_dir
        for source, id, outcome, deaths in self.store.reclaim(
            name, idle_s=idle_s, hand=Hand.of(state_dir, name)
        ):
            log.event(
                "job.reclaim",
                "warning",
                source=source,
                id=id,
                worker=name,
                outcome=outcome,
                deaths=deaths,
            )
        if not idle_s:
            (state_dir / "hand" / name).unlink(missing_ok=True)

    def _clock_was_set(self, now: float) -> bool:
        """Tell whether Redis' clock jumped since the last look: every lease looks old then, until
        it is renewed.
        """
        worker = self.worker
        was, worker.ahead_s = worker.ahead_s, self.store.now() - now
        if was is None or abs(worker.ahead_s - was) < CLOCK_SET_S:
            return False
        log.event(
            "clock.set",
            "warning",
            by_s=round(worker.ahead_s - was),
            then=f"no lease runs out within {LEASE_S:g} s",
        )
        self.up_since = now
        return True

    def _same_redis(self) -> None:
        epoch = self.store.epoch(self.epoch)
        if self.epoch and epoch != self.epoch:
            log.event(
                "redis.emptied",
                "critical",
                why="Redis came back without its data: jobs that were not done are lost",
            )
        self.epoch = epoch

    def _watchdog(self) -> None:
        """End the process when it can do no more good; its jobs are run by another.

        The timer below belongs to C: it also fires when a handler holds the interpreter and this
        thread is stuck.
        """
        worker = self.worker
        limit_s = (
            max((source.timeout_s for source in worker.settings.sources.values()), default=0.0)
            + GRACE_S
        )
        faulthandler.dump_traceback_later(limit_s + TICK_S, exit=True)
        now, current = time.monotonic(), worker.current
        if current and now - current[1] > current[2] + GRACE_S:
            log.event(
                "worker.stuck",
                "critical",
                id=current[0].delivery.id,
                why="its handler did not stop at its time limit",
            )
            faulthandler.dump_traceback()
            os._exit(EX_SOFTWARE)
        idle = not current and not worker.stopping
        if idle and self.answered_at > now - 2 * TICK_S and now - worker.polled_at > STALLED_S:
            log.event(
                "worker.stalled", "critical", why=f"no poll for {STALLED_S:g} s while Redis answers"
            )
            os._exit(EX_SOFTWARE)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="worker.py",
        description="Works on the jobs that webhookd.py has taken in.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    add_flags(parser, "STATE_DIR", "WEBHOOKS_FILE")
    parser.add_argument(
        "--check", action="store_true", help="test the settings and say what is wrong"
    )
    args = parser.parse_args()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}
    sys.path.insert(0, str(Path.cwd()))

    def read_settings() -> Config:
        return load(flags, root=process.root())

    signals = process.Signals()
    settings = process.load_or_exit(read_settings, check=args.check)
    resource.setrlimit(
        resource.RLIMIT_DATA, (settings.worker_memory, resource.getrlimit(resource.RLIMIT_DATA)[1])
    )
    worker = Worker(settings, process.name_of("worker"), signals)
    log.event(
        "process.start",
        program="worker",
        version=VERSION,
        worker=worker.name,
        sources=sorted(settings.sources),
    )
    Minder(worker).start()
    while True:
        worker.run()
        if signals.stop:
            break
        if worker.full or process.reload_wanted(signals):
            process.reexec()
    log.event("process.end", program="worker", done=worker.done)


if __name__ == "__main__":
    main()
