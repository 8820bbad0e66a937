"""The worker's main loop: lease, run, settle, and drain at the end.

    lease ──▶ run ──▶ settle ──▶ lease …       slow jobs, or no backlog
    ask ──▶ run ──▶ answer ──▶ ask …           a backlog of quick ones: while a batch runs, Redis
                                               settles the last one and leases the next

One job in Python runs at a time, in this thread: a handler needs no locks, and its time limit is a
signal. Jobs that wait for a URL or a command go to the pool (pool.py). The keeper (keeper.py) keeps
the leases meanwhile, even those of a handler that computes for minutes.

**Loss.** A job is settled after its attempt, never before. Whatever ends this process in between
leaves the lease, which runs out or is reclaimed, and the job runs again: at least once.

**Duplication.** Redis holds what is leased by us; `progress.held` is our copy. They differ after a
lost reply only: then it may have leased jobs that we never saw, or settled jobs that we still have.
So after each such loss the rest is settled first, then everything that Redis holds for us is read
again (`again`), and what the pool runs already is left out. A job that was settled is not there.

**Order.** Within a source jobs are leased in the order in which they became ready, and that is all:
retries, other workers and the pool change it.

**Time.** Nothing waits for ever: a lease call has a limit, a handler has one, and a loop that does
not turn any more is ended by the watchdog (watchdog.py). Jobs are dated by the server's clock.
"""

import random
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from hookq import daemon, log
from hookq.settings import Settings
from hookq.store.connection import Away
from hookq.store.jobs import Jobs
from hookq.store.records import Lease, Settled
from hookq.work import routes
from hookq.work.attempt import attempt, end_line
from hookq.work.clock import ServerClock
from hookq.work.ending import Ending
from hookq.work.handlers import Handlers
from hookq.work.marker import Marker
from hookq.work.pool import BLOCK_MS, DRAIN_S, Pool
from hookq.work.progress import Look, Progress
from hookq.work.python import stop_watch, watch_time
from hookq.work.settling import Settling
from hookq.work.threads import Backoff
from hookq.work.turns import PREFETCH, Turns

# How long a finished job may wait for others to be settled with it.
SETTLE_S: Final = 0.005
# The next batch is leased while one runs that takes less. What is leased during a longer one would
# lie here while another worker could have run it.
AHEAD_S: Final = 0.01
# How long a slot of a mixed source may be free unseen while this thread waits for Redis.
FULL_S: Final = 0.01
IDLE_S: Final = 0.2  # between two looks for something to lease, where there is nothing to ask for
IMPORT_S: Final = 60.0  # imports may take so long before the loop counts as stalled


