"""Whose turn it is, as numbers: what sources paid, and what is leased of each then."""

import pytest

from hookq.work.turns import PREFETCH, PREFETCH_BYTES, SLICE_S, Turns


def turns(**took_s):
    """Return turns after one job of each source."""
    made = Turns()
    for name, seconds in took_s.items():
        made.ran(name, seconds, 1000)
    return made


def limits(*names):
    return dict.fromkeys(names, PREFETCH)


def test_source_nobody_knows_gets_one_job():
    assert Turns().wants(limits("new")) == {"new": 1}


@pytest.mark.parametrize(
    ("took_s", "count"), [(1e-6, PREFETCH), (0.002, 16), (0.003, 16), (0.03, 1), (2.0, 1)]
)
def test_as_many_are_leased_as_fill_a_slice(took_s, count):
    assert turns(a=took_s).wants(limits("a")) == {"a": count}


def test_long_bodies_are_leased_one_by_one():
    made = Turns()
    made.ran("a", 1e-5, PREFETCH_BYTES)
    assert made.wants(limits("a")) == {"a": 1}


def test_busy_sources_share_what_is_leased_at_once():
    made = turns(a=1e-5, b=1e-5)
    made.gave({"a": 32, "b": 32}, {"a", "b"}, {"a", "b"})
    assert made.wants(limits("a", "b")) == {"a": 16, "b": 16}


def test_quick_source_gets_as_much_time_as_the_slow_one():
    made, served = turns(slow=2.0, quick=0.001), 0
    while "slow" not in (wants := made.wants(limits("slow", "quick"))):
        made.gave(wants, {"quick"}, {"slow", "quick"})
        for _ in range(wants["quick"]):
            made.ran("quick", 0.001, 1000)
            served += 1
    assert served == pytest.approx((2.0 - SLICE_S) / 0.001, abs=PREFETCH)


def test_source_that_has_nothing_holds_nobody_up_and_saves_nothing_up():
    made = turns(slow=100.0, quick=0.001)
    wants = made.wants(limits("slow", "quick"))
    assert wants.keys() == {"quick"}
    made.gave(wants, (), {"slow", "quick"})  # nothing of it is ready
    assert made.wants(limits("slow", "quick")).keys() == {"slow", "quick"}
    made.ran("slow", 2.0, 1000)
    made.gave({"quick": 1}, {"quick"}, {"slow", "quick"})
    made.ran("quick", 2.0, 1000)
    assert "slow" in made.wants(limits("slow", "quick"))  # not after a hundred seconds


def test_when_nobody_has_anything_all_begin_anew():
    made = turns(a=5.0, b=1.0)
    made.gave({"a": 1, "b": 1}, (), {"a", "b"})
    assert made.wants(limits("a", "b")).keys() == {"a", "b"}
