"""The keeper: a thread that keeps this worker's leases, makes due retries ready, and reclaims the
jobs of dead workers. It goes on while a handler computes.

Its duties are a table (`Keeper.duties`), walked in order at each turn. When one finds Redis
unavailable, the turn ends: the others would each wait as long, and the watchdog for all of them.
They are due again in the next turn, the one that failed after its period. A lease outlasts two
failed renewals.

**Who is dead.** Three signs, from fast to slow:

    no connection to Redis in two looks, a second apart    all its leases are reclaimed
    a lease not renewed for LEASE_S                        that lease is reclaimed
    no heartbeat for FORGET_S, where Redis does not let    all its leases are reclaimed
    us look at connections

The first finds a killed process in two seconds. The second also finds one that lives and is frozen.
Reclaiming from a living worker loses nothing: it can no longer settle that job (R5), which runs
twice.

**Time.** Idle leases are judged by Redis, by its own clock. While it was unavailable nobody could
renew, and after its clock jumped every lease looks old. So from either moment on each worker gets a
whole LEASE_S to renew before any lease counts as run out (`steady_since`).

Promises: while this thread turns, the leases of this process last. Does not promise that it turns:
a handler that holds the interpreter stops it, and then another worker reclaims its jobs.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from hookq import log
from hookq.store import figures
from hookq.store.boot import boot_check
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.jobs import LEASE_S, RENEW_S, Jobs
from hookq.work import marker, threads, watchdog
from hookq.work.loop import Worker
from hookq.work.progress import Look
from hookq.work.watchdog import TICK_S

DEAD_LOOK_S: Final = 1.0  # between two looks for workers without a connection
# Where nobody may look at connections: a heartbeat this old is a dead worker's. Longer than the
# clocks of hosts differ.
FORGET_S: Final = 300.0
# Rounds of 100 due retries in one turn. More would keep the leases from being renewed.
PROMOTE_ROUNDS: Final = 10
NEVER: Final = float("-inf")


class Duty(NamedTuple):
    """What the keeper does every so many seconds. The step is given the look of its turn; when it
    returns False, it could not be done yet and is due again in the next turn.
    """

    name: str
    every_s: float
    step: Callable[[Look], bool | None]


class Keeper:
    """The thread. It has a client of its own, under the worker's name: what one leases the other
    renews. Of the worker it reads one value, `look()`; it gives it `sources`, and the clock.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker, self.settings = worker, worker.settings
        self.store = Jobs(worker.settings.redis_url, worker.name)
        self.duties = (
            Duty("beat", TICK_S, self._beat),
            Duty("renew", RENEW_S, self._renew),
            Duty("sources", RENEW_S, self._find_sources),
            Duty("epoch", RENEW_S, self._compare_epoch),
            Duty("clock", RENEW_S, self._look_at_clock),
            Duty("promote", TICK_S, self._promote),
            Duty("reclaim", DEAD_LOOK_S, self._reclaim_dead),
            Duty("idle", RENEW_S, self._reclaim_idle),
        )
        self.done_at = dict.fromkeys((duty.name for duty in self.duties), NEVER)
        self.started_at = self.steady_since = time.monotonic()
        self.answered_at = 0.0
        self.epoch = ""
        limits = [source.timeout_s for source in self.settings.sources.values()]
        self.longest_s = max(limits, default=0.0)
        # Before the first job: one that holds the interpreter would keep the thread from doing it.
        watchdog.arm(self.longest_s)

    def start(self) -> None:
        """Keep, in a thread, until the process ends."""
        threads.start(self._run)

    def turn(self, now: float) -> None:
        """Do what is due. Raises Away."""
        look = self.worker.look()
        for duty in self.duties:
            # A quarter of a turn early, or a look each second would come every 1.5 s.
            if now - self.done_at[duty.name] < duty.every_s - TICK_S / 4:
                continue
            # Before the step: one that Redis refuses, as some while its memory is full, must not
            # end every turn before those after it are reached.
            self.done_at[duty.name] = now
            if duty.step(look) is False:
                self.done_at[duty.name] = NEVER

    def _run(self) -> None:
        boot_check(self.settings.redis_url, self.worker.name, self.settings.durability)
        known = False
        while True:
            watchdog.arm(self.longest_s)
            watchdog.watch(self.worker.look(), self.answered_at)
            self.worker.ending.look()
            try:
                if not known:
                    self.store.check_format()
                    known = True
                self.turn(time.monotonic())
            except NewerData:  # the main loop ends the process
                return
            except Away:  # the main loop logs it
                self.steady_since = time.monotonic()
            time.sleep(TICK_S)

    # ---------------- of this worker

    def _beat(self, look: Look) -> None:
        """Say that this worker lives, and what it runs; pass on the counts of log lines."""
        now, running = time.monotonic(), look.current or look.pool
        job: dict[str, Any] | None = None
        if running:
            delivery = running.lease.delivery
            for_s = round(now - running.since, 1)
            job = {"id": delivery.id, "source": delivery.source, "for_s": for_s}
        beat = {
            "up_s": round(now - self.started_at),
            "pid": os.getpid(),
            "done": look.done,
            "job": job,
        }
        self.store.beat(beat, log.take_counts())
        self.answered_at = time.monotonic()

    def _renew(self, look: Look) -> None:
        """Extend every lease held. The job may run for minutes: its time limit is not the lease."""
        entries: dict[str, list[bytes]] = {}
        for entry, source in look.held.items():
            entries.setdefault(source, []).append(entry)
        self.store.renew(entries)

    def _find_sources(self, _look: Look) -> None:
        """Add the sources that the settings no longer have: their jobs are worked on, too, and end
        as dead letters `no_source`.
        """
        self.worker.sources = set(self.settings.sources) | self.store.sources()

    def _compare_epoch(self, _look: Look) -> None:
        """Tell when Redis came back empty: what was in it is lost, and no gap would show it."""
        epoch = self.store.epoch(self.epoch)
        if self.epoch and epoch != self.epoch:
            why = "Redis came back without its data: jobs that were not done are lost"
            log.event("redis.emptied", "critical", why=why)
        self.epoch = epoch

    def _look_at_clock(self, _look: Look) -> None:
        """Note the server's time. When it has jumped, every lease looks old or young until it is
        renewed.
        """
        jumped_s = self.worker.clock.saw(self.store.now(), time.monotonic())
        if jumped_s:
            then = f"no lease runs out within {LEASE_S:g} s"
            log.event("clock.set", "warning", by_s=round(jumped_s), then=then)
            self.steady_since = time.monotonic()

    # ---------------- of all workers

    def _promote(self, _look: Look) -> None:
        """Make due retries ready."""
        for _ in range(PROMOTE_ROUNDS):
            promoted = self.store.promote()
            if not promoted:
                break
            for source, id in promoted:
                log.event("job.promote", source=source, id=id)

    def _reclaim_dead(self, _look: Look) -> None:
        """Reclaim all leases of workers that have no connection in two looks."""
        for name in self.store.gone(self.store.holders()) or ():
            self._reclaim(name, 0.0)

    def _reclaim_idle(self, look: Look) -> bool:
        """Reclaim leases that have run out, whoever holds them; not within LEASE_S of an outage or
        a jump of the clock, of which one may come to light only now.
        """
        if self._is_unsteady():
            return False
        self._look_at_clock(look)
        if self._is_unsteady():
            return False
        holders = self.store.holders()
        dead = self.store.gone(holders)
        server_now, beats = self.store.now(), figures.workers(self.store)
        old = {name for name, beat in beats.items() if server_now - beat.at > FORGET_S}
        for name in holders - (dead or set()):
            self._reclaim(name, 0.0 if dead is None and name in old else LEASE_S)
        return True

    def _is_unsteady(self) -> bool:
        return time.monotonic() - self.steady_since <= LEASE_S

    def _reclaim(self, name: str, idle_s: float) -> None:
        """Reclaim a worker's leases that are idle for so long. If it is dead (0 s), its marker says
        which job to charge (R9), and is of no use afterwards.
        """
        folder = self.settings.state_dir
        running = marker.in_progress(folder, name)
        for source, id, outcome, deaths in self.store.reclaim(name, idle_s=idle_s, hand=running):
            facts = {"source": source, "id": id, "worker": name}
            log.event("job.reclaim", "warning", **facts, outcome=outcome, deaths=deaths)
        if not idle_s:
            marker.forget(folder, name)
