"""The handlers of this worker: which are loaded, which cannot be, and when to try those again.

A source whose handlers cannot be loaded keeps its jobs: they stay ready, and no attempt is used up.
The other sources go on. What an import can do to a worker, and what that costs:

    it raises, or there is no such file   logged; tried again every few seconds
    it takes long                         nothing is leased meanwhile, so it is tried less often
    it ends the process, or hangs until   its marker is found by the next worker of this machine,
    the watchdog ends it                  which runs the other sources' jobs first and waits for
                                          CRASH_PAUSE_S, then twice as long after each crash

Imports run in the main thread, since modules expect that (signals, event loops), and since a worker
that imports in one thread while a handler runs in another would run half-made modules.

Promises: after one crash of an import on this machine, the jobs of other sources run. Does not
promise that they run undisturbed: at the end of each pause one worker tries again, and may die.
"""

import importlib
import time
from typing import Final

from hookq import daemon, log
from hookq.job import Delivery
from hookq.settings import Settings
from hookq.sources import Source
from hookq.work import marker
from hookq.work.python import BadHandler
from hookq.work.routes import Route, Routes

LOAD_AGAIN_S: Final = 5.0  # between two tries to load what could not be loaded
CRASH_PAUSE_S: Final = 5.0  # after the first crash of an import; doubled with each further one
MAX_CRASH_PAUSE_S: Final = 300.0


class Handlers:
    """The routes of each source that is loaded; `failed` has the others, and why."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.routes: dict[str, Routes] = {}
        self.failed: dict[str, str] = {}
        self.load_at = 0.0

    def route(self, delivery: Delivery) -> Route | None:
        """Return the route of a job; None when the settings lack its source."""
        routes = self.routes.get(delivery.source)
        return routes.of(delivery.event_type) if routes else None

    def are_due(self, now: float) -> bool:
        """Tell whether it is time to load what is not loaded yet."""
        return now >= self.load_at

    def load(self) -> None:
        """Load what is not loaded yet."""
        began = time.monotonic()
        importlib.invalidate_caches()  # or a file added since the last try would not be seen
        for name, source in self.settings.sources.items():
            if name not in self.routes:
                self._load(name, source)
        ended = time.monotonic()
        pause_s = max(LOAD_AGAIN_S, 10 * (ended - began))  # a slow import: a tenth of our time
        self.load_at = ended + pause_s if self.failed else float("inf")

    def _load(self, name: str, source: Source) -> None:
        why = "its import ended the worker" if self._pauses(name) else self._import(name, source)
        if why:
            if self.failed.get(name) != why:
                then = "its jobs wait; it is tried again"
                log.event("handler.failed", "error", source=name, why=why, then=then)
            self.failed[name] = why
        elif self.failed.pop(name, None):
            log.event("handler.loaded", source=name)

    def _import(self, name: str, source: Source) -> str:
        """Load the routes of a source; return why that failed, "" if it did not."""
        try:
            with marker.importing(self.settings.state_dir, name):
                self.routes[name] = Routes(source)
        except BadHandler as bad:
            return str(bad)
        return ""

    def _pauses(self, name: str) -> bool:
        """Tell whether importing this source has ended a worker too lately to try again. A check
        that has loaded all handlers since then says that they are mended.
        """
        crashes, at = marker.crashes(self.settings.state_dir, name)
        if not crashes or at < daemon.checked_at(self.settings):
            return False
        pause_s = CRASH_PAUSE_S * 2.0 ** min(crashes - 1, 10)
        return time.time() < at + min(pause_s, MAX_CRASH_PAUSE_S)
