"""The store, verb by verb, against a real Redis. Names cite the rules of the design that they hold."""

import ast
import json
import re
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_type_hints

import hiredis
import pytest
from conftest import ROOT, Store, accepted, act, dead, dead_ids, delivery, until
from house import CODE, parsed

from hookq.ingest.intake import Intake
from hookq.job import BROUGHT, ENTRY, FIELDS, MAX_DEATHS, Delivery
from hookq.store import keys
from hookq.store.connection import Away
from hookq.store.keys import key
from hookq.store.records import Settled

WEEK = 604_800
BINARY = bytes(range(256)) * 3


def lease(store, count=64):
    return store.lease({"github": count}, 100)


def bury(store, count=1, **more):
    accepted(store, count, **more)
    leases = lease(store)
    assert all(
        store.settle(
            [
                Settled(held, "dead", {"attempt": 1, "error": "no"}, reason="gave_up")
                for held in leases
            ]
        )
    )
    return [held.delivery.id for held in leases]


def state(store):
    """Everything Redis holds of jobs, to compare before and after."""
    names = sorted(name for name in store.redis.scan_iter("*") if b"metrics" not in name)
    return {
        name: store.redis.dump(name) for name in names if store.redis.type(name) != b"stream"
    } | {name: store.redis.xrange(name) for name in names if store.redis.type(name) == b"stream"}


@pytest.fixture(autouse=True)
def balanced(store):
    """After every test: nothing lost, nothing doubled, no orphan."""
    yield
    assert store.audit().gap == 0 and store.orphans() == []


# ---------------- accept


def test_accept_same_delivery_again_is_a_duplicate_of_the_first_R6(store):
    first, second = delivery(delivery_id="x"), delivery(delivery_id="x")
    assert store.accept([(first, WEEK)]) == [first.id]
    assert store.accept([(second, WEEK)]) == [first.id]
    assert store.audit().accepted == 1


def test_accept_same_delivery_twice_in_one_batch_makes_one_job_R6(store):
    first, second = delivery(delivery_id="x"), delivery(delivery_id="x")
    assert store.accept([(first, WEEK), (second, WEEK)]) == [first.id, first.id]
    assert store.audit().ready == 1


def test_accept_same_id_from_two_sources_makes_two_jobs(store):
    batch = [delivery(source, delivery_id="x") for source in ("github", "partner")]
    assert store.accept([(d, WEEK) for d in batch]) == [d.id for d in batch]


@pytest.mark.parametrize(("delivery_id", "dedupe_s"), [("x", WEEK), ("x", 1), ("", WEEK)])
def test_accept_after_a_lost_reply_counts_once_and_says_accepted_R6(store, delivery_id, dedupe_s):
    made = delivery(delivery_id=delivery_id)
    for _ in range(3):
        assert store.accept([(made, dedupe_s)]) == [made.id]
    assert (store.audit().accepted, store.audit().ready) == (1, 1)


def test_accept_without_a_delivery_id_never_deduplicates_R6(store):
    batch = [delivery(delivery_id="") for _ in range(3)]
    assert store.accept([(d, WEEK) for d in batch]) == [d.id for d in batch]


def test_accept_same_delivery_from_16_threads_makes_one_job_R6(store, redis_server):
    def send(_):
        mine = Store(redis_server.url, "t")
        try:
            return mine.accept([(delivery(delivery_id="same"), WEEK)])[0]
        finally:
            mine.close()

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(send, range(64)))) == 1
    assert store.audit().accepted == 1


def test_accept_marks_expire_and_survive_the_job(store):
    accepted(store, delivery_id="x")
    store.settle([Settled(held, "done") for held in lease(store)])
    assert 0 < store.redis.ttl(key("seen", "github", "x")) <= WEEK
    assert store.accept([(again := delivery(delivery_id="x"), WEEK)]) != [again.id]


# ---------------- lease and renew


