"""Whose turn it is: from which sources a worker leases next, and how many jobs of each.

Fair by time, not by jobs. Each source pays for the time that its jobs took, and whoever has paid
least is served first. So a source with jobs of 2 s holds one with jobs of 1 ms up by the job in
hand, not by one slow job for each quick one. A source that has nothing ready saves nothing up: it
is lifted to those that have.

Of slow jobs one is leased at a time, since what is leased here cannot run in another worker; of
quick ones as many as fill SLICE_S, since a round trip costs as much as ten of them.

Pure: times are given. Promises: a source with ready jobs is asked again after at most as much work
of each of the others as its own took since. Does not promise order.
"""

from collections.abc import Collection, Mapping
from typing import Final

SLICE_S: Final = 0.05  # of work leased at once from a source; nobody is ahead by less
PREFETCH: Final = 32  # jobs leased at once from a source, at most
PREFETCH_BYTES: Final = 4 << 20


class Turns:
    """What each source has paid, and what its jobs are like: the means of the last few."""

    def __init__(self) -> None:
        self.paid_s: dict[str, float] = {}
        self.mean_s: dict[str, float] = {}
        self.mean_bytes: dict[str, float] = {}
        self.busy = 1  # sources that gave something when they were last asked

    def ran(self, source: str, took_s: float, size: int) -> None:
        """Note a job that ran."""
        self.paid_s[source] = self.paid_s.get(source, 0.0) + took_s
        mean = self.mean_s.get(source)
        self.mean_s[source] = took_s if mean is None else mean + (took_s - mean) / 8 + 1e-6
        mean = self.mean_bytes.get(source, float(size))
        self.mean_bytes[source] = mean + (size - mean) / 8

    def wants(self, sources: Collection[str]) -> dict[str, int]:
        """Return source → how many jobs to lease, for those of `sources` whose turn it is."""
        least = min((self.paid_s.get(name, 0.0) for name in sources), default=0.0)
        ahead = least + SLICE_S
        return {name: self._count(name) for name in sources if self.paid_s.get(name, 0.0) < ahead}

    def gave(
        self, asked: Mapping[str, int], given: Collection[str], sources: Collection[str]
    ) -> None:
        """Note which of those that were `asked` had something; `sources` are all there are."""
        self.busy = max(1, len(given))
        silent = [name for name in asked if name not in given]
        others = [self.paid_s.get(name, 0.0) for name in sources if name not in silent]
        floor = min(others, default=0.0)
        for name in silent:
            paid_s = self.paid_s.get(name, 0.0)
            self.paid_s[name] = max(paid_s, floor) if others else 0.0

    def expected_s(self, sources: Collection[str]) -> float:
        """Return how long jobs of these sources (one for each mention) will take."""
        return sum(self.mean_s.get(name, SLICE_S) for name in sources)

    def _count(self, source: str) -> int:
        """Return 1 of a source nobody knows yet, else a power of two: then a few commands lease
        from all sources, one for each number.
        """
        mean_s = self.mean_s.get(source)
        if mean_s is None:
            return 1
        room = PREFETCH_BYTES / max(1.0, self.mean_bytes[source])
        most = int(min(PREFETCH, SLICE_S / max(mean_s, 1e-6), room)) // self.busy
        return 1 << max(1, most).bit_length() - 1
