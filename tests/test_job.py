"""The table of moves holds: every verb from every state, tried on a real Redis; and what a job and
a delivery are.
"""

import pytest
from conftest import NOW, accepted, act, delivery

from hookq.job import ABSENT, DEAD, DISCARDED, DONE, LEASED, MOVES, READY, RETRY, Headers, JobIds
from hookq.store.connection import Away
from hookq.store.records import Lease, Settled

STATES = [ABSENT, READY, LEASED, RETRY, DEAD, DONE, DISCARDED]
VERBS = sorted({verb for _, verb in MOVES})


def bring(store, state):
    """Bring one job into `state`; return its delivery and the lease it had, if any."""
    made = delivery()
    if state == ABSENT:
        return made, None
    store.accept([(made, 604_800)])
    if state == READY:
        return made, None
    lease = store.lease({"github": 1}, 100)[0]
    outcome = {RETRY: "retry", DEAD: "dead", DONE: "done", DISCARDED: "dead"}.get(state)
    if outcome:
        store.settle([Settled(lease, outcome, {"attempt": 1}, reason="gave_up")])
    if state == DISCARDED:
        store.discard([made.id], act("command", "b"))
    return made, lease


def state_of(store, made):
    audit, found = store.audit(), store.locate(made.id)
    counted = [state for state in STATES[1:] if getattr(audit, state)]
    assert len(counted) <= 1 and audit.gap == 0
    assert not found or [found[made.id]] == counted
    return counted[0] if counted else ABSENT


def apply(store, verb, made, lease):
    lease = lease or Lease(b"0-1", made, 0, False)
    settle = {"complete": "done", "reschedule": "retry", "bury": "dead", "release": "ready"}
    if verb in settle:
        store.settle([Settled(lease, settle[verb], {"attempt": 1}, reason="gave_up")])
    elif verb == "accept":
        store.accept([(made, 604_800)])
    elif verb == "lease":
        try:
            store.lease({"github": 1}, 1)
        except Away:
            pytest.fail("a lease of nothing is no error")
    else:
        acts = {
            "promote": store.promote,
            "reclaim": lambda: store.reclaim("w1"),
            "redrive": lambda: store.redrive([made.id], act("command")),
            "discard": lambda: store.discard([made.id], act("command", "b")),
            "restore": lambda: store.restore(store.batch("b"), act("command")),
        }
        acts[verb]()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", STATES)
def test_verb_moves_a_job_as_the_table_says_and_not_otherwise(store, state, verb):
    made, lease = bring(store, state)
    apply(store, verb, made, lease)
    assert state_of(store, made) == MOVES.get((state, verb), state)


def test_ids_sort_by_time_of_arrival():
    first, second = JobIds(1), JobIds(2)
    made = [(first if n % 3 else second).make(NOW + n / 1000) for n in range(100)]
    assert made == sorted(made) and len(set(made)) == 100
    assert all(len(id) == 16 and id.isalnum() and id == id.lower() for id in made)


def test_ids_grow_even_when_the_clock_is_stepped_back():
    ids = JobIds(3)
    made = [ids.make(now) for now in (NOW, NOW, NOW - 3600, NOW - 1, NOW)]
    assert made == sorted(made) and len(set(made)) == 5


def test_ids_of_two_processes_differ_in_the_same_microsecond():
    assert JobIds(1).make(NOW) != JobIds(2).make(NOW)


def test_headers_are_found_in_any_case_and_repeated_ones_are_joined():
    made = delivery(head=b"X-One: a\r\nx-one:  b \r\nX-Obs: \xff\r\n").headers
    assert made["X-ONE"] == "a, b" and made.get("x-Obs") == "\xff" and "x-one" in made
    assert made.get("nothing", 7) == 7 and 5 not in made and isinstance(made, Headers)


FORM = b"Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n"


@pytest.mark.parametrize(
    ("head", "body", "parsed"),
    [
        (b"", b'{"a": [1]}', {"a": [1]}),
        (b"Content-Type: application/json\r\n", b'"\xc3\xa9"', "é"),
        (FORM, b"payload=%7B%22a%22%3A1%7D", {"a": 1}),
        (FORM, b"a=1&b=2&b=3&c=", {"a": ["1"], "b": ["2", "3"], "c": [""]}),
    ],
)
def test_json_reads_what_senders_send(head, body, parsed):
    assert delivery(head=head, body=body).json() == parsed


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"", b""),
        (b"", b"{"),
        (b"", b"\xff"),
        (FORM, b"payload=no"),
        (FORM, b"\xff"),
        (FORM, b"no"),
        (FORM, b"&".join([b"a=1"] * 2000)),
    ],
)
def test_json_of_anything_else_is_a_value_error(head, body):
    with pytest.raises(ValueError):
        delivery(head=head, body=body).json()


def test_body_is_not_in_the_repr_of_a_delivery():
    assert "secret-thing" not in repr(delivery(body=b"secret-thing", head=b"X: secret-thing"))


def test_accepted_jobs_are_leased_in_the_order_they_came(store):
    made = accepted(store, 20)
    assert [lease.delivery.id for lease in store.lease({"github": 64}, 100)] == [d.id for d in made]