def test_lease_hands_every_job_to_one_worker_only(store, other):
    accepted(store, 10)
    mine, theirs = lease(store, 5), lease(other)
    assert len(mine) == len(theirs) == 5 and not {h.entry for h in mine} & {h.entry for h in theirs}


def test_lease_again_returns_what_a_lost_reply_had_leased(store):
    accepted(store, 3)
    lost = lease(store)
    assert [held.entry for held in store.lease({"github": 64}, 1, again=True)] == [
        held.entry for held in lost
    ]


def test_lease_after_redis_came_back_empty_makes_its_groups_again(store):
    accepted(store)
    lease(store)
    store.redis.flushall()
    with pytest.raises(Away):
        lease(store)
    accepted(store)
    assert len(lease(store)) == 1


def test_renew_keeps_a_lease_from_running_out(store, other):
    accepted(store)
    held = lease(store)
    long_ago = ("IDLE", 60_000, "JUSTID")
    store.redis.execute_command(
        "XCLAIM", key("ready", "github"), "workers", "w1", 0, held[0].entry, *long_ago
    )
    store.renew({"github": [held[0].entry], "none": []})
    assert other.reclaim("w1", idle_s=30) == []
    assert store.settle([Settled(held[0], "done")]) == [True]


# ---------------- settle


@pytest.mark.parametrize("outcome", ["done", "retry", "dead", "ready"])
def test_settle_ends_the_lease_in_one_place(store, outcome):
    accepted(store, body=BINARY)
    held = lease(store)[0]
    assert store.settle([Settled(held, outcome, {"attempt": 1}, reason="gave_up")]) == [True]
    audit = store.audit()
    assert [
        name for name in ("ready", "leased", "retry", "dead", "done") if getattr(audit, name)
    ] == [outcome]


@pytest.mark.parametrize("outcome", ["done", "retry", "dead", "ready"])
def test_settle_after_the_lease_was_lost_changes_nothing_R5(store, other, outcome):
    accepted(store)
    held = lease(store)[0]
    other.reclaim("w1")
    before = state(store)
    assert store.settle([Settled(held, outcome, {"attempt": 1}, reason="gave_up")]) == [False]
    assert state(store) == before


def test_settle_after_a_redrive_is_refused_too_R5(store, other):
    # `attempt` starts again with a redrive, so it could not tell the two leases apart.
    accepted(store)
    late = lease(store)[0]
    other.reclaim("w1")
    other.settle([Settled(lease(other)[0], "dead", {"attempt": 1}, reason="gave_up")])
    other.redrive_rank(0, act())
    assert store.settle([Settled(late, "done", {"attempt": 1})]) == [False]
    assert store.audit().ready == 1


def test_settle_twice_counts_once(store):
    accepted(store)
    held = lease(store)[0]
    assert [store.settle([Settled(held, "done")]) for _ in range(2)] == [[True], [False]]
    assert store.audit().done == 1


def test_settle_of_a_batch_refuses_only_the_lost_ones(store, other):
    accepted(store, 3)
    held = lease(store)
    store.settle([Settled(held[1], "done")])
    assert store.settle([Settled(h, "done") for h in held]) == [True, False, True]


def test_body_and_head_come_through_every_state_unchanged_R3(store):
    head = b"X-Obs: \xff\xfe\r\nContent-Type: application/octet-stream\r\n"
    accepted(store, body=BINARY, head=head)
    held = lease(store)[0]
    store.settle([Settled(held, "retry", {"attempt": 1})])
    store.promote()
    held = lease(store)[0]
    store.settle([Settled(held, "dead", {"attempt": 2}, reason="gave_up")])
    store.discard(dead_ids(store), act("page", "b"))
    store.restore(store.batch("b"), act("page"))
    store.redrive(dead_ids(store), act("page"))
    store.reclaim("nobody")
    held = lease(store)[0]
    assert (held.delivery.body, held.delivery.head, held.delivery.attempt) == (BINARY, head, 0)


