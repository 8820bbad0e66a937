"""The worker: named histories of one job with given time and dice, then real processes that are
stopped, killed and frozen.
"""

import faulthandler
import os
import signal
import time
from types import SimpleNamespace

import pytest
from conftest import (
    NOW,
    SECRET,
    Store,
    accepted,
    act,
    dead,
    dead_ids,
    delivery,
    fill,
    until,
    whole_lines,
)

from hookq import GiveUp, Retry, daemon
from hookq.job import MAX_DEATHS
from hookq.outcome import NotJson
from hookq.schemes import SCHEMES
from hookq.settings import load
from hookq.signing import Verifier
from hookq.sources import Source
from hookq.store.connection import Away
from hookq.store.keys import key
from hookq.store.records import Lease, Settled
from hookq.work import watchdog
from hookq.work.attempt import MAX_ERROR, attempt
from hookq.work.keeper import Keeper
from hookq.work.loop import Worker
from hookq.work.marker import in_progress
from hookq.work.python import in_process
from hookq.work.routes import Route

SOURCE = Source(
    "github",
    Verifier(SCHEMES["github"]),
    max_attempts=3,
    retry_base_s=8,
    retry_max_s=100,
    timeout_s=5,
)


def run(handler, made=0, source=SOURCE):
    lease = Lease(b"%d-1" % (1000 * NOW), delivery(attempt=made), 0, False)
    return attempt(
        lease,
        source,
        in_process(handler) if handler else None,
        "w1",
        lambda: NOW + 1.5,
        lambda: 0.5,
    )


def fail(error):
    def handler(_):
        raise error

    return handler


