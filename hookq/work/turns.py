"""Whose turn it is: from which sources a worker leases next, and how many jobs of each.

Fair by time, not by number of jobs. Each source is charged for the time its jobs took, and the
source charged least is served first. So a source with jobs of 2 s delays one with jobs of 1 ms by
the job in progress, not by one slow job for each quick one. An idle source saves up no credit: its
charge is raised to that of the busy ones.

Slow jobs are leased one at a time, because a job leased here cannot run in another worker. Quick
ones are leased by as many as fill SLICE_S, because a round trip costs as much as ten of them.

Pure: times are arguments. Promises: between two turns of a source with ready jobs, each other
source gets at most as much work as that source got itself, and one slice. Does not promise order.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

# Work leased at once from a source. Smaller differences between charges are not evened out.
SLICE_S: Final = 0.05
# Limits of what is leased at once from a source: in jobs, and in bytes of their bodies.
PREFETCH: Final = 32
PREFETCH_BYTES: Final = 4 << 20


class Turns:
    """What each source was charged, and the running means of its jobs' time and size."""

    def __init__(self) -> None:
        self.charged_s: dict[str, float] = {}
        self.mean_s: dict[str, float] = {}
        self.mean_bytes: dict[str, float] = {}
        self.busy = 1  # how many sources had jobs when they were last asked
        self.asked: Mapping[str, int] = {}  # the counts they were asked for then

    def ran(self, source: str, took_s: float, size: int) -> None:
        """Charge a source for a job that ran."""
        self.charged_s[source] = self.charged_s.get(source, 0.0) + took_s
        mean = self.mean_s.get(source, took_s)
        self.mean_s[source] = mean + (took_s - mean) / 8
        mean = self.mean_bytes.get(source, float(size))
        self.mean_bytes[source] = mean + (size - mean) / 8

    def wants(self, limits: Mapping[str, int]) -> dict[str, int]:
        """Return source → how many jobs to lease, for the sources whose turn it is. `limits` has
        those that may be leased from, and the most of each.
        """
        charged = {name: self.charged_s.get(name, 0.0) for name in limits}
        below = min(charged.values(), default=0.0) + SLICE_S
        return {
            name: min(self._count(name), limits[name])
            for name, charge in charged.items()
            if charge < below
        }

    def gave(
        self, asked: Mapping[str, int], given: Collection[str], sources: Collection[str]
    ) -> None:
        """Note which sources `asked` for jobs had some; `sources` are all that could be asked."""
        self.asked, self.busy = asked, max(1, len(given))
        idle = [name for name in asked if name not in given]
        others = [self.charged_s.get(name, 0.0) for name in sources if name not in idle]
        floor = min(others, default=0.0)
        for name in idle:
            self.charged_s[name] = max(self.charged_s.get(name, 0.0), floor) if others else 0.0

    def expected_s(self, source: str) -> float:
        """Return how long the next job of this source will take. One not seen yet may be slow."""
        return self.mean_s.get(source, SLICE_S)

    def pays_to_lease_ahead(self, given: Counter[str], limit_s: float) -> bool:
        """Tell whether to lease the next jobs while those in `given` (source → number) run: there
        are more, and these end within `limit_s`, before another worker could have run the next.
        """
        more = any(count >= self.asked.get(name, 1) for name, count in given.items())
        return more and sum(n * self.expected_s(name) for name, n in given.items()) < limit_s

    def _count(self, source: str) -> int:
        """Return 1 for a source not seen yet, else a power of two: few distinct counts mean few
        commands, since each command leases one count from all its sources.
        """
        mean_s = self.mean_s.get(source)
        if mean_s is None:
            return 1
        by_bytes = PREFETCH_BYTES / max(1.0, self.mean_bytes[source])
        most = int(min(PREFETCH, SLICE_S / max(mean_s, 1e-6), by_bytes)) // self.busy
        return 1 << max(1, most).bit_length() - 1
