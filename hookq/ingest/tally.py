"""What ingestion counts, and the lines it writes about requests that are no deliveries (R8).

Counters are exact; lines are limited, since a stranger makes as many as he likes. Counts travel to
Redis with the next batch, under an id of their own: a flush whose reply was lost is sent again, and
not counted twice. While Redis is unavailable they wait here.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

from hookq import log
from hookq.ingest.routes import Refusal
from hookq.metrics import Durations
from hookq.wire import Network, client_of

EVERY_S: Final = 1.0  # between two flushes
LINES_PER_S: Final = 20  # about refused requests

Flush = tuple[str, Counter[str]]  # an id, and what to raise by how much


class Tally:
    """Counts since the last flush, and flushes that are not confirmed."""

    def __init__(self, new_id: Callable[[], str], trusted: Sequence[Network]) -> None:
        self.new_id, self.trusted = new_id, trusted
        self.counters: Counter[str] = Counter()
        self.durations = Durations("http")
        self.flushes: deque[Flush] = deque()
        self.flushed_at = 0.0
        self.lines = (0, 0)  # a second, and how many lines were written in it

    def answered(self, source: str, status: int, took_s: float) -> None:
        """Count a delivery that was answered as accepted or duplicate, `took_s` after it came."""
        self.counters[f"http:{source}:{status}"] += 1
        self.durations.observe(source, max(0.0, took_s))

    def refused(self, refusal: Refusal, peer: str, forwarded: str) -> None:
        """Count a request that is no delivery; write a line, unless there were many this second.
        `forwarded` is its X-Forwarded-For, believed where `peer` is a trusted proxy.
        """
        source, reason, status = refusal.source, refusal.reason, refusal.status
        self.counters[f"rejected:{source}:{reason}"] += 1
        self.counters[f"http:{source}:{status}"] += 1
        second = int(time.monotonic())
        lines = self.lines[1] + 1 if self.lines[0] == second else 1
        self.lines = (second, lines)
        if lines <= LINES_PER_S:
            client = client_of(peer, forwarded, self.trusted)
            facts = {"client": client, "code": status, "reason": reason, "why": refusal.why}
            log.event("request.reject", "warning", source=source, **facts)

    def flush(self, now: float, *, at_once: bool = False) -> None:
        """Make a flush of what was counted, once a second, or `at_once`. While one waits for Redis
        no other is made: an outage of a day would make 86,400, before the spool's turn comes.
        """
        if self.flushes or (now - self.flushed_at < EVERY_S and not at_once):
            return
        self.counters.update(log.take_counts())
        self.durations.drain(self.counters)
        if self.counters:
            self.flushes.append((self.new_id(), self.counters))
            self.counters, self.flushed_at = Counter(), now

    @property
    def empty(self) -> bool:
        return not (self.counters or self.flushes)
