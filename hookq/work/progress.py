"""What a worker is doing: changed by the main thread and the pool, read by the keeper.

The keeper never reads the worker's own state. It gets one frozen Look, taken under the lock, and
renews what is `held` in it: an entry is held from when its lease was read until its settling was
answered. Held too long, it is renewed for nothing. Held too briefly, its lease would be lost.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from hookq.store.records import Lease, Settled


class Running(NamedTuple):
    """A job that runs: since when (monotonic), and how long it may."""

    lease: Lease
    since: float
    limit_s: float = 0.0


class Look(NamedTuple):
    """A worker at one moment."""

    current: Running | None  # in the main thread
    pool: Running | None  # the first of those in the pool
    held: Mapping[bytes, str]  # entry → source of all that is leased
    polled_at: float  # when the main loop last turned
    done: int  # jobs settled since the start
    ending: bool


class Progress:
    """The leases held, the job in the main thread, and when its loop last turned.

    `current` and `polled_at` are set without the lock: that costs each job less, and one assignment
    cannot be seen half done.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: dict[bytes, str] = {}
        self.current: tuple[Lease, float, float] | None = None
        self.polled_at = time.monotonic()
        self.done = 0

    def took(self, leases: Collection[Lease]) -> None:
        """Note new leases."""
        with self.lock:
            self.held.update((lease.entry, lease.delivery.source) for lease in leases)

    def settled(self, rows: Sequence[Settled]) -> None:
        """Note the end of leases that Redis has answered for."""
        with self.lock:
            for row in rows:
                self.held.pop(row.lease.entry, None)
            self.done += len(rows)

    def look(self, pool: Running | None, *, ending: bool) -> Look:
        """Return all of it, as it is now."""
        with self.lock:
            held, current, done = dict(self.held), self.current, self.done
            running = Running(*current) if current else None
            return Look(running, pool, held, self.polled_at, done, ending)
