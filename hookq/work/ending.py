"""Why a worker's loop ends: a stop, a reload whose settings hold, or memory that a handler has
filled.

A HUP alone ends nothing. The settings that it announces are checked first, handlers included, in a
process of their own and in the background: jobs go on running meanwhile, for the seconds that takes
and for good if the check fails. So a mistake in webhooks.toml costs a line in the log, and neither
a drain nor a lease.

After `make reload` the handlers were just found to load, and whoever typed it expects the next job
to be run by them. So then no job is started until the restart, which is under a second away.

Promises: a stop is seen between two jobs. A HUP that comes during a check means another check, of
the settings as they are then.
"""

import threading

from hookq import daemon
from hookq.settings import Settings


class Ending:
    """What was asked of this process, and what of it is to be done."""

    def __init__(self, settings: Settings, signals: daemon.Signals) -> None:
        self.settings, self.signals = settings, signals
        self.reload = False  # asked for, and the settings hold
        self.full = False  # the worker starts again after the job that met WORKER_MEMORY
        self.checking = False
        self.lock = threading.Lock()  # the main thread and the keeper both look

    @property
    def asked(self) -> bool:
        """Tell whether to lease and start nothing more."""
        return self.signals.stop or self.reload or self.full

    def starts_nothing(self) -> bool:
        """Tell whether to start no job now: the end is asked for, or new handlers are at the door.
        Asked before each job.
        """
        if self.signals.stop or self.reload or self.full:
            return True
        return (self.signals.reload or self.checking) and daemon.just_checked(self.settings)

    def look(self) -> None:
        """Begin to check the settings if a HUP came. The keeper calls it, too: the main thread may
        be in a handler for as long as its limit.
        """
        with self.lock:
            if not self.signals.reload or self.signals.stop or self.reload or self.checking:
                return
            self.checking = True
        if not daemon.in_background(self._check):
            self.checking = self.signals.reload = False

    def _check(self) -> None:
        try:
            self.reload = daemon.reload_wanted(self.signals, self._what)
        finally:
            self.checking = False

    def _what(self) -> str:
        """What of the settings to check: not the handlers, where that was just done."""
        return "settings" if daemon.just_checked(self.settings) else "all"