# ---------------- promote


def test_promote_moves_what_is_due_and_nothing_else(store):
    accepted(store, 2)
    first, second = lease(store)
    store.settle(
        [Settled(first, "retry", {"attempt": 1}, 0), Settled(second, "retry", {"attempt": 1}, 60)]
    )
    assert store.promote() == [("github", first.delivery.id)]
    assert store.promote() == []
    assert lease(store)[0].delivery.attempt == 1


def test_promote_by_two_workers_moves_each_once(store, other):
    accepted(store, 20)
    store.settle([Settled(held, "retry", {"attempt": 1}) for held in lease(store)])
    moved = store.promote(10) + other.promote(100)
    assert len(moved) == len(set(moved)) == 20


def test_promote_of_a_member_without_its_job_does_not_stop_the_others(store):
    store.redis.zadd(key("retry"), {"orphan": 0})
    accepted(store)
    store.settle([Settled(held, "retry", {"attempt": 1}) for held in lease(store)])
    assert len(store.promote()) == 1
    store.redis.zrem(key("retry"), "orphan")


# ---------------- reclaim (R9)


def test_reclaim_charges_the_job_announced_as_in_hand_only_R9(store, other):
    accepted(store, 3)
    held = lease(store)
    store.announce(held[1])
    other.reclaim("w1")
    found = {h.delivery.id: (h.deaths, h.suspect, h.delivery.attempt) for h in lease(other)}
    assert [found[h.delivery.id] for h in held] == [(0, False, 0), (1, True, 1), (0, False, 0)]


def test_reclaim_charges_the_only_job_of_a_worker_R9(store, other):
    accepted(store)
    lease(store)
    assert other.reclaim("w1")[0][2:] == ("ready", 1)
    assert lease(other)[0].delivery.attempt == 1


def test_reclaim_of_several_makes_suspects_that_pay_no_attempt_R9(store, other):
    accepted(store, 3)
    for worker, helper in ((store, other), (other, store), (store, other)):
        assert len(lease(worker)) == 3
        helper.reclaim(worker.name)
    assert {(h.deaths, h.suspect, h.delivery.attempt) for h in lease(store)} == {(0, True, 0)}


@pytest.mark.parametrize(
    ("seen", "starts_wanted"), [(True, MAX_DEATHS), (False, MAX_DEATHS + 1)], ids=["seen", "unseen"]
)
def test_reclaim_buries_a_killer_at_its_third_death_R9(store, seen, starts_wanted):
    killer = accepted(store, 5)[2].id
    starts, done, hand = 0, [], b""
    for life in range(10):
        worker = Store(
            store.redis.connection_pool.connection_kwargs["path"].join(["unix://", ""]),
            f"life-{life}",
        )
        for held in worker.lease({"github": 64}, 1):
            if held.suspect:
                worker.announce(held)
            if held.delivery.id == killer:
                starts, hand = starts + 1, held.entry
                break
            done += (
                [held.delivery.id]
                if worker.settle([Settled(held, "done", {"attempt": 1})]) == [True]
                else []
            )
            if held.suspect:
                worker.announce(None)
        assert all(
            row[3] == 0
            for row in store.reclaim(worker.name, hand=hand if seen else None)
            if row[1] != killer
        )
        worker.close()
    assert starts == starts_wanted and len(done) == 4
    assert [job.reason for job in dead(store)] == ["killed_worker"]


def test_reclaim_of_a_live_lease_needs_its_idle_time(store, other):
    accepted(store)
    lease(store)
    assert other.reclaim("w1", idle_s=30) == []
    assert "w1" in other.holders()


def test_reclaim_forgets_a_worker_of_which_nothing_is_left(store, other):
    accepted(store)
    lease(store)
    store.beat({"at": 0})
    store.announce(None)
    assert store.holders() == {"w1"}
    other.reclaim("w1")
    assert store.holders() == set() and store.workers() == {}