HISTORIES = {
    "returns": ([lambda _: None], ["done"]),
    "fails, then returns": ([fail(ValueError("no")), lambda _: None], ["retry", "done"]),
    "always fails": ([fail(ValueError("no"))] * 3, ["retry", "retry", "dead"]),
    "gives up": ([fail(GiveUp("never"))], ["dead"]),
    "asks for a retry": ([fail(Retry(after_s=7))], ["retry"]),
    "cannot be parsed": ([fail(NotJson("bad"))], ["dead"]),
    "leaves the program": ([fail(SystemExit(1))] * 3, ["retry", "retry", "dead"]),
    "is interrupted": ([fail(KeyboardInterrupt())], ["retry"]),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_attempt_ends_as_its_history_says(name):
    handlers, outcomes = HISTORIES[name]
    assert [run(handler, attempt).outcome for attempt, handler in enumerate(handlers)] == outcomes


@pytest.mark.parametrize(
    ("error", "attempt", "reason", "delay", "told"),
    [
        (ValueError("no"), 0, "", 4.0, "ValueError: no"),
        (ValueError("no"), 1, "", 8.0, "ValueError: no"),
        (ValueError("no"), 2, "max_attempts", 0, "ValueError: no"),
        (Retry(after_s=70), 0, "", 70.0, "Retry: the handler asked for a retry"),
        (Retry("later", after_s=70), 2, "max_attempts", 0, "Retry: later"),
        (GiveUp("why"), 0, "gave_up", 0, "GiveUp: why"),
        (NotJson("line 1"), 0, "not_json", 0, "not_json: line 1"),
    ],
)
def test_failed_attempt_keeps_why_and_when(error, attempt, reason, delay, told):
    found = run(fail(error), attempt)
    assert (found.reason, found.delay_s, found.facts["error"]) == (reason, delay, told)
    assert (
        found.facts["attempt"] == attempt + 1
        and found.facts["wait_ms"] == 1500
        and "test_worker.py" in found.facts["place"]
    )


class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")


class Bare(Retry):
    def __init__(self):
        pass


class Never(Bare):
    after_s = float("nan")


@pytest.mark.parametrize(
    "error",
    [
        Mute(),
        Bare(),
        Never(),
        OSError(b"caf\xe9".decode("utf-8", "surrogateescape")),
        ValueError("half \ud83d"),
        Retry(after_s=True),
    ],
)
@pytest.mark.parametrize("attempt", [0, 2])
def test_error_that_cannot_be_told_still_settles_its_job(store, error, attempt):
    accepted(store)
    found = run(fail(error), attempt)._replace(lease=store.lease({"github": 1}, 100)[0])
    assert store.settle([found]) == [True]
    assert store.audit().retry + store.audit().dead == 1 and store.orphans() == []


def test_handler_that_returns_something_to_await_did_not_do_its_work():
    async def handler():
        pass

    waiting = []
    found = run(lambda _: waiting.append(handler()) or waiting[0])
    waiting[0].close()
    assert (found.outcome, "await" in found.facts["error"]) == ("retry", True)


def test_attempt_of_a_source_that_is_gone_is_retried_then_no_source():
    found = [run(None, attempt, source=None) for attempt in range(8)]
    assert [f.outcome for f in found] == ["retry"] * 7 + ["dead"] and found[
        -1
    ].reason == "no_source"


def test_attempt_with_none_left_is_buried_without_a_run():
    ran = []
    found = run(ran.append, made=3)
    assert (found.outcome, found.reason, ran) == (
        "dead",
        "max_attempts",
        [],
    ) and "attempt" not in found.facts


def test_handler_sees_the_number_of_its_attempt_and_the_bytes():
    seen = []
    run(seen.append, made=1)
    assert (seen[0].attempt, seen[0].body, seen[0].source) == (2, b'{"n":1}', "github")


def test_long_error_is_cut_so_that_it_fits_a_list():
    assert len(run(fail(ValueError("x" * 10**6))).facts["error"]) == MAX_ERROR


# ---------------- real processes

HANDLER = """
import os, pathlib, signal, time
here = pathlib.Path(__file__).parent
from hookq import GiveUp, Retry

def mark(name, text=""):
    with open(here / name, "a") as file:
        file.write(text + "\\n")

def handle(delivery):
    mark("starts", f"{delivery.id} {delivery.attempt} {os.getpid()}")
    what = delivery.body.decode("latin-1")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "fail once" and delivery.attempt == 1:
        raise ValueError("once")
    elif what == "bytes":
        (here / "seen").write_bytes(delivery.body)
    elif what == "wait":
        while not (here / "go").exists():
            time.sleep(0.01)
    elif what == "stuck":
        sum(range(10**11))
    elif what == "slow":
        time.sleep(30)
"""


@pytest.fixture
def work(running, tmp_path):
    """work(**keys of the source) starts a worker with HANDLER."""

    def start(redis=None, **keys):
        (tmp_path / "h.py").write_text(HANDLER)
        lines = {
            "scheme": '"github"',
            "secrets": '["env:WEBHOOK_SECRET"]',
            "handler": '"h.py:handle"',
            "retry_base_s": 0.01,
            **keys,
        }
        (tmp_path / "webhooks.toml").write_text(
            "[sources.github]\n" + "".join(f"{k} = {v}\n" for k, v in lines.items())
        )
        return running("worker.py", redis=redis)

    starts = tmp_path / "starts"
    start.starts = lambda: whole_lines(starts) if starts.exists() else []
    start.folder = tmp_path
    return start


def settled(store, limit_s=25, **wanted):
    """Wait for the ledger that is wanted, for less than a lease: what has to run out was lost."""

    def same():
        found = store.audit()
        return (
            found if all(getattr(found, name) == value for name, value in wanted.items()) else None
        )

    found = until(same, limit_s, f"{wanted}, now {store.audit()}")
    assert found.gap == 0
    return found


def test_job_is_run_and_done_with_its_bytes_R3(store, work):
    work()
    accepted(store, body=b"bytes")
    settled(store, done=1)
    assert (work.folder / "seen").read_bytes() == b"bytes" and len(work.starts()) == 1


def test_failed_job_is_retried_and_done(store, work):
    program = work()
    accepted(store, body=b"fail once")
    settled(store, done=1)
    assert [line.split()[1] for line in work.starts()] == ["1", "2"]
    told = program.saw("job.reschedule")[0]
    assert (told["attempt"], told["error"], told["place"].split(":")[0]) == (
        1,
        "ValueError: once",
        "h.py",
    )
    assert program.saw("job.promote") and program.saw("job.complete")[0]["attempt"] == 2


def test_handler_over_its_time_limit_is_stopped_and_retried_R7(store, work):
    program = work(timeout_s=0.2, max_attempts=2)
    accepted(store, body=b"slow")
    settled(store, dead=1)
    assert "TimeLimit" in program.saw("job.bury")[0]["error"] and len(work.starts()) == 2


def test_stop_finishes_the_job_in_hand_and_gives_the_rest_back(store, work):
    accepted(store, body=b"wait")
    accepted(store, 5)
    program = work()
    until(work.starts)
    program.process.send_signal(signal.SIGTERM)
    (work.folder / "go").touch()
    assert program.process.wait(30) == 0
    audit = store.audit()
    assert (audit.done, audit.ready, audit.leased, audit.gap) == (1, 5, 0, 0)


def test_hup_starts_anew_with_the_handler_of_now(store, work):
    program = work()
    accepted(store)
    settled(store, done=1)
    (work.folder / "h.py").write_text(
        'def handle(delivery):\n    raise __import__("hookq").GiveUp("the new one")\n'
    )
    pid = program.process.pid
    program.process.send_signal(signal.SIGHUP)
    until(lambda: len(program.events("process.start")) == 2)
    accepted(store)
    settled(store, dead=1)
    assert program.process.pid == pid and program.process.poll() is None


def test_hup_with_broken_settings_during_a_job_drains_nothing(store, work):
    program = work()
    accepted(store, body=b"wait")
    until(work.starts)
    name = program.saw("process.start")[0]["worker"]
    good = (work.folder / "webhooks.toml").read_text()
    (work.folder / "webhooks.toml").write_text(good.replace("handler =", "handles ="))
    program.process.send_signal(signal.SIGHUP)
    assert "handles" in program.saw("settings.refused")[0]["problems"][0]
    assert in_progress(work.folder / "state", name), "the job is still the one in hand"
    (work.folder / "go").touch()
    settled(store, done=1)
    accepted(store, 3)
    settled(store, done=4)
    assert in_progress(work.folder / "state", name) == b"" and not program.events("process.drain")
    (work.folder / "webhooks.toml").write_text(good)
    program.process.send_signal(signal.SIGHUP)
    until(lambda: len(program.events("process.start")) == 2)
    assert len(program.events("process.drain")) == 1 and program.process.poll() is None


def test_jobs_run_while_a_reload_is_checked(store, work):
    program = work()
    accepted(store)
    settled(store, done=1)
    slow = "import sys, time\n'--check' in sys.argv and time.sleep(2)\n"
    (work.folder / "h.py").write_text(slow + HANDLER)
    program.process.send_signal(signal.SIGHUP)
    until(lambda: accepted(store) and store.audit().done > 10)
    assert not program.events("process.drain")
    until(lambda: len(program.events("process.start")) == 2)


def test_hup_leaves_no_timer_that_ends_the_worker_anew(store, work):
    program = work(timeout_s=2)
    accepted(store, 3)
    settled(store, done=3)
    program.process.send_signal(signal.SIGHUP)
    until(lambda: len(program.events("process.start")) == 2)
    end = time.monotonic() + 2.2
    until(lambda: program.process.poll() is not None or time.monotonic() > end)
    accepted(store)
    settled(store, done=4)
    assert program.process.poll() is None


def test_job_of_a_killed_worker_is_run_by_another_R9(store, work):
    first = work()
    accepted(store, body=b"wait")
    until(work.starts)
    work()
    first.process.kill()
    until(lambda: len(work.starts()) == 2, 25, "it is run again before its lease runs out")
    (work.folder / "go").touch()
    settled(store, done=1)
    assert [line.split()[1] for line in work.starts()] == ["1", "2"]


def test_frozen_worker_that_lost_its_lease_settles_nothing_R5(store, work):
    program = work()
    accepted(store, body=b"wait")
    until(work.starts)
    name = program.saw("process.start")[0]["worker"]
    program.process.send_signal(signal.SIGSTOP)
    store.reclaim(name)
    held = until(lambda: store.lease({"github": 1}, 100))[0]
    assert store.settle([Settled(held, "dead", {"attempt": 2}, reason="gave_up")]) == [True]
    (work.folder / "go").touch()
    program.process.send_signal(signal.SIGCONT)
    program.saw("lease.lost")
    audit = store.audit()
    assert (audit.done, audit.dead, audit.gap) == (0, 1, 0)


def test_job_that_kills_its_workers_is_buried_at_the_third_R9(store, work):
    accepted(store, 3)
    killer = accepted(store, body=b"kill")[0].id
    accepted(store, 3)
    program = work()
    for _ in range(20):
        until(lambda now=program: now.process.poll() is not None or store.audit().dead)
        if store.audit().dead:
            break
        program = work()
    settled(store, done=6, dead=1, ready=0, leased=0)
    assert [job.reason for job in dead(store)] == ["killed_worker"] and dead_ids(store) == [killer]
    assert sum(line.startswith(killer) for line in work.starts()) == MAX_DEATHS


def test_handler_stuck_in_c_code_costs_the_process_not_the_job_R7(store, work):
    program = work(timeout_s=0.2)
    accepted(store, body=b"stuck")
    assert program.process.wait(60) not in (0, None)
    assert store.audit().leased == 1 and store.audit().gap == 0


def test_restarted_redis_is_found_again_without_a_restart(private_redis, work):
    program = work(redis=private_redis)
    store = Store(private_redis.url, "probe")
    accepted(store)
    settled(store, done=1)
    private_redis.stop()
    program.saw("redis.away")
    private_redis.start()
    accepted(store)
    settled(store, done=2)
    assert program.process.poll() is None
    store.close()


def test_wiped_redis_is_worked_on_without_a_restart(private_redis, work):
    program = work(redis=private_redis)
    store = Store(private_redis.url, "probe")
    accepted(store)
    settled(store, done=1)
    store.redis.flushall()
    accepted(store)
    settled(store, done=1)
    assert program.process.poll() is None
    store.close()


def test_full_redis_is_drained_by_a_worker_that_starts_meanwhile(private_redis, work):
    store = Store(private_redis.url, "probe")
    accepted(store, 20)
    store.redis.config_set("maxmemory", "1kb")
    store.redis.config_set("maxmemory-policy", "noeviction")
    work(redis=private_redis)
    settled(store, done=20, ready=0)
    store.close()


def test_keeper_lives_through_a_renewal(store, work, monkeypatch):
    # Renewing happens on the first tick too: a fault in it would end the process.
    program = work()
    accepted(store, body=b"wait")
    until(work.starts)
    until(lambda: any(beat.job for beat in store.workers().values()))
    (work.folder / "go").touch()
    settled(store, done=1)
    assert not program.events("worker.failed")


@pytest.fixture
def quick(store, redis_server, tmp_path):
    """A worker in this process, and the ids of the jobs that it ran; `asked` ends it. Each job
    counts as one of `took_s`, whatever it takes: what is leased ahead hangs on that.
    """
    settings = load(
        environ={
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": redis_server.url,
            "STATE_DIR": str(tmp_path),
        },
        root=tmp_path,
    )
    signals = SimpleNamespace(stop=False, reload=False)
    one = Worker(settings, "w1", signals)
    one.ran, one.took_s, ran = [], 1e-5, one.turns.ran
    one.turns.ran = lambda source, _, size: ran(source, one.took_s, size)
    one.handle = lambda delivery: one.ran.append(delivery.id)
    one.handlers.routes["github"] = always(in_process(lambda delivery: one.handle(delivery)), False)
    yield one
    one.store.close()


def test_hup_during_a_stop_begins_no_check(quick, monkeypatch):
    begun = []
    monkeypatch.setattr(daemon, "in_background", lambda *work: begun.append(work))
    quick.ending.signals.stop = quick.ending.signals.reload = True
    quick.ending.look()
    assert not begun


def test_end_with_leases_not_given_back_keeps_the_marker(quick):
    quick.progress.held[b"1-1"] = "github"
    quick._drain()
    assert in_progress(quick.settings.state_dir, "w1") == b""


def test_lost_leases_are_asked_for_once_their_source_may_run(quick, store, monkeypatch):
    accepted(store, 3)
    store.redis.xreadgroup("workers", "w1", {key("ready", "github"): ">"})
    limit, asked = quick.limit, []

    def none_at_first(source):
        asked.append(source)
        return 0 if len(asked) <= 2 else limit(source)

    monkeypatch.setattr(quick, "limit", none_at_first)
    ends_after(quick, 3)
    quick.run()
    assert len(quick.ran) == 3 and store.audit().done == 3


def always(run, waits):
    """Return routes that lead to `run` whatever the event type."""
    return SimpleNamespace(of=lambda _event_type: Route(run, waits))


def ends_after(one, calls, then=lambda: None):
    """Make the handler ask for a stop when it was called so often."""
    handler = one.handle

    def handle(delivery):
        handler(delivery)
        if len(one.ran) == calls:
            one.ending.signals.stop = True
            then()

    one.handle = handle


def test_backlog_of_quick_jobs_is_leased_and_settled_while_they_run(quick, store, monkeypatch):
    made = [d.id for d in accepted(store, 200)]
    asked, ask = [], quick.store.ask
    monkeypatch.setattr(
        quick.store, "ask", lambda settled, *rest: (asked.append(len(settled)), ask(settled, *rest))
    )
    ends_after(quick, 200)
    quick.run()
    assert quick.ran == made and store.audit().done == 200 and not quick.progress.held
    assert len(asked) > 3 and sum(asked) > 60


@pytest.mark.parametrize(
    ("verb", "runs"), [("ask", False), ("ask", True), ("answer", False), ("answer", True)]
)
def test_redis_lost_during_a_backlog_loses_and_repeats_nothing_R6(
    quick, store, monkeypatch, verb, runs
):
    made = [d.id for d in accepted(store, 200)]
    whole, calls = getattr(quick.store, verb), []

    def lost(*args):
        calls.append(1)
        if len(calls) != 4:
            return whole(*args)
        if runs:
            whole(*args)
        raise Away("the connection is lost")

    monkeypatch.setattr(quick.store, verb, lost)
    ends_after(quick, 200)
    quick.run()
    audit = store.audit()
    assert sorted(quick.ran) == made and (
        audit.done,
        audit.ready,
        audit.leased,
        audit.gap,
    ) == (200, 0, 0, 0)


def test_scripts_forgotten_during_a_backlog_are_no_outage(quick, store, quiet):
    accepted(store, 200)
    ends_after(
        quick,
        100,
        lambda: setattr(quick.ending.signals, "stop", False) or store.redis.script_flush(),
    )
    handle = quick.handle
    quick.handle = lambda delivery: (
        handle(delivery) or (len(quick.ran) == 200 and setattr(quick.ending.signals, "stop", True))
    )
    quick.run()
    assert store.audit().done == 200 and not [name for name, _ in quiet if name == "redis.away"]


def test_stop_during_a_backlog_gives_back_what_was_leased_ahead(quick, store):
    accepted(store, 200)
    ends_after(quick, 120)
    quick.run()
    audit = store.audit()
    assert len(quick.ran) == 120 and (
        audit.done,
        audit.ready,
        audit.leased,
        audit.gap,
    ) == (120, 80, 0, 0)


def test_handlers_that_are_due_are_loaded_during_a_backlog(quick, store, monkeypatch):
    accepted(store, 200)
    loaded, load = [], quick.handlers.load
    monkeypatch.setattr(quick.handlers, "load", lambda: (loaded.append(len(quick.ran)), load()))
    ends_after(quick, 40, lambda: setattr(quick.handlers, "load_at", 0.0))
    handle = quick.handle
    quick.handle = lambda delivery: (
        handle(delivery),
        setattr(quick.ending.signals, "stop", len(quick.ran) == 200),
    )
    quick.run()
    assert loaded[0] == 0 and 40 <= loaded[1] < 150


def test_slow_jobs_are_not_leased_ahead(quick, store, monkeypatch):
    accepted(store, 20)
    monkeypatch.setattr(quick.store, "ask", lambda *_: pytest.fail("leased ahead"))
    quick.took_s = 0.02
    ends_after(quick, 20)
    quick.run()
    assert store.audit().done == 20


def test_source_without_a_handler_logs_its_jobs(store, running):
    program = running("worker.py")
    accepted(store)
    accepted(store, body=b"no json")
    settled(store, done=1, dead=1)
    assert program.saw("job.complete") and program.saw("job.bury")[0]["reason"] == "not_json"


def test_two_workers_run_each_job_once(store, work):
    work(), work()
    accepted(store, 200)
    settled(store, done=200)
    ids = [line.split()[0] for line in work.starts()]
    assert len(ids) == len(set(ids)) == 200


def test_job_longer_than_the_stall_limit_does_not_cost_its_worker(
    monkeypatch, store, tmp_path, redis_server
):
    settings = load(
        environ={
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": redis_server.url,
            "STATE_DIR": str(tmp_path),
        },
        root=tmp_path,
    )
    made = Worker(settings, "w1", daemon.Signals())
    ran, ended = [], []

    def long(_):  # as if it had begun before the limit
        made.progress.polled_at -= 2 * watchdog.STALLED_S
        ran.append(made.progress.polled_at)

    made.handlers.routes["github"] = always(in_process(long), False)
    monkeypatch.setattr(os, "_exit", ended.append)
    Keeper(made)
    accepted(store)
    made._work(made._lease())
    watchdog.watch(made.look(), time.monotonic())
    faulthandler.cancel_dump_traceback_later()
    assert ran and ended == [] and store.audit().done == 1


@pytest.mark.parametrize("waits", [False, True], ids=["in turn", "beside"])
def test_worker_whose_memory_is_gone_starts_anew_wherever_the_job_ran(
    waits, store, tmp_path, redis_server
):
    handler = '["true"]' if waits else '""'
    text = f'[sources.github]\nscheme = "github"\nsecrets = ["env:WEBHOOK_SECRET"]\nhandler = {handler}\n'
    (tmp_path / "webhooks.toml").write_text(text)
    settings = load(
        environ={
            "WEBHOOK_SECRET": SECRET,
            "REDIS_URL": redis_server.url,
            "STATE_DIR": str(tmp_path),
        },
        root=tmp_path,
    )
    made = Worker(settings, "w1", daemon.Signals())
    made.handlers.routes["github"] = always(lambda _job, _limit_s: (MemoryError(), {}), waits)
    accepted(store)
    made.run()  # it ends by itself, after the job is settled
    assert store.audit().retry == 1 and made.ending.full
    made.store.close()


def test_jobs_of_a_newer_version_are_left_and_reported(store, work):
    store.redis.xadd(key("ready", "github"), {"v": 2, "of": "the future"})
    store.redis.sadd(key("sources"), "github")
    accepted(store)
    program = work()
    assert program.saw("job.unknown")[0]["jobs"] == 1
    until(lambda: store.audit().done == 1)
    assert program.end() == 0 and "Traceback" not in program.text
    assert store.audit().leased == 1


def test_worker_does_its_duties_while_memory_is_full(small_redis, work):
    store = Store(small_redis.url, "probe")
    accepted(store, 3)
    leases = store.lease({"github": 3}, 100)
    store.settle([Settled(leases[0], "retry", {"attempt": 1})])
    store.settle([Settled(leases[1], "dead", {"attempt": 1}, reason="gave_up")])
    fill(store)
    work(redis=small_redis)
    until(lambda: store.audit().done == 1, what="the retry is promoted and run")
    assert store.redrive_rank(0, act()) == leases[1].delivery.id
    until(lambda: store.audit().done == 2, what="the one put back is run")
    assert store.audit().gap == 0
    store.close()
