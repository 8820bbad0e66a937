"""The whole schedule of retries, as one table."""

import random
from collections import Counter

import pytest

from hookq.work.retry import delay_s

LAST = 0.999999


@pytest.mark.parametrize(
    ("attempt", "dice", "asked_s", "delay"),
    [
        (1, 0.0, None, 0),
        (1, LAST, None, 5),
        (2, LAST, None, 10),
        (3, LAST, None, 20),
        (4, 0.5, None, 20),
        (7, LAST, None, 320),
        (8, 0.5, None, None),
        (9, 0.5, None, None),
        (1, 0.5, 60, 60),
        (1, 0.5, 0, 0),
        (1, 0.5, -5, 0),
        (1, 0.5, 10**9, 3600),
        (8, 0.5, 60, None),
    ],
)
def test_delay_of_an_attempt_is_drawn_below_its_ceiling(attempt, dice, asked_s, delay):
    found = delay_s(attempt, 8, 5, 3600, lambda: dice, asked_s)
    assert found is None if delay is None else found == pytest.approx(delay, rel=1e-4)


def test_delay_never_passes_its_maximum_and_never_overflows():
    assert delay_s(5000, 10_000, 5, 3600, lambda: LAST) == pytest.approx(3600, rel=1e-4)


def test_failures_of_one_instant_are_spread_over_the_whole_time():
    dice = random.Random(7).random
    delays = [delay_s(6, 8, 5, 3600, dice) for _ in range(10_000)]
    tenths = Counter(int(delay / 160 * 10) for delay in delays)
    assert sorted(tenths) == list(range(10)) and max(tenths.values()) < 1200
