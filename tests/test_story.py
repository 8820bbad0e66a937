"""One event as a line and as columns: what `make run`, `--send`, `--show` and the page share."""

import pytest

from hookq.operate import narrate, story
from hookq.store.records import Event

HOSTILE = "<b>\x1b]0;owned\x07 \r\n ‮"


def event(name, **facts):
    ran = {"event_type": "push", "attempt": 1, "of": 8, "run_ms": 3.5}
    return Event("an-id", 0.0, name, "github", ran | facts)


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        (event("job.complete"), "<--  github  push  an-id  done   1/8  3.5 ms"),
        (
            event("job.reschedule", error="OSError: no", delay_s=5.2),
            "<--  github  push  an-id  retry  1/8  3.5 ms  again within 5.2 s  OSError: no",
        ),
        (
            event("job.bury", error="GiveUp: no", attempt=8),
            "<--  github  push  an-id  dead   8/8  3.5 ms  GiveUp: no",
        ),
    ],
    ids=["done", "retry", "dead"],
)
def test_end_of_an_attempt_is_a_line(ended, line):
    assert story.line(ended) == line


def test_line_of_hostile_values_is_one_printable_line():
    hostile = event("job.bury", event_type=HOSTILE, error=HOSTILE * 100)
    for line in (story.line(hostile), story.record(hostile), *narrate.lines(hostile)):
        assert line.isprintable()
    assert len(story.line(hostile)) < 300


def test_only_the_first_attempt_tells_of_the_arrival():
    assert [line[:3] for line in narrate.lines(event("job.complete"))] == ["-->", "<--"]
    assert [line[:3] for line in narrate.lines(event("job.complete", attempt=2))] == ["<--"]
    assert not list(narrate.lines(event("delivery.duplicate")))


def test_columns_have_what_the_event_has():
    act = Event("an-id", 0.0, "job.redrive", "github", {"who": "ann", "by": "page"})
    assert story.columns(act) == story.Columns("put back", by="ann (page)")
    answer = {"status": 503, "body": ""}
    failed = event("job.reschedule", wait_ms=12.0, worker="w1", delay_s=61, answer=answer)
    details = "answered 503 (again within 1 min)"
    expected = story.Columns("failed, will retry", "1/8", "12.0 ms", "3.5 ms", "w1", details)
    assert story.columns(failed) == expected