class Worker:
    """The main thread, and what it shares with the pool and the keeper: `progress` and `clock`."""

    def __init__(self, settings: Settings, name: str, signals: daemon.Signals) -> None:
        self.settings, self.name = settings, name
        self.ending = Ending(settings, signals)
        self.store = Jobs(settings.redis_url, name)
        self.handlers = Handlers(settings)
        self.sources = set(settings.sources)  # and, once Redis was asked, those it has jobs of
        self.turns = Turns()
        self.progress = Progress()
        self.settling = Settling(self.store, self._settled)
        self.marker = Marker(settings.state_dir, name)
        self.clock = ServerClock()
        self.pool: Pool | None = None
        self.available = True  # Redis, as far as this thread knows
        self.again: set[str] = set()  # sources whose lost leases are still to be asked for

    def run(self) -> None:
        """Lease and work until the end is asked for; then settle what is done and give the rest
        back. Raises NewerData, before anything was leased.
        """
        self._look_at_clock()
        self._load()
        self.again, backoff, known = set(self.sources), Backoff(), False
        while not self.ending.asked:
            self.ending.look()
            self.progress.polled_at = time.monotonic()
            if self.handlers.are_due(self.progress.polled_at):
                self._load()
            try:
                if not known:
                    self.store.check_format()
                    self._start_pool()
                    known = True
                # What a lost connection left over: leased again, it would run again.
                self.settling.settle()
                leases = self._lease()
                self._note_redis(True)
                backoff.reset()
                self._work(leases)
            except Away as error:
                self.again = set(self.sources)  # its reply may have leased jobs to us
                self.settling.lost()
                self._note_redis(False, str(error))
                backoff.wait()
        self._drain()

    def look(self) -> Look:
        """Return what the keeper may know of this worker, as it is now."""
        first = self.pool.first() if self.pool else None
        return self.progress.look(first, ending=self.ending.asked)

    def limit(self, source: str) -> int:
        """Return how many jobs of a source may be leased now, 0 for none.

        The one place where this is decided, for the main thread and for the pool: whatever else may
        keep a source from being leased is a line here.
        """
        if source in self.handlers.failed or self.ending.starts_nothing():
            return 0
        return self.pool.free(source) if self.pool and source in self.pool.slots else PREFETCH

    def leasable(self) -> dict[str, int]:
        """Return the sources this thread may lease from now, and the most jobs of each."""
        own = self.pool.own if self.pool else ()
        limits = {name: self.limit(name) for name in self.sources if name not in own}
        return {name: limit for name, limit in limits.items() if limit > 0}

    # ---------------- before the first job

    def _look_at_clock(self) -> None:
        """Date the first jobs by the server's clock, too; later looks are the keeper's."""
        try:
            self.clock.saw(self.store.now(), time.monotonic())
        except Away:
            pass

    def _load(self) -> None:
        """Load handlers. An import may take long without being a stall."""
        self.progress.polled_at = time.monotonic() + IMPORT_S
        self.handlers.load()
        self.progress.polled_at = time.monotonic()

    def _start_pool(self) -> None:
        """Start the pool if a source has handlers that wait."""
        kinds = {name: routes.kinds(source) for name, source in self.settings.sources.items()}
        waiting = {name for name, found in kinds.items() if found & routes.WAITING}
        if waiting:
            mixed = {name for name in waiting if kinds[name] - routes.WAITING}
            slots = {name: self.settings.sources[name].concurrency for name in waiting}
            url = self.settings.redis_url
            self.pool = Pool(url, self.name, slots, mixed, self._attempt, self._settled)
            self.pool.lease(self._took, self.limit)

    # ---------------- leasing

    def _lease(self) -> list[Lease]:
        """Wait for the next jobs and return them. What Redis holds for us comes first, of each
        source in `again` until there is none: its leases are renewed, and nobody else runs it.
        """
        limits = self.leasable()
        if not limits:
            time.sleep(self._wait_s(IDLE_S))
            return []
        again = self.again & limits.keys()
        # What we hold may stand before what we lost: COUNT must reach past it.
        most = PREFETCH + len(self.progress.held)
        wants = dict.fromkeys(again, most) if again else self.turns.wants(limits)
        # Taken before Redis is asked: what is settled meanwhile must not run again.
        known = set(self.pool.leases) if self.pool else set()
        # Sources whose turn it is not may have jobs: then nobody waits for those whose turn it is.
        block_s = 0.0 if len(wants) < len(limits) else self._wait_s(BLOCK_MS / 1000)
        leases = self.store.lease(wants, int(1000 * block_s), again=bool(again))
        if not again:
            self._gave(wants, leases, limits)
        leases = [lease for lease in leases if lease.entry not in known]
        self.again -= again - {lease.delivery.source for lease in leases}
        return self._took(leases)

    def _wait_s(self, usual_s: float) -> float:
        """Return how long to wait for jobs; briefly while a slot may become free meanwhile."""
        return FULL_S if self.pool and self.pool.is_full() else usual_s

    def _gave(
        self, wants: Mapping[str, int], leases: Sequence[Lease], sources: Collection[str]
    ) -> None:
        self.turns.gave(wants, {lease.delivery.source for lease in leases}, sources)

    def _took(self, leases: list[Lease]) -> list[Lease]:
        """Note new leases, so that they are renewed; return those that this version can run."""
        self.progress.took(leases)
        unknown = sum(not lease.known for lease in leases)
        if not unknown:
            return leases
        why = (
            "a newer version wrote them: they are kept, and run by a worker of that version "
            "when this one has ended"
        )
        log.event("job.unknown", "error", jobs=unknown, why=why)
        return [lease for lease in leases if lease.known]

    # ---------------- working

    def _work(self, leases: list[Lease]) -> None:
        """Run these jobs and those that are ready after them. What is quick is settled, and the
        next batch leased, while a batch runs.
        """
        while leases:
            self.progress.polled_at = time.monotonic()
            if len({lease.delivery.source for lease in leases}) > 1:
                # The slowest last, so that the quick ones do not wait for it.
                leases.sort(key=lambda lease: self.turns.expected_s(lease.delivery.source))
            limits = self.leasable() if self._leases_ahead(leases) else {}
            if limits:
                wants = self.turns.wants(limits)
                self.settling.ask(wants)
            self._run(leases)
            leases = []
            if limits:
                answered = self.settling.answer()
                self._gave(wants, answered, limits)
                leases = self._took(answered)
        self.settling.settle()

    def _leases_ahead(self, leases: Sequence[Lease]) -> bool:
        """Tell whether to lease the next jobs while these run. Not while a source is mixed: its
        slots are known only after these were started. Nor when handlers are due to be loaded: a
        backlog of others must not keep a mended source waiting.
        """
        if self.ending.asked or (self.pool and self.pool.mixed):
            return False
        if self.handlers.are_due(self.progress.polled_at):
            return False
        given = Counter(lease.delivery.source for lease in leases)
        return self.turns.pays_to_lease_ahead(given, AHEAD_S)

    def _run(self, leases: Sequence[Lease]) -> None:
        """Run these jobs in turn; give back those that were not started when a stop is asked for.

        A suspect, whose last worker died with it, is run alone: what ran before it is settled, and
        its entry is announced in Redis, where also other machines see whom to charge (R9).
        """
        waiting_since = 0.0  # the first job that is not settled yet
        watch_time()
        for lease in leases:
            if self.ending.starts_nothing():
                self.settling.finished.append(Settled(lease, "ready"))
                continue
            route = self.handlers.route(lease.delivery)
            if self.pool and route and route.waits:
                self.pool.start(lease)
                continue
            if lease.suspect:
                self.settling.settle()
                self.store.announce(lease)
            started = time.monotonic()
            self.settling.finished.append(self._run_here(lease, started))
            ended, delivery = time.monotonic(), lease.delivery
            self.turns.ran(delivery.source, ended - started, len(delivery.body))
            waiting_since = waiting_since or started
            if lease.suspect or ended - waiting_since > SETTLE_S:
                self.settling.settle()
                waiting_since = 0.0
                if lease.suspect:
                    self.store.announce(None)

    def _run_here(self, lease: Lease, started: float) -> Settled:
        """Run a job in this thread, where it may take the process with it: its marker and
        `current` say which one that was.
        """
        source = self.settings.sources.get(lease.delivery.source)
        progress = self.progress
        progress.current = (lease, started, source.timeout_s if source else 0.0)
        self.marker.set(lease.entry)
        try:
            return self._attempt(lease)
        finally:
            self.marker.set(b"")
            progress.polled_at = time.monotonic()
            progress.current = None

    def _attempt(self, lease: Lease) -> Settled:
        """Run a job, in this thread or in one of the pool; return what becomes of it."""
        source = self.settings.sources.get(lease.delivery.source)
        route = self.handlers.route(lease.delivery)
        run = route.run if route else None
        settled = attempt(lease, source, run, self.name, self.clock.now, random.random)
        if settled.outcome != "done" and settled.facts.get("error", "").startswith("MemoryError"):
            self.ending.full = True
            why = "a handler met WORKER_MEMORY; the worker starts anew"
            log.event("worker.full", "error", id=lease.delivery.id, why=why)
        return settled

    # ---------------- after the jobs

    def _settled(self, rows: Sequence[Settled], outcomes: Sequence[bool]) -> None:
        """Note and log what Redis has answered for; of this thread and of the pool's."""
        self.progress.settled(rows)
        log.events(end_line(row, settled) for row, settled in zip(rows, outcomes, strict=True))

    def _note_redis(self, available: bool, why: str = "") -> None:
        """Log each change once: an unavailable Redis is asked again and again, for hours."""
        if available and not self.available:
            log.event("redis.up")
        elif self.available and not available:
            log.event("redis.away", "error", why=why, then="trying again")
        self.available = available

    def _drain(self) -> None:
        log.event("process.drain", unsettled=len(self.settling.finished))
        self.settling.drain(DRAIN_S)
        if self.pool:
            self.pool.end()
        # Last: while the pool runs, the empty marker says that no job is to blame for a kill. It
        # stays where Redis is away, and leases could not be given back: nobody died of those.
        if not self.progress.held:
            self.marker.close()
        stop_watch()
