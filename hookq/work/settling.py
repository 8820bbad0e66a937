"""What the main thread has run, until Redis has answered for it.

    ended ──▶ finished ──settle──▶ answered: logged, no longer held
               │    ▲                  ▲
              ask  lost                │
               ▼    │                  │
               asked ──────answer──────┘

Quick jobs are settled in batches: while one batch runs, Redis works on a request that settles the
one before and leases the one after (`ask`, `answer`). Slow jobs are settled at once.

After a lost connection nobody knows whether Redis did what it was asked. So it is asked again, for
all of it, in the order in which the attempts ended. What Redis had done is refused then, since its
entry no longer exists, and nothing changes (R5). Before that is answered nothing may be leased: an
entry that Redis still counts as ours would run a second time.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from hookq.store.connection import Away
from hookq.store.jobs import Jobs
from hookq.store.records import Lease, Settled


class Settling:
    """Ended attempts on their way to Redis. `settled` is called with those it has answered for."""

    def __init__(
        self, store: Jobs, settled: Callable[[Sequence[Settled], Sequence[bool]], None]
    ) -> None:
        self.store, self.settled = store, settled
        self.finished: list[Settled] = []
        self.asked: list[Settled] = []

    def settle(self) -> None:
        """Settle what is finished."""
        if not self.finished:
            return
        outcomes = self.store.settle(self.finished)
        rows, self.finished = self.finished, []
        self.settled(rows, outcomes)

    def ask(self, wants: Mapping[str, int]) -> None:
        """Ask Redis to settle what is finished and to lease; do not wait for it."""
        self.asked, self.finished = self.finished, []
        self.store.ask(self.asked, wants)

    def answer(self) -> list[Lease]:
        """Return the leases of what was asked."""
        outcomes, leases = self.store.answer()
        rows, self.asked = self.asked, []
        self.settled(rows, outcomes)
        return leases

    def lost(self) -> None:
        """Put back what was asked; its connection is lost, and with it the answer."""
        self.store.forget()
        self.asked, self.finished = [], self.asked + self.finished

    def drain(self, limit_s: float) -> None:
        """Settle what is finished at a stop, while Redis may be unavailable. What remains then runs
        again, once its lease has run out.
        """
        give_up_at = time.monotonic() + limit_s
        while self.finished and time.monotonic() < give_up_at:
            try:
                self.settle()
            except Away:
                time.sleep(0.1)
