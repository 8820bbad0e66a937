"""Jobs that wait for somebody else, a URL or a command: each in a thread of its own, up to
`concurrency` of a source at a time, whatever the main thread of the worker is doing.

A source of which every handler waits leases for itself, in a thread that asks for as many jobs as
the source has places. So it costs the Python handlers of other sources nothing, and none of its
jobs waits for theirs. Of a source that has both kinds the main thread leases, and brings those jobs
here that wait.

What has ended is settled at once, by one more thread. What Redis does not answer for is settled
again: the fence makes that safe (R5).

Promises: no job is started beyond the places of its source. Does not promise that a stop is quick:
jobs that run are waited for as long as their limits let them.
"""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Final

from hookq import log
from hookq.outcome import place_of
from hookq.store.connection import Away
from hookq.store.jobs import Jobs
from hookq.store.records import Lease, Settled

BLOCK_MS: Final = 1000  # a leaser looks so often whether it should stop
PAUSE_S: Final = (
    0.05  # before Redis is asked again, with jitter, so that threads do not come at once
)
MAX_PAUSE_S: Final = 1.0
DRAIN_S: Final = 5.0  # for settling while Redis is away at a stop
THREAD_BYTES: Final = 512 * 1024  # of stack: 8 MB would be counted against WORKER_MEMORY
EX_SOFTWARE: Final = 70


class Pool:
    """The places, and what runs in them: `leases` is entry → (lease, when it began), until it is
    settled.
    """

    def __init__(
        self,
        url: str,
        name: str,
        places: Mapping[str, int],
        work: Callable[[Lease], Settled],
        settled: Callable[[Sequence[Settled], Sequence[bool]], None],
    ) -> None:
        self.url, self.name, self.places = url, name, dict(places)
        self.work, self.settled = work, settled
        self.running: Counter[str] = Counter()
        self.leases: dict[bytes, tuple[Lease, float]] = {}
        self.changed = threading.Condition()
        self.ended: SimpleQueue[Settled | None] = SimpleQueue()
        self.stopping = False
        threading.stack_size(THREAD_BYTES)
        self.threads = ThreadPoolExecutor(sum(self.places.values()), "pool")
        self.leasers: list[threading.Thread] = []
        self.settler = threading.Thread(target=_or_end, args=(self._settle,), daemon=True)
        self.settler.start()

    def lease(
        self,
        source: str,
        took: Callable[[list[Lease]], list[Lease]],
        ready: Callable[[str], bool],
    ) -> None:
        """Lease this source's jobs from now on. `took` hears of each lease and returns those that
        can be run, `ready` tells whether the source's handlers are loaded.
        """
        lease = (self._lease, source, took, ready)
        self.leasers.append(threading.Thread(target=_or_end, args=lease, daemon=True))
        self.leasers[-1].start()

    def free(self, source: str) -> int:
        """Return how many more jobs of a source may be started."""
        return self.places.get(source, 1) - self.running[source]

    def wait(self, seconds: float) -> None:
        """Wait until a place becomes free, or for so long."""
        with self.changed:
            self.changed.wait(seconds)

    def start(self, lease: Lease) -> None:
        """Start a job in a place that is free."""
        with self.changed:
            self.running[lease.delivery.source] += 1
            self.leases[lease.entry] = lease, time.monotonic()
        # Without a further thread it is queued, and one of those that are here takes it.
        with contextlib.suppress(RuntimeError):
            self.threads.submit(self._run, lease)

    def end(self) -> None:
        """Lease no more; wait for what runs, each as long as its time limit lets it; settle it."""
        self.stopping = True
        for leaser in self.leasers:
            leaser.join(DRAIN_S)
        self.threads.shutdown()
        self.ended.put(None)
        # Nothing is lost if that is too short: the leases run out, and the jobs run again.
        self.settler.join(DRAIN_S)

    def _run(self, lease: Lease) -> None:
        self.ended.put(self.work(lease))  # nothing escapes from there
        with self.changed:
            self.running[lease.delivery.source] -= 1
            self.changed.notify_all()

    def _lease(
        self,
        source: str,
        took: Callable[[list[Lease]], list[Lease]],
        ready: Callable[[str], bool],
    ) -> None:
        store, again, pause_s = Jobs(self.url, self.name), True, PAUSE_S
        while not self.stopping:
            with self.changed:
                if not ready(source) or self.free(source) < 1:
                    self.changed.wait(BLOCK_MS / 1000)
                    continue
            # Before it is asked: what is settled meanwhile is not to run again.
            known = set(self.leases)
            count = self.free(source) + (len(known) if again else 0)
            try:
                leases = store.lease({source: count}, BLOCK_MS, again=again)
            except Away:  # the main loop says so
                again = True  # a reply may have been lost: what it leased is ours
                time.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                continue
            pause_s = PAUSE_S
            leases = took([lease for lease in leases if lease.entry not in known])
            again = again and bool(leases)
            for lease in leases:
                if self.stopping:
                    self.ended.put(Settled(lease, "ready"))
                else:
                    self.start(lease)
        store.close()

    def _settle(self) -> None:
        store, last = Jobs(self.url, self.name), False
        while not last:
            found = [self.ended.get()]
            while not self.ended.empty():
                found.append(self.ended.get())
            last, rows = None in found, [row for row in found if row]
            while rows:
                try:
                    self.settled(rows, store.settle(rows))
                    break
                except Away:
                    time.sleep(PAUSE_S)
            with self.changed:
                for row in rows:
                    self.leases.pop(row.lease.entry, None)


def _or_end(work: Callable[..., None], *args: object) -> None:
    """Run a thread whose failure would go unseen: its jobs would wait for ever. Better a new
    process.
    """
    try:
        work(*args)
    except Exception as error:
        log.event("worker.failed", "critical", error=repr(error), place=place_of(error))
        os._exit(EX_SOFTWARE)