# ---------------- operators


def test_redrive_rank_puts_the_ranked_one_back_with_fresh_attempts(store):
    ids = bury(store, 3)
    assert store.redrive_rank(1, act()) == ids[1]
    assert dead_ids(store) == [ids[0], ids[2]]
    assert lease(store)[0].delivery.attempt == 0


def test_redrive_rank_that_is_not_there_returns_none(store):
    bury(store)
    assert store.redrive_rank(1, act()) is None
    assert store.redrive_rank(10**14, act()) is None


def test_redrive_rank_that_somebody_else_moved_meanwhile_says_so(store, other):
    ids = bury(store, 2)
    watch = store.redis.pipeline

    def slow(*args, **more):
        made = watch(*args, **more)
        execute = made.execute
        made.execute = lambda *a: (other.redrive([ids[0]], act("page")), execute(*a))[1]
        return made

    store.redis.pipeline = slow
    with pytest.raises(LookupError):
        store.redrive_rank(0, act())
    assert dead_ids(store) == [ids[1]] and store.audit().ready == 1


def test_redrive_and_discard_skip_what_is_no_dead_letter(store):
    id = bury(store)[0]
    assert store.redrive(["nosuch", id, id], act("page")) == [id]
    assert store.discard([id, "nosuch"], act("page", "b")) == []


def test_discarded_jobs_expire_and_restored_ones_do_not(store):
    id = bury(store)[0]
    store.discard([id], act("command", "b"))
    assert 86_000 < store.redis.ttl(key("job", id)) <= 86_400 and store.last_batch() == "b"
    assert store.restore(store.batch("b"), act("command")) == [id]
    assert store.redis.ttl(key("job", id)) == -1 and store.last_batch() is None
    assert store.restore(store.batch("b"), act("command")) == []


def test_restore_keeps_the_time_of_death_so_that_numbers_do_not_move(store):
    ids = bury(store, 3)
    store.discard([ids[0]], act())
    store.restore(store.batch("b"), act("command"))
    assert dead_ids(store) == ids


# ---------------- reading, and Redis in trouble


def test_orphans_are_named(store):
    bury(store)
    store.redis.zadd(key("retry"), {"ghost": 1})
    assert store.orphans() == ["ghost is in retry without its job"]
    store.redis.zrem(key("retry"), "ghost")


def test_epoch_changes_only_when_redis_came_back_empty(store):
    first = store.epoch()
    assert store.epoch() == first
    store.redis.flushall()
    assert store.epoch() != first


def test_redis_away_raises_away_from_every_verb():
    store = Store("unix:///nowhere/r.sock", "w1")
    verbs = [
        store.audit,
        store.promote,
        store.sources,
        store.ping,
        store.epoch,
        store.health,
        store.last_batch,
        lambda: store.gone(set()),
    ]
    for verb in verbs:
        with pytest.raises(Away):
            verb()


def test_full_redis_refuses_whole_batches_and_can_still_be_drained(small_redis):
    store = Store(small_redis.url, "w1")
    with pytest.raises(Away, match="(?i)memory"):
        for _ in range(200):
            store.accept([(delivery(body=b"x" * 50_000), WEEK) for _ in range(4)])
    full = store.audit()
    assert full.gap == 0 and full.accepted % 4 == 0
    held = store.lease({"github": 20}, 100)
    outcomes = ["retry", "dead", "ready", "done"]
    assert all(
        store.settle(
            [
                Settled(h, outcomes[n % 4], {"attempt": 1}, reason="gave_up")
                for n, h in enumerate(held)
            ]
        )
    )
    assert store.promote() and store.reclaim("nobody") == []
    store.beat({"pid": 7})
    store.announce(None)
    assert store.gone(set()) == set()
    letters = dead_ids(store)
    assert store.discard(letters, act()) == store.restore(letters, act()) == letters
    assert store.redrive(letters, act()) == letters
    while held := store.lease({"github": 20}, 1):
        store.settle([Settled(h, "done", {"attempt": 1}) for h in held])
    assert store.audit().gap == 0 and store.accept([(d := delivery(), WEEK)]) == [d.id]
    store.close()


