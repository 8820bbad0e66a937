"""What one process knows of the spool: how much is in it, whether it works, what of it is drained.

Every ingestion process of a machine writes to the one spool and drains it. So the count is looked
up now and then: others, or an earlier life of this process, may have left something there.

Promises: a row is removed after Redis answered for it, never before. Where that fails nothing more
is drained: the same rows would only come again. Log lines: one for each change, not for each try.
"""

from collections.abc import Sequence

from hookq import log
from hookq.ingest.spool import Spool, Spooled, SpoolFailed
from hookq.job import Delivery


class Spooling:
    """The spool as this process sees it. `count` is how many deliveries it holds, `why` is why it
    cannot be used, "" while it can.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.count = 0
        self.why = ""
        self.draining = False  # a batch of it is under way, or cannot be removed
        self.to_remove: list[int] = []  # rows that are in Redis, and could not be removed

    @property
    def to_drain(self) -> bool:
        return bool(self.count) and not self.draining

    def accept(self, batch: Sequence[tuple[Delivery, int]]) -> None:
        """Keep deliveries. Raises SpoolFailed."""
        try:
            self.spool.accept(batch)
        except SpoolFailed as error:
            self._state(str(error))
            raise
        self._state("")
        if batch and not self.count:
            why = "Redis is away: deliveries are kept on the local disk"
            log.event("spool.begin", "warning", why=why)
        self.count += len(batch)

    def oldest(self, count: int, max_bytes: int) -> list[Spooled]:
        """Return what is to be drained next; `drained` or `interrupted` must follow."""
        try:
            rows = self.spool.oldest(count, max_bytes)
        except SpoolFailed as error:
            self._state(str(error))
            self.count = 0  # `look` finds out
            return []
        if not rows:
            self.count = 0
            log.event("spool.end")
        self.draining = bool(rows)
        return rows

    def drained(self, rows: list[int]) -> int:
        """Remove rows that Redis has answered for; return how many this process has removed."""
        try:
            removed = self.spool.remove(rows)
            self.to_remove, self.draining = [], False
            return removed
        except SpoolFailed as error:
            self.to_remove = rows
            self._state(str(error))
            return 0

    def interrupted(self) -> None:
        """Redis failed: what was under way is still in the spool, and is drained again."""
        self.draining = bool(self.to_remove)

    def look(self) -> int:
        """Find out how much is in it, and whether it works again; return how many rows went that
        could not be removed before.
        """
        removed = 0
        try:
            if self.why:
                self.spool.accept([])
            if self.to_remove:
                removed = self.drained(self.to_remove)
            elif not self.draining:
                self.count, _ = self.spool.size()
            if not self.to_remove:
                self._state("")
        except SpoolFailed as error:
            self._state(str(error))
        return removed

    def _state(self, why: str) -> None:
        if why != self.why:
            self.why = why
            if why:
                log.event("spool.failed", "critical", why=why)
            else:
                log.event("spool.mended")
