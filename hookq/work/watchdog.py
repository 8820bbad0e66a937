"""The watchdog: ends a worker that can do no more good. Its jobs are reclaimed, and supervisord
starts the next one.

    what is wrong                                   who notices             after
    a handler does not stop at its time limit       the keeper, `watch`     GRACE_S over its limit
    one holds the interpreter: no thread can run    a timer in C            GRACE_S over the longest
    the main loop does not turn, and Redis answers  the keeper, `watch`     STALLED_S

A time limit is a signal, and Python sees signals between two of its own instructions only: code in
C that never returns does not see them. The job that ran is charged with the crash (R9), so one that
does this each time becomes a dead letter.

Promises: no job, import or fault of ours holds a worker for ever. Does not promise that a handler
gets to clean up.
"""

import faulthandler
import os
import time
from typing import Final

from hookq import log
from hookq.work.progress import Look
from hookq.work.threads import EX_SOFTWARE

TICK_S: Final = 0.5  # between two looks
GRACE_S: Final = 5.0  # for a handler over its time limit, before that costs the process
# Without a turn of the main loop. A loop that hangs does not recover; a new process will.
STALLED_S: Final = 30.0


def arm(longest_s: float) -> None:
    """Set the timer in C for the next look, `longest_s` being the longest limit of all handlers.
    It fires also when a handler holds the interpreter, and the thread that looks is stuck.
    """
    faulthandler.dump_traceback_later(longest_s + GRACE_S + TICK_S, exit=True)


def watch(look: Look, answered_at: float) -> None:
    """End the process if its handler or its loop hangs. `answered_at` is when Redis last answered:
    a loop that waits for Redis is no stall.
    """
    now, current = time.monotonic(), look.current
    if current and now - current.since > current.limit_s + GRACE_S:
        why = "its handler did not stop at its time limit"
        log.event("worker.stuck", "critical", id=current.lease.delivery.id, why=why)
        faulthandler.dump_traceback()
        os._exit(EX_SOFTWARE)
    idle = not current and not look.ending
    if idle and answered_at > now - 2 * TICK_S and now - look.polled_at > STALLED_S:
        why = f"no poll for {STALLED_S:g} s while Redis answers"
        log.event("worker.stalled", "critical", why=why)
        os._exit(EX_SOFTWARE)