# ---------------- Intake


@pytest.fixture
def intake(redis_server):
    woken = []
    made = Intake(redis_server.url, "ingest", lambda: woken.append(1))
    made.start()
    until(lambda: woken and made.adopt())
    yield made
    made.failed("the test is over")


def answers(intake, count):
    found = []
    while len(found) < count:
        select.select([intake.sock], [], [], 5)
        found += intake.received()
    return found


def test_intake_answers_two_batches_under_way_in_order(intake, store):
    batches = [[(delivery(), WEEK) for _ in range(3)] for _ in range(2)]
    for name, batch in enumerate(batches):
        intake.submit(batch, (f"flush-{name}", {"rejected:github:signature": 2}), name)
    assert intake.busy
    assert answers(intake, 2) == [(n, [d.id for d, _ in batch]) for n, batch in enumerate(batches)]
    assert store.metrics()["rejected:github:signature"] == 4


def test_intake_sends_what_the_socket_does_not_take_at_once(intake, store):
    made = delivery(body=b"x" * 8_000_000)
    intake.submit([(made, WEEK)], None, "big")
    assert intake.wants_write
    while intake.wants_write:
        intake.flush()
    assert answers(intake, 1) == [("big", [made.id])]


def test_intake_goes_on_when_redis_has_forgotten_its_scripts(intake, store):
    store.redis.script_flush()
    intake.submit([(made := delivery(), WEEK)], None, "kept")
    assert answers(intake, 1) == [("kept", [made.id])] and store.audit().gap == 0


def test_intake_is_down_while_required_replicas_are_missing(redis_server):
    woken = []
    made = Intake(redis_server.url, "ingest-a-1-x", lambda: woken.append(1), replicas=1)
    made.start()
    until(lambda: woken)
    assert (
        not made.adopt()
        and "0 replicas have it in memory in time, and DURABILITY asks for 1" in made.why
    )


@pytest.mark.parametrize("reply", [1, [0, 1]], ids=["WAIT", "WAITAOF"])
def test_batch_counts_when_as_many_replicas_confirm_as_are_asked_for(intake, store, reply):
    batches = [[(delivery(), WEEK)] for _ in range(2)]
    text = "return 1" if reply == 1 else "return {0, 1}"
    intake.replicas.count, intake.replicas.packed = 1, hiredis.pack_command(("EVAL", text, "0"))
    for name, batch in enumerate(batches):
        intake.submit(batch, None, name)
        intake.say({"pid": name})
    assert answers(intake, 2) == [(n, [d.id for d, _ in batch]) for n, batch in enumerate(batches)]
    intake.replicas.count = 2
    intake.submit([(delivery(), WEEK)], None, "not confirmed")
    with pytest.raises(Away, match="DURABILITY asks for 2"):
        answers(intake, 1)
    assert intake.failed("") == ["not confirmed"]


HERE = {"pid": 7, "up_s": 60, "connections": 3, "spooled": 206}


def test_silent_host_keeps_its_ingestion_on_the_list(store, redis_server):
    old = {
        "ingest-a-1-x": ("a", 60, HERE),
        "ingest-b-2-y": ("b", 60, HERE),
        "ingest-c-3-z": ("c", 100_000, HERE),
        "odd": ("d", 60, {}),
    }
    for name, (host, ago_s, facts) in old.items():
        store.redis.hset(
            key("ingestion"), name, f"{store.now() - ago_s}\n{host}\n{json.dumps(facts)}"
        )
    woken = []
    one = Intake(redis_server.url, "ingest-a-4-w", lambda: woken.append(1))
    one.start()
    until(lambda: woken and one.adopt())
    for facts, names in ((HERE, {"ingest-a-4-w", "ingest-b-2-y"}), (None, {"ingest-b-2-y"})):
        one.say(facts)
        select.select([one.sock], [], [], 5)
        assert list(one.received()) == [] and set(store.ingestion()) == names
    assert store.ingestion()["ingest-b-2-y"].host == "b"
    one.failed("the test is over")


