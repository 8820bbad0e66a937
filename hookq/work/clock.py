"""The server's clock: Redis' time, which all hosts share, kept between two looks at it.

It dates what hosts compare: when a job became ready, how long it waited, when its attempt ended.
Between two looks it goes on with the monotonic clock of this host, which nobody sets.

Promises: a jump of Redis' clock is noticed at the next look. Does not promise agreement to the
millisecond: a slow answer makes it late by as much.
"""

import time
from typing import Final

# More than the two clocks drift between two looks, plus the time a slow answer takes.
JUMP_S: Final = 5.0


class ServerClock:
    """Redis' clock as a distance from our monotonic one; None until the first look."""

    def __init__(self) -> None:
        self.ahead_s: float | None = None

    def now(self) -> float:
        """Return the server's time; this host's own until Redis has been asked once."""
        return time.time() if self.ahead_s is None else time.monotonic() + self.ahead_s

    def saw(self, server_s: float, monotonic_s: float) -> float:
        """Note what Redis' clock shows; return by how many seconds it has jumped, 0.0 if not."""
        was, self.ahead_s = self.ahead_s, server_s - monotonic_s
        jumped_s = 0.0 if was is None else self.ahead_s - was
        return jumped_s if abs(jumped_s) >= JUMP_S else 0.0
