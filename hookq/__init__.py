"""What two or more of the four programs share.

Import direction: the programs import hookq; nothing in hookq imports a program.
A handler needs two names from here: `Retry` (run this job again) and `GiveUp` (no retry can help).
"""

from hookq.handlers import GiveUp, Retry

__all__ = ["GiveUp", "Retry"]