def test_unanswered_heartbeat_is_overdue_and_not_repeated_R7(private_redis):
    woken = []
    one = Intake(private_redis.url, "ingest-a-1-x", lambda: woken.append(1), limit_s=9)
    one.start()
    until(lambda: woken and one.adopt())
    private_redis.process.send_signal(signal.SIGSTOP)
    one.say(HERE)
    assert not one.overdue(time.monotonic())
    for _ in range(1000):
        one.say(HERE)
    assert not one.wants_write and not one.busy and one.overdue(time.monotonic() + 9.1)
    assert one.failed("no answer") == [] and not one.overdue(time.monotonic() + 1000)


def test_failed_entry_claims_nothing_and_returns_its_tokens_R6(intake, store):
    store.redis.set(key("ready", "github"), "somebody else's")
    made = [(delivery(delivery_id="x"), WEEK)]
    intake.submit(made, None, "refused")
    intake.submit([(delivery(), WEEK)], None, "behind it")
    with pytest.raises(Away, match="WRONGTYPE"):
        answers(intake, 1)
    assert intake.failed("WRONGTYPE") == ["refused", "behind it"]
    assert not store.redis.exists(key("seen", "github", "x"))
    store.redis.delete(key("ready", "github"))
    assert store.accept(made) == [made[0][0].id]


def test_batch_of_new_and_known_makes_one_entry_per_job_R6(store):
    known = [
        delivery(source, f"{source}-{n}") for source in ("github", "partner") for n in range(3)
    ]
    store.accept([(d, WEEK) for d in known[::2]])
    again = [delivery(d.source, d.delivery_id) for d in known]
    ids = store.accept([(d, WEEK) for d in again])
    assert ids == [d.id if n % 2 == 0 else again[n].id for n, d in enumerate(known)]
    entries = [
        values[b"id"].decode()
        for name in ("github", "partner")
        for _, values in store.redis.xrange(key("ready", name))
    ]
    assert sorted(entries) == sorted(ids) and store.audit().gap == 0


def test_intake_on_a_full_redis_does_not_come_up(small_redis):
    store = Store(small_redis.url, "w1")
    store.redis.config_set("maxmemory", "1kb")
    store.close()
    intake = Intake(small_redis.url, "ingest", lambda: None)
    intake.start()
    until(lambda: "memory" in intake.why)
    assert not intake.adopt()


def test_orphan_among_the_dead_is_told_and_hangs_nobody(store):
    bury(store)
    store.redis.zadd(key("dead"), {"0000000000000000": 1})
    with pytest.raises(LookupError):
        store.redrive_rank(0, act())
    assert store.orphans() == ["0000000000000000 is in dead without its job"]
    store.redis.flushall()


def test_entry_that_nobody_will_run_is_named_by_the_audit(store):
    made = accepted(store, 2)
    held = lease(store)
    store.redis.xack(key("ready", "github"), "workers", held[0].entry)
    assert store.orphans() == [
        f"{made[0].id} of github is neither ready nor leased: nobody will run it"
    ]
    store.redis.flushall()


def test_settle_with_a_delay_that_is_no_number_changes_nothing(store):
    accepted(store, 2)
    held = lease(store)
    for delay in (float("nan"), float("inf"), -1):
        with pytest.raises(Away):
            store.settle(
                [
                    Settled(held[0], "done", {"attempt": 1}),
                    Settled(held[1], "retry", {"attempt": 1}, delay),
                ]
            )
    assert (store.audit().leased, store.audit().gap, store.orphans()) == (2, 0, [])


