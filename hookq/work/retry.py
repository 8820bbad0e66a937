"""When a failed job runs again. Pure: the dice are an argument, the clock is not needed.

Exponential backoff with full jitter: the delay is drawn evenly from 0 to the ceiling, and the
ceiling doubles with each attempt. Without jitter, everything that failed in one outage comes back
in the same second and fails again.
"""

from collections.abc import Callable


def delay_s(
    attempt: int,
    max_attempts: int,
    base_s: float,
    max_s: float,
    dice: Callable[[], float],
    asked_s: float | None = None,
) -> float | None:
    """Return seconds until the next attempt, or None when `attempt` (from 1) was the last.

    `dice` returns a float in [0, 1). `asked_s` is what a handler asked for with Retry(after_s=…):
    it is kept as it is, up to `max_s`, since the handler knows more about the other side than any
    schedule.
    """
    if attempt >= max_attempts:
        return None
    if asked_s is not None:
        return min(max(asked_s, 0.0), max_s)
    # The exponent is bounded so that attempt 5,000 is a number, not an OverflowError.
    return dice() * min(max_s, base_s * 2.0 ** min(attempt - 1, 64))
