"""The store, verb by verb, against a real Redis. Names cite the rules of the design that they hold."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import Redis, accepted, delivery, until

from hookq.job import MAX_DEATHS
from hookq.store import SCRIPTS, Away, Intake, Settled, Store, key

WEEK = 604_800
BINARY = bytes(range(256)) * 3


def lease(store, count=64):
    return store.lease(["github"], count, 100)


def bury(store, count=1, **more):
    accepted(store, count, **more)
    leases = lease(store)
    assert all(store.settle([Settled(held, "dead", {"attempt": 1, "error": "no"}, reason="gave_up") for held in leases]))
    return [held.delivery.id for held in leases]


def state(store):
    """Everything Redis holds of jobs, to compare before and after."""
    names = sorted(name for name in store.redis.scan_iter("*") if b"metrics" not in name)
    return {name: store.redis.dump(name) for name in names if store.redis.type(name) != b"stream"} | {
        name: store.redis.xrange(name) for name in names if store.redis.type(name) == b"stream"
    }


@pytest.fixture(autouse=True)
def balanced(store):
    """After every test: nothing lost, nothing doubled, no orphan."""
    yield
    assert store.audit()["gap"] == 0 and store.orphans() == []


# ---------------- accept


def test_accept_same_delivery_again_is_a_duplicate_of_the_first_R6(store):
    first, second = delivery(delivery_id="x"), delivery(delivery_id="x")
    assert store.accept([(first, WEEK)]) == [first.id]
    assert store.accept([(second, WEEK)]) == [first.id]
    assert store.audit()["accepted"] == 1


def test_accept_same_delivery_twice_in_one_batch_makes_one_job_R6(store):
    first, second = delivery(delivery_id="x"), delivery(delivery_id="x")
    assert store.accept([(first, WEEK), (second, WEEK)]) == [first.id, first.id]
    assert store.audit()["ready"] == 1


def test_accept_same_id_from_two_sources_makes_two_jobs(store):
    batch = [delivery(source, delivery_id="x") for source in ("github", "partner")]
    assert store.accept([(d, WEEK) for d in batch]) == [d.id for d in batch]


@pytest.mark.parametrize(("delivery_id", "dedupe_s"), [("x", WEEK), ("x", 1), ("", WEEK)])
def test_accept_after_a_lost_reply_counts_once_and_says_accepted_R6(store, delivery_id, dedupe_s):
    made = delivery(delivery_id=delivery_id)
    for _ in range(3):
        assert store.accept([(made, dedupe_s)]) == [made.id]
    assert (store.audit()["accepted"], store.audit()["ready"]) == (1, 1)


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
    assert store.audit()["accepted"] == 1


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
    assert [held.entry for held in store.lease(["github"], 64, 1, again=True)] == [held.entry for held in lost]


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
    until(lambda: store.redis.xpending_range(key("ready", "github"), "workers", "-", "+", 1)[0]["time_since_delivered"] > 20)
    store.renew({"github": [held[0].entry], "none": []})
    assert other.reclaim("w1", idle_s=0.02) == []
    assert store.settle([Settled(held[0], "done")]) == [True]


# ---------------- settle


@pytest.mark.parametrize("outcome", ["done", "retry", "dead", "ready"])
def test_settle_ends_the_lease_in_one_place(store, outcome):
    accepted(store, body=BINARY)
    held = lease(store)[0]
    assert store.settle([Settled(held, outcome, {"attempt": 1}, reason="gave_up")]) == [True]
    audit = store.audit()
    assert [name for name in ("ready", "leased", "retry", "dead", "done") if audit[name]] == [outcome]


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
    other.redrive_rank(0, "command")
    assert store.settle([Settled(late, "done", {"attempt": 1})]) == [False]
    assert store.audit()["ready"] == 1


def test_settle_twice_counts_once(store):
    accepted(store)
    held = lease(store)[0]
    assert [store.settle([Settled(held, "done")]) for _ in range(2)] == [[True], [False]]
    assert store.audit()["done"] == 1


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
    store.discard(store.dead_ids(), "page", "b")
    store.restore("b", "page")
    store.redrive(store.dead_ids(), "page")
    store.reclaim("nobody")
    held = lease(store)[0]
    assert (held.delivery.body, held.delivery.head, held.delivery.attempt) == (BINARY, head, 0)


# ---------------- promote


def test_promote_moves_what_is_due_and_nothing_else(store):
    accepted(store, 2)
    first, second = lease(store)
    store.settle([Settled(first, "retry", {"attempt": 1}, 0), Settled(second, "retry", {"attempt": 1}, 60)])
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
    assert {(h.deaths, h.suspect, h.delivery.attempt) for h in lease(store)} == {(1, True, 0)}


def test_reclaim_buries_a_killer_after_exactly_three_starts_and_no_neighbour_R9(store):
    killer = accepted(store, 5)[2].id
    starts, done = 0, []
    for life in range(10):
        worker = Store(store.redis.connection_pool.connection_kwargs["path"].join(["unix://", ""]), f"life-{life}")
        for held in worker.lease(["github"], 64, 1):
            if held.suspect:
                worker.announce(held)
            if held.delivery.id == killer:
                starts += 1
                break
            done += [held.delivery.id] if worker.settle([Settled(held, "done", {"attempt": 1})]) == [True] else []
            if held.suspect:
                worker.announce(None)
        store.reclaim(worker.name)
        worker.close()
    assert starts == MAX_DEATHS and len(done) == 4
    assert [job.reason for job in store.parked("dead")] == ["killed_worker"]


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
    assert store.redrive_rank(1, "command") == ids[1]
    assert store.dead_ids() == [ids[0], ids[2]]
    assert lease(store)[0].delivery.attempt == 0


def test_redrive_rank_that_is_not_there_returns_none(store):
    bury(store)
    assert store.redrive_rank(1, "command") is None
    assert store.redrive_rank(10**14, "command") is None


def test_redrive_rank_that_somebody_else_moved_meanwhile_says_so(store, other):
    ids = bury(store, 2)
    watch = store.redis.pipeline

    def slow(*args, **more):
        made = watch(*args, **more)
        execute = made.execute
        made.execute = lambda *a: (other.redrive([ids[0]], "page"), execute(*a))[1]
        return made

    store.redis.pipeline = slow
    with pytest.raises(LookupError):
        store.redrive_rank(0, "command")
    assert store.dead_ids() == [ids[1]] and store.audit()["ready"] == 1


def test_redrive_and_discard_skip_what_is_no_dead_letter(store):
    id = bury(store)[0]
    assert store.redrive(["nosuch", id, id], "page") == [id]
    assert store.discard([id, "nosuch"], "page", "b") == []


def test_discarded_jobs_expire_and_restored_ones_do_not(store):
    id = bury(store)[0]
    store.discard([id], "command", "b")
    assert 86_000 < store.redis.ttl(key("job", id)) <= 86_400 and store.last_batch() == "b"
    assert store.restore("b", "command") == [id]
    assert store.redis.ttl(key("job", id)) == -1 and store.last_batch() is None
    assert store.restore("b", "command") == []


def test_restore_keeps_the_time_of_death_so_that_numbers_do_not_move(store):
    ids = bury(store, 3)
    store.discard([ids[0]], "command", "b")
    store.restore("b", "command")
    assert store.dead_ids() == ids


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
    verbs = [store.audit, store.promote, store.sources, store.ping, store.epoch, store.health, store.last_batch, store.connected]
    for verb in verbs:
        with pytest.raises(Away):
            verb()


@pytest.fixture
def small_redis():
    folder = Path(tempfile.mkdtemp(prefix="hq"))
    server = Redis(folder, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction").start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_full_redis_refuses_whole_batches_and_can_still_be_drained(small_redis):
    store = Store(small_redis.url, "w1")
    with pytest.raises(Away, match="(?i)memory"):
        for _ in range(200):
            store.accept([(delivery(body=b"x" * 50_000), WEEK) for _ in range(4)])
    full = store.audit()
    assert full["gap"] == 0 and full["accepted"] % 4 == 0
    held = store.lease(["github"], 20, 100)
    outcomes = ["retry", "dead", "ready", "done"]
    assert all(store.settle([Settled(h, outcomes[n % 4], {"attempt": 1}, reason="gave_up") for n, h in enumerate(held)]))
    assert store.promote() and store.reclaim("nobody") == []
    while held := store.lease(["github"], 20, 1):
        store.settle([Settled(h, "done", {"attempt": 1}) for h in held])
    assert store.audit()["gap"] == 0 and store.accept([(d := delivery(), WEEK)]) == [d.id]
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
        intake.wait(5)
        found += intake.received()
    return found


def test_intake_answers_two_batches_under_way_in_order(intake, store):
    batches = [[(delivery(), WEEK) for _ in range(3)] for _ in range(2)]
    for name, batch in enumerate(batches):
        intake.submit(batch, {"rejected:github:signature": 2}, name)
    assert intake.busy
    assert answers(intake, 2) == [(n, [d.id for d, _ in batch]) for n, batch in enumerate(batches)]
    assert store.metrics()["rejected:github:signature"] == 4


def test_intake_sends_what_the_socket_does_not_take_at_once(intake, store):
    made = delivery(body=b"x" * 8_000_000)
    intake.submit([(made, WEEK)], {}, "big")
    assert intake.wants_write
    while intake.wants_write:
        intake.flush()
    assert answers(intake, 1) == [("big", [made.id])]


def test_intake_whose_script_is_unknown_fails_and_gives_its_tokens_back(intake, store):
    store.redis.script_flush()
    intake.submit([(delivery(), WEEK)], {}, "lost")
    with pytest.raises(Away, match="NOSCRIPT"):
        answers(intake, 1)
    assert intake.failed("NOSCRIPT") == [] or not intake.up
    intake.start()
    until(intake.adopt)
    intake.submit([(made := delivery(), WEEK)], {}, "found")
    assert answers(intake, 1) == [("found", [made.id])]


def test_intake_on_a_full_redis_does_not_come_up(small_redis):
    store = Store(small_redis.url, "w1")
    store.redis.config_set("maxmemory", "1kb")
    store.close()
    intake = Intake(small_redis.url, "ingest", lambda: None)
    intake.start()
    until(lambda: "memory" in intake.why)
    assert not intake.adopt()


def test_scripts_that_settle_or_free_run_when_memory_is_full_and_accept_does_not():
    assert all(
        "allow-oom" in SCRIPTS[verb][1].splitlines()[0] for verb in ("settle", "promote", "reclaim", "redrive", "discard", "restore")
    )
    assert SCRIPTS["accept"][1].splitlines()[0] == "#!lua"
