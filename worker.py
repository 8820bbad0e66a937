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
import importlib
import mmap
import os
import random
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hookq import daemon, log
from hookq.job import Delivery, cause_of
from hookq.metrics import bucket
from hookq.outcome import GiveUp, NotJson, Retry, TimeLimit, place_of, text_of, trace_of
from hookq.schemes import SCHEMES
from hookq.settings import VERSION, Settings, add_flags, load
from hookq.signing import Verifier
from hookq.sources import Source
from hookq.store import figures
from hookq.store.boot import boot_check
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.jobs import LEASE_S, RENEW_S, Jobs
from hookq.store.records import Lease, Settled, Times
from hookq.work import routes
from hookq.work.pool import BLOCK_MS, DRAIN_S, EX_SOFTWARE, MAX_PAUSE_S, PAUSE_S, Pool
from hookq.work.python import BadHandler, Runner, stop_watch, watch_time
from hookq.work.retry import delay_s
from hookq.work.routes import Route, Routes
from hookq.work.turns import PREFETCH, Turns

SETTLE_S = 0.005  # how long a finished job may wait for others to be settled with
# The next batch is leased during one that takes less; during a longer one others may want its jobs.
AHEAD_S = 0.01
TICK_S = 0.5  # of the minder
GONE_LOOK_S = 1.0  # between two looks for workers without a connection
GRACE_S = 5.0  # over its time limit, before a handler that does not see signals costs the process
# Redis' clock, against ours that nobody sets: more than the two drift, and a slow answer.
CLOCK_SET_S = 5.0
STALLED_S = 30.0  # without a poll while Redis answers: the loop hangs, and a new process will not
IMPORT_S = 60.0  # an import may take so long before the loop counts as stalled
LOAD_AGAIN_S = 5.0  # between two tries to load a handler that cannot be
PROMOTE_ROUNDS = 10  # of 100 due retries in one tick: leases must be renewed meanwhile
FULL_S = 0.01  # how long a place in the pool may be free unseen, while this thread waits for Redis
IDLE_S = 0.2  # between two looks for something to lease, where the pool leases all there is
# Without a heartbeat, where no list of clients tells who lives; longer than clocks are apart.
FORGET_S = 300.0

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