def test_duplicate_asked_for_again_hears_the_same_whatever_the_window(store):
    for dedupe_s in (60, WEEK):
        first, again = delivery(delivery_id=f"x{dedupe_s}"), delivery(delivery_id=f"x{dedupe_s}")
        answers = [store.accept([(d, dedupe_s)]) for d in (first, again, again)]
        assert answers == [[first.id]] * 3


def test_accepted_deliveries_are_found_as_recent_and_by_minute(store):
    made = accepted(store, 30)
    assert [id for id, _, _ in store.recent()] == [d.id for d in reversed(made)][:25]
    assert sum(counts.get("accepted:github", 0) for _, counts in store.minutes(2)) == 30


def long_up(store):
    """Make it as if this server had been the one for ten seconds."""
    store.gone(set())
    store.redis.hset(key("primary"), "since", store.now() - 10)


def test_worker_without_a_connection_is_gone_at_the_second_look(store, other):
    long_up(store)
    holders = {"w1", "w2", "dead-1"}
    assert store.gone(holders) == set()  # the first look
    assert other.gone(holders) == set()  # another worker, too soon after it
    store.redis.hset(key("missing"), "dead-1", store.now() - 1.1)
    assert other.gone(holders) == {"dead-1"}
    assert other.gone({"w1", "w2"}) == set() and not store.redis.exists(key("missing"))


def test_worker_on_a_failed_server_has_time_to_come_back(store):
    store.local = False  # over a network
    long_up(store)
    assert store.gone({"late-1"}) == set()
    store.redis.hset(key("missing"), "late-1", store.now() - 5)
    assert store.gone({"late-1"}) == set()
    store.redis.hset(key("primary"), "since", store.now() - 60)
    store.redis.hset(key("missing"), "late-1", store.now() - 5)
    assert store.gone({"late-1"}) == {"late-1"}


@pytest.mark.parametrize(
    "field, value",
    [("run", "another"), ("since", 1e11)],
    ids=["another server", "a clock set back"],
)
def test_note_of_another_server_or_time_makes_nobody_gone(store, field, value):
    long_up(store)
    store.redis.hset(key("missing"), "dead-1", 1)
    store.redis.hset(key("primary"), field, value)
    assert store.gone({"dead-1"}) == set()
    assert float(store.redis.hget(key("missing"), "dead-1")) > 1
    assert store.gone({"dead-1"}) == set()  # nor in the first second of this one


# ---------------- formats of jobs: old and new processes work side by side on one Redis


def added(store, job, version=b"1", *more):
    """Add an entry as another version of webhookd would; return its id."""
    facts = (
        ("id", job.id),
        ("delivery_id", job.delivery_id),
        ("event_type", "push"),
        ("received_at", job.received_at),
    )
    facts += ("attempt", 0), ("deaths", 0), ("suspect", 0), ("head", job.head), ("body", job.body)
    store.redis.sadd(key("sources"), "github")
    store.redis.hincrby(key("ledger"), "accepted", 1)
    return store.redis.xadd(key("ready", "github"), dict([("v", version), *facts, *more]))


def test_jobs_of_the_previous_format_go_through_every_move(store):
    jobs = [delivery(body=b"%d" % n) for n in range(4)]
    for job in jobs:
        added(store, job)  # without its secret's place, as before
    leases = store.lease({"github": 4}, 100)
    assert [lease.delivery for lease in leases] == jobs
    ends = [
        Settled(leases[0], "done"),
        Settled(leases[1], "retry", {"attempt": 1}),
        Settled(leases[2], "dead", {"attempt": 1}, reason="gave_up"),
    ]
    assert store.settle([*ends, Settled(leases[3], "ready")]) == [True] * 4
    assert store.promote() == [("github", jobs[1].id)] and store.redrive([jobs[2].id], act()) == [
        jobs[2].id
    ]
    again = {lease.delivery.id: lease.delivery for lease in store.lease({"github": 4}, 100)}
    assert again == {job.id: job._replace(attempt=int(job is jobs[1])) for job in jobs[1:]}
    assert store.reclaim("w1")[0][2] == "ready" and store.audit().gap == 0


