"""When a failed job runs again. Pure: the dice are an argument, and no clock is needed.

Exponential backoff with full jitter: the delay is drawn evenly from 0 to a ceiling that doubles
with each attempt. Without jitter, all the jobs that failed in one outage would return in the same
second and fail again.
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

    `dice` returns a float in [0, 1). `asked_s` is what a handler asked for with Retry(after_s=…).
    It is used as it is, up to `max_s`, since the handler knows the other side better than a
    schedule does.
    """
    if attempt >= max_attempts:
        return None
    if asked_s is not None:
        return min(max(asked_s, 0.0), max_s)
    # The exponent is bounded: 2.0 ** 5000 would raise OverflowError.
    return dice() * min(max_s, base_s * 2.0 ** min(attempt - 1, 64))