class Worker:
    """The main loop and what the minder may look at: `held`, `current`, `pool` and `polled_at`."""

    def __init__(self, settings: Settings, name: str, signals: daemon.Signals) -> None:
        self.settings, self.name, self.signals = settings, name, signals
        self.store = Jobs(settings.redis_url, name)
        self.routes: dict[str, Routes] = {}
        self.unloaded: dict[str, str] = {}  # sources whose handlers cannot be loaded, and why
        self.load_at = 0.0
        self.sources = set(settings.sources)
        self.hand = Hand(settings.state_dir, name)
        self.lock = threading.Lock()
        self.held: dict[bytes, str] = {}
        self.current: tuple[Lease, float, float] | None = None
        self.polled_at = time.monotonic()
        self.finished: list[Settled] = []
        self.asked: list[Settled] = []  # those of which Redis has been told, and has not answered
        self.turns = Turns()
        self.wants: dict[str, int] = {}  # as it was last asked for
        self.done = 0
        self.away = False
        # Of Redis' clock, which all hosts have in common, before ours that nobody sets.
        self.ahead_s: float | None = None
        self.full = False  # of memory: it starts anew after the job that filled it
        self.pool: Pool | None = None
        self.mixed: set[str] = set()  # sources of which some handlers wait, and some do not

    def clock(self) -> float:
        """Return the time by Redis' clock, as it was seen last."""
        return time.time() if self.ahead_s is None else time.monotonic() + self.ahead_s

    def run(self) -> None:
        """Lease and work until a stop is asked for; then settle what is done and give back the
        rest.
        """
        again, pause_s, known = True, PAUSE_S, False
        # The first jobs are dated by it, too; later looks are the minder's, which tells of a step.
        if self.ahead_s is None:
            with contextlib.suppress(Away):
                self.ahead_s = self.store.now() - time.monotonic()
        self._load()
        while not (self.signals.asked or self.full):
            self.polled_at = time.monotonic()
            if self.unloaded and self.polled_at >= self.load_at:
                self._load()
            try:
                if not known:
                    self.store.check_format()
                    self._start_pool()
                    known = True
                # what a lost connection left over: it must not be leased, and run, again
                self._settle()
                leases = self._lease(again)
                again = again and bool(leases)
                self._is_away(False)
                pause_s = PAUSE_S
                self._work(leases)
            except NewerData as error:
                self.hand.close()
                daemon.refuse_newer(str(error))
            except Away as error:
                again = True  # a reply may have been lost: what it leased is ours
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

    def _load(self) -> None:
        """Load the handlers that are not loaded yet. The jobs of one that cannot be wait for it,
        ready, and no attempt is used up.
        """
        began = time.monotonic()
        self.polled_at = began + IMPORT_S  # the watchdog waits for an import
        importlib.invalidate_caches()  # or a file that was added since is not seen
        for name, source in self.settings.sources.items():
            if name in self.routes:
                continue
            try:
                self.routes[name] = Routes(source)
                if self.unloaded.pop(name, None):
                    log.event("handler.loaded", source=name)
            except BadHandler as bad:
                if self.unloaded.get(name) != str(bad):
                    then = "its jobs wait; it is tried again"
                    log.event("handler.failed", "error", source=name, why=str(bad), then=then)
                self.unloaded[name] = str(bad)
        self.polled_at = time.monotonic()
        # Others wait while a module is imported: one that takes long is not tried all the time.
        self.load_at = self.polled_at + max(LOAD_AGAIN_S, 10 * (self.polled_at - began))

    def _start_pool(self) -> None:
        """Make places for jobs that wait, if there are any, and lease those that need nobody."""
        kinds = {name: routes.kinds(source) for name, source in self.settings.sources.items()}
        waiting = {name: found for name, found in kinds.items() if found & routes.WAITING}
        self.mixed = {name for name, found in waiting.items() if found - routes.WAITING}
        if waiting:
            places = {name: self.settings.sources[name].concurrency for name in waiting}
            self.pool = Pool(
                self.settings.redis_url, self.name, places, self._attempt, self._settled
            )
            for name in waiting.keys() - self.mixed:
                self.pool.lease(name, self._took, self.routes.__contains__)

    def _leasable(self) -> dict[str, int]:
        """Return the sources this thread may lease from now, and of how many jobs at most."""
        places = dict.fromkeys(self.sources - self.unloaded.keys(), PREFETCH)
        if self.pool:
            for name in self.pool.places:
                free = self.pool.free(name) if name in self.mixed else 0
                if free > 0 and name in places:
                    places[name] = free
                else:
                    places.pop(name, None)
        return places

    def _lease(self, again: bool) -> list[Lease]:
        places = self._leasable()
        if not places:
            time.sleep(FULL_S if self.mixed else IDLE_S)
            return []
        wants = self._wants(places)
        if again:  # what is held already comes first
            wants = {name: PREFETCH + len(self.held) for name in places}
        # Before it is asked: what is settled meanwhile is not to run again.
        known = set(self.pool.leases) if self.pool else set()
        full = bool(self.mixed - places.keys() - self.unloaded.keys())
        block_ms = 0 if len(wants) < len(places) else int(1000 * FULL_S) if full else BLOCK_MS
        leases = self.store.lease(wants, block_ms, again=again)
        if not again:
            self._gave(wants, leases, places)
        return self._took([lease for lease in leases if lease.entry not in known])

    def _wants(self, places: Mapping[str, int]) -> dict[str, int]:
        wants = self.turns.wants(places)
        return {name: min(count, places[name]) for name, count in wants.items()}

    def _gave(
        self, wants: Mapping[str, int], leases: Sequence[Lease], sources: Collection[str]
    ) -> None:
        self.wants = dict(wants)
        self.turns.gave(wants, {lease.delivery.source for lease in leases}, sources)

    def _took(self, leases: list[Lease]) -> list[Lease]:
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
            self.polled_at = time.monotonic()
            leases.sort(key=lambda lease: self.turns.expected_s([lease.delivery.source]))
            places = self._leasable() if self._quick(leases) else {}
            if places:
                wants = self._wants(places)
                self.asked, self.finished = self.finished, []
                self.store.ask(self.asked, wants)
            self._run(leases)
            leases = self._answer(wants, places) if places else []
        self._settle()

    def _quick(self, leases: Sequence[Lease]) -> bool:
        """Tell whether it pays to lease the next jobs while these run: there are more, and these
        are done before others could want those.
        """
        given = Counter(lease.delivery.source for lease in leases)
        more = any(count >= self.wants.get(name, 1) for name, count in given.items())
        short = self.turns.expected_s(list(given.elements())) < AHEAD_S
        return more and short and not (self.mixed or self.stopping)

    def _answer(self, wants: Mapping[str, int], sources: Collection[str]) -> list[Lease]:
        outcomes, leases = self.store.answer()
        asked, self.asked = self.asked, []
        self._settled(asked, outcomes)
        self._gave(wants, leases, sources)
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
            route = self._route(lease.delivery)
            if self.pool and route and route.waits:
                self.pool.start(lease)
                continue
            if lease.suspect:
                self._settle()
                self.store.announce(lease)
            started = time.monotonic()
            self.finished.append(self._in_hand(lease, started))
            took_s, delivery = time.monotonic() - started, lease.delivery
            self.turns.ran(delivery.source, took_s, len(delivery.body))
            begun = begun or started
            if lease.suspect or time.monotonic() - begun > SETTLE_S:
                self._settle()
                begun = 0.0
                if lease.suspect:
                    self.store.announce(None)

    @property
    def stopping(self) -> bool:
        return self.signals.asked or self.full

    def _route(self, delivery: Delivery) -> Route | None:
        found = self.routes.get(delivery.source)
        return found.of(delivery.event_type) if found else None

    def _in_hand(self, lease: Lease, started: float) -> Settled:
        """Run a job in this thread, where it may cost the process: others can see which one that
        was.
        """
        source = self.settings.sources.get(lease.delivery.source)
        self.current = (lease, started, source.timeout_s if source else 0.0)
        self.hand.take(lease.entry)
        try:
            return self._attempt(lease)
        finally:
            self.hand.take(b"")
            self.polled_at = time.monotonic()
            self.current = None

    def _attempt(self, lease: Lease) -> Settled:
        source = self.settings.sources.get(lease.delivery.source)
        route = self._route(lease.delivery)
        run = route.run if route else None
        settled = attempt(lease, source, run, self.name, self.clock, random.random)
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
        if self.pool:
            self.pool.end()
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
    policy = source or Source(delivery.source, Verifier(SCHEMES["hmac"]))
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
    times = Times(*(n for name, s in durations for n in (bucket(name, s), int(1e6 * s))))
    if error is None:
        return Settled(lease, "done", facts, label="done", times=times)
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
            facts["delay_s"] = round(delay, 3)
            return Settled(lease, "retry", facts, delay, label=label, times=times)
        reason = "max_attempts" if source else "no_source"
    label = "timeout" if isinstance(error, TimeLimit) else "dead"
    cause, trace = cause_of(reason, error, facts["place"]), trace_of(error)
    return Settled(lease, "dead", facts, 0.0, reason, cause, trace, label, times)


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
        self.store = Jobs(worker.settings.redis_url, worker.name)
        self.looked_at = self.renewed_at = self.answered_at = self.idle_at = 0.0
        self.up_since = time.monotonic()
        self.epoch = ""
        self.started_at = time.monotonic()
        # before the first job: one that holds the interpreter would keep this thread from ever
        # doing it
        self._watchdog()

    def run(self) -> None:
        settings = self.worker.settings
        boot_check(settings.redis_url, self.worker.name, settings.durability)
        known = False
        while True:
            self._watchdog()
            try:
                if not known:
                    self.store.check_format()
                    known = True
                self._tick(time.monotonic())
            except NewerData:
                return  # the main loop ends the process
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
        beside = list(worker.pool.leases.values()) if worker.pool else []
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
            beats = figures.workers(self.store)
            old = {name for name, beat in beats.items() if redis_now - beat.at > FORGET_S}
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
    daemon.add_check(parser)
    args = parser.parse_args()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}
    sys.path.insert(0, str(Path.cwd()))

    def read_settings() -> Settings:
        return load(flags, root=daemon.root())

    signals = daemon.Signals()
    settings = daemon.load_or_exit(read_settings)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (settings.worker_memory, hard))
    if args.check:
        daemon.end_check(settings, routes.problems(settings) if args.check == "all" else ())
    worker = Worker(settings, daemon.name_of("worker"), signals)
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
        what = "settings" if daemon.just_checked(settings) else "all"
        if worker.full or daemon.reload_wanted(signals, what):
            daemon.reexec()
    log.event("process.end", program="worker", done=worker.done)


if __name__ == "__main__":
    main()