def test_job_of_a_newer_format_is_neither_run_nor_changed_nor_lost(store, other):
    job = delivery()
    entry = added(store, job, b"2", ("colour", "red"))
    before = store.redis.xrange(key("ready", "github"))
    (lease,) = store.lease({"github": 4}, 100)
    assert not lease.known and lease.entry == entry
    assert other.reclaim("w1") == [] and other.reclaim("w1", idle_s=0.001) == []
    assert store.redis.xrange(key("ready", "github")) == before
    assert store.audit().leased == 1 and store.audit().gap == 0 and store.orphans() == []
    store.redis.hset(key("job", "parked"), mapping={"v": 2, "id": "parked", "source": "github"})
    for name in ("retry", "dead"):
        store.redis.zadd(key(name), {"parked": 1})
    assert (
        store.promote() == []
        and store.redrive(["parked"], act()) == []
        and store.redis.hget(key("job", "parked"), "v") == b"2"
    )
    store.redis.delete(key("job", "parked"), key("retry"), key("dead"))


# ---------------- one table of keys, one of a job's fields

TABLE = (keys.__doc__, re.compile(r"^    \{hookq\}:(\w+)(:?)", re.M))
LUA = {path.stem: path.read_text() for path in (ROOT / "hookq/store/lua").glob("*.lua")}
SPELLED = re.compile(r"P \.\. '(\w+)(:?)'")


def keys_of_python(path):
    """Yield (first word, whether more follows) of each key that a file makes."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "key":
            first, *more = node.args
            assert isinstance(first, ast.Constant), f"{path}:{node.lineno}: its first word varies"
            yield first.value, bool(more)


def test_table_has_every_key_that_is_spelled_and_no_other():
    spelled = {row for path in CODE for row in keys_of_python(path)}
    for name, text in LUA.items():
        assert len(SPELLED.findall(text)) == text.count("P .."), f"{name}: a first word varies"
        spelled |= {(word, bool(colon)) for word, colon in SPELLED.findall(text)}
    text, row = TABLE
    assert spelled == {(word, bool(colon)) for word, colon in row.findall(text)}


def test_key_of_redis_is_in_the_table_whatever_was_done(store):
    ids = bury(store, 3)
    store.redrive([ids[0]], act())
    store.discard([ids[1]], act())
    accepted(store)
    store.settle([Settled(held, "retry", {"attempt": 1}, 60) for held in lease(store, 1)])
    store.announce(lease(store, 1)[0])
    store.beat({"pid": 7})
    store.epoch()
    store.gone({"missing"})
    text, row = TABLE
    rows = [line.split() for line in text.splitlines() if row.match(line)]
    types = {(cells[0].split(":")[1], cells[0].count(":") > 1): cells[1].lower() for cells in rows}
    for name in store.redis.scan_iter("*"):
        _, word, *more = name.decode().split(":")
        assert store.redis.type(name).decode() == types[word, bool(more)], name
    store.redis.delete(key("hand"))


def test_field_of_the_table_is_a_deliverys_or_has_a_default():
    brought = {field.name: field.kind for field in BROUGHT}
    assert brought | {"attempt": int} == get_type_hints(Delivery)
    assert all(field.first is not None for field in FIELDS if field.name not in Delivery._fields)


def test_entry_has_the_fields_of_the_table_in_their_order(store):
    (made,) = accepted(store, body=BINARY, secret=2)
    ((_, fields),) = store.redis.xrange(key("ready", "github"))
    assert list(fields) == [field.name.encode() for field in ENTRY]
    (held,) = lease(store)
    assert held.delivery == made
    store.settle([Settled(held, "ready")])
    ((_, again),) = store.redis.xrange(key("ready", "github"))
    assert list(again.items()) == list(fields.items())
