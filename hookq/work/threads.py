"""What a worker's threads share: how they wait for a Redis that is unavailable, and how one that
fails ends the process.
"""

import os
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from hookq import log
from hookq.outcome import place_of

EX_SOFTWARE: Final = 70  # of sysexits.h; supervisord starts the worker again
PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 1.0


class Backoff:
    """The pause before Redis is asked again: doubled with each failure, with jitter, so that the
    threads of all workers don't return in lockstep.
    """

    def __init__(self) -> None:
        self.pause_s = PAUSE_S

    def wait(self) -> None:
        time.sleep(self.pause_s * (0.5 + random.random() / 2))  # noqa: S311
        self.pause_s = min(2 * self.pause_s, MAX_PAUSE_S)

    def reset(self) -> None:
        self.pause_s = PAUSE_S


def start(work: Callable[..., None], *args: object) -> threading.Thread:
    """Start a thread for `work`."""
    thread = threading.Thread(target=or_end, args=(work, *args), daemon=True)
    thread.start()
    return thread


def or_end(work: Callable[..., None], *args: object) -> None:
    """Do `work`; if it raises, end the process.

    Nobody would see the end of a thread: its jobs would be held, and renewed, for ever. A new
    process leases them again.
    """
    try:
        work(*args)
    except Exception as error:
        try:
            log.event("worker.failed", "critical", error=repr(error), place=place_of(error))
        finally:  # where not even memory for the line is left
            os._exit(EX_SOFTWARE)
