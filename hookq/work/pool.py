"""Jobs that wait for somebody else, a URL or a command, run concurrently: each in a thread, up to
`concurrency` of a source at a time, whatever the main thread of the worker is doing.

A source of which every handler waits is leased from by a thread of its own, for as many jobs as it
has free slots. So it costs the Python handlers of other sources nothing, and its jobs do not wait
for theirs. A *mixed* source has handlers of both kinds: the main thread leases from it, and starts
here those of its jobs that wait.

Each job is settled as soon as it ends, by one more thread. While Redis is unavailable it is settled
again and again: what Redis had done before is refused, and changes nothing (R5).

Promises: no job is started beyond the slots of its source. Does not promise that a stop is quick:
running jobs are waited for, as long as their time limits let them.
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final

from hookq.store.connection import Away
from hookq.store.jobs import Jobs
from hookq.store.records import Lease, Settled
from hookq.work import threads
from hookq.work.progress import Running

# How long a lease call blocks: a stop, and a slot that has become free, are seen after that.
BLOCK_MS: Final = 1000
DRAIN_S: Final = 5.0  # at a stop, for settling while Redis is unavailable
THREAD_BYTES: Final = 512 * 1024  # of stack: the usual 8 MB would be charged to WORKER_MEMORY


class Pool:
    """The slots of each source, and the jobs in them. A job is in `leases` (entry → lease, began)
    until it is settled, which is after its slot is free again.
    """

    def __init__(
        self,
        url: str,
        name: str,
        slots: Mapping[str, int],
        mixed: Collection[str],
        work: Callable[[Lease], Settled],
        settled: Callable[[Sequence[Settled], Sequence[bool]], None],
    ) -> None:
        self.url, self.name, self.slots, self.mixed = url, name, slots, mixed
        self.own = slots.keys() - set(mixed)  # sources that only the pool leases from
        self.work, self.settled = work, settled
        self.running: Counter[str] = Counter()
        self.leases: dict[bytes, tuple[Lease, float]] = {}
        self.changed = threading.Condition()
        self.ended: SimpleQueue[Settled | None] = SimpleQueue()
        self.stopping = False
        threading.stack_size(THREAD_BYTES)
        self.threads = ThreadPoolExecutor(sum(slots.values()), "pool")
        # One thread at once, or none can be had at all: later failures then only queue jobs.
        self.threads.submit(int)
        self.settler = threads.start(self._settle)
        self.leasers: list[threading.Thread] = []

    def lease(
        self, took: Callable[[list[Lease]], list[Lease]], limit: Callable[[str], int]
    ) -> None:
        """Lease from its own sources from now on. `took` notes the leases and returns those
        that can be run; `limit` returns how many may be leased of a source now.
        """
        for source in self.own:
            self.leasers.append(threads.start(self._lease, source, took, limit))

    def free(self, source: str) -> int:
        """Return how many more jobs of a source may be started."""
        return self.slots[source] - self.running[source]

    def is_full(self) -> bool:
        """Tell whether a mixed source waits for a slot, so that the main thread should not wait
        long for jobs of others.
        """
        return any(self.free(source) < 1 for source in self.mixed)

    def first(self) -> Running | None:
        """Return the job that was started first of those that are not settled."""
        return next((Running(*pair) for pair in list(self.leases.values())), None)

    def start(self, lease: Lease) -> None:
        """Start a job in a free slot."""
        with self.changed:
            self.running[lease.delivery.source] += 1
            self.leases[lease.entry] = lease, time.monotonic()
        # If no further thread can be had, the job is queued all the same, and the next thread that
        # has nothing to do runs it.
        with contextlib.suppress(RuntimeError):
            self.threads.submit(threads.or_end, self._run, lease)

    def end(self) -> None:
        """Lease no more, wait for the running jobs, and settle them."""
        self.stopping = True
        for leaser in self.leasers:
            leaser.join(DRAIN_S)
        self.threads.shutdown()
        self.ended.put(None)
        # What is not settled by then is not lost: its lease runs out, and it runs again.
        self.settler.join(DRAIN_S)

    def _run(self, lease: Lease) -> None:
        self.ended.put(self.work(lease))
        with self.changed:
            self.running[lease.delivery.source] -= 1
            self.changed.notify_all()

    def _lease(
        self, source: str, took: Callable[[list[Lease]], list[Lease]], limit: Callable[[str], int]
    ) -> None:
        """Lease one source's jobs and start them until a stop."""
        # A lost reply may have leased jobs that only Redis knows to be ours. So `again` asks for
        # all that we hold, until that brings nothing new.
        store, again, backoff = Jobs(self.url, self.name), True, threads.Backoff()
        while not self.stopping:
            with self.changed:
                count = limit(source)
                if count < 1:
                    self.changed.wait(BLOCK_MS / 1000)
                    continue
            # Taken before Redis is asked: what is settled meanwhile may be in its answer, and must
            # not run a second time.
            known = set(self.leases)
            try:
                wants = {source: count + (len(known) if again else 0)}
                leases = store.lease(wants, BLOCK_MS, again=again)
            except Away:  # the main loop logs it
                again = True
                backoff.wait()
                continue
            backoff.reset()
            leases = took([lease for lease in leases if lease.entry not in known])
            again = again and bool(leases)
            for lease in leases:
                if self.stopping:
                    self.ended.put(Settled(lease, "ready"))
                else:
                    self.start(lease)
        store.close()

    def _settle(self) -> None:
        """Settle what has ended, until None is in the queue."""
        store, last, backoff = Jobs(self.url, self.name), False, threads.Backoff()
        while not last:
            queued = [self.ended.get()]
            while not self.ended.empty():
                queued.append(self.ended.get())
            last, rows = None in queued, [row for row in queued if row]
            while rows:
                try:
                    self.settled(rows, store.settle(rows))
                    break
                except Away:
                    backoff.wait()
            backoff.reset()
            with self.changed:
                for row in rows:
                    self.leases.pop(row.lease.entry, None)
