"""webhookd: what the four programs are made of. docs/architecture.md has the picture.

    ingest/     the way in: HTTP, signatures, the spool          webhookd.py
    work/       the way through: leases, handlers, retries       worker.py
    operate/    what a person sees and does                      dashboard.py, dlqctl.py, launch.py
    store/      all that Redis holds, and what is done with it   the three wings
    here        the ground floor, which knows none of them

A handler needs two names from here: `Retry` (run this job again) and `GiveUp` (no retry can help).
"""

from hookq.outcome import GiveUp, Retry

__all__ = ["GiveUp", "Retry"]
