"""dlqctl: arguments in; standard output, standard error and exit code out. Against a real Redis."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, Store, accepted, dead_ids

from hookq.store.records import Settled

HOSTILE = "<b>\x1b]0;owned\x07 $name ‮ \r\n'\""


@pytest.fixture
def dlqctl(redis_server, store, tmp_path):
    def run(*args, stdin="", **env):
        keep = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": redis_server.url,
            "WEBHOOKS_FILE": "",
            **env,
        }
        command = [sys.executable, str(ROOT / "dlqctl.py"), *args]
        done = subprocess.run(
            command, input=stdin, text=True, capture_output=True, env=keep, cwd=tmp_path, timeout=60
        )
        assert "Traceback" not in done.stderr
        return done

    return run


def bury(store, count=1, error="ValueError: no", **more):
    made = accepted(store, count, **more)
    leases = store.lease({"github": 64}, 100)
    store.settle(
        [
            Settled(lease, "dead", {"attempt": 8, "of": 8, "error": error}, reason="max_attempts")
            for lease in leases
        ]
    )
    return made


def test_view_without_dead_letters_says_so(dlqctl):
    done = dlqctl("--view")
    assert (done.returncode, done.stdout) == (0, "") and "No dead letters." in done.stderr


def test_view_through_a_pipe_separates_by_tabs_and_cuts_nothing(dlqctl, store):
    made = bury(store, 3, error="x" * 500)
    rows = [line.split("\t") for line in dlqctl("--view").stdout.splitlines()]
    assert [row[0] for row in rows] == ["0", "1", "2"] and "x" * 500 in rows[0][-1]
    assert [row[1] for row in rows] == sorted(d.id[:10] for d in made)


def test_view_of_newest_keeps_the_numbers(dlqctl, store):
    made = bury(store, 3)
    found = json.loads(dlqctl("--view", "--newest", "--limit", "1", "--json").stdout)
    assert [(row["n"], row["id"]) for row in found] == [(2, made[2].id)]
    assert "body" not in found[0]


def test_view_of_hostile_values_prints_nothing_unprintable(dlqctl, store):
    bury(store, error=HOSTILE, delivery_id=HOSTILE)
    for args in (["--view"], ["--show", dead_ids(store)[0]]):
        out = dlqctl(*args).stdout
        assert all(c.isprintable() or c in "\n\t" for c in out), args
        assert "\\x1b]0;owned" in out


def test_show_tells_the_whole_story_and_hides_what_lets_somebody_in(dlqctl, store):
    head = b"Content-Type: application/json\r\nAuthorization: Bearer abc\r\nX-Hub-Signature-256: sha256=ff\r\n"
    made = bury(store, head=head)[0]
    done = dlqctl("--show", made.id)
    assert (
        "max_attempts: ValueError: no" in done.stdout
        and "job.bury" in done.stdout
        and '{"n":1}' in done.stdout
    )
    assert "abc" not in done.stdout and "sha256=ff" not in done.stdout
    assert dlqctl("--show", made.delivery_id).stdout == done.stdout
    assert json.loads(dlqctl("--show", made.id, "--json").stdout)["state"] == "dead"


def test_show_raw_prints_the_bytes_alone(redis_server, store, dlqctl):
    made = bury(store, body=b"\x00\xff\r\n\x1b")[0]
    env = {"PATH": os.environ["PATH"], "REDIS_URL": redis_server.url}
    done = subprocess.run(
        [sys.executable, str(ROOT / "dlqctl.py"), "--show", made.id, "--raw"],
        capture_output=True,
        env=env,
        timeout=60,
    )
    assert done.stdout == b"\x00\xff\r\n\x1b"


@pytest.mark.parametrize(
    ("state", "outcome"),
    [("ready", None), ("leased", "lease"), ("retry", "retry"), ("done", "done")],
    ids=lambda v: str(v),
)
def test_show_finds_a_delivery_in_any_state(dlqctl, store, state, outcome):
    made = accepted(store)[0]
    leases = store.lease({"github": 1}, 100) if outcome else []
    if outcome in ("retry", "done"):
        store.settle([Settled(leases[0], outcome, {"attempt": 1}, delay_s=60)])
    found = json.loads(dlqctl("--show", made.delivery_id, "--json").stdout)
    assert (found["id"], found["state"]) == (made.id, state)


def test_retry_puts_the_numbered_one_back_and_names_it(dlqctl, store):
    made = bury(store, 3)
    done = dlqctl("--retry", "1")
    assert (
        done.returncode == 0 and made[1].id in done.stdout and "2 dead letters left" in done.stdout
    )
    assert [lease.delivery.id for lease in store.lease({"github": 9}, 100)] == [made[1].id]
    assert store.audit().gap == 0


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--retry", "7"], 3),
        (["--retry", "-1"], 2),
        (["--retry", "x"], 2),
        (["--retry", "٣"], 2),
        (["--fl"], 2),
        ([], 2),
        (["--view", "--audit"], 2),
        (["--limit", "1"], 2),
        (["--view", "--limit", "x"], 2),
        (["--show", "nosuch"], 3),
        (["--show", ""], 3),
        (["--undo"], 3),
        (["--undo", "nosuch"], 3),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_use_gets_a_sentence_and_its_code(dlqctl, args, code):
    done = dlqctl(*args)
    assert done.returncode == code and done.stderr.strip()


def test_retry_all_puts_every_one_back_and_asks_above_100(dlqctl, store):
    for _ in range(2):
        bury(store, 60)
    assert dlqctl("--retry", "all").returncode == 4
    done = dlqctl("--retry", "all", "--json", stdin="y\n")
    assert len(json.loads(done.stdout)["retried"]) == 120
    assert (store.audit().ready, store.audit().gap) == (120, 0)


def test_flush_at_the_end_of_input_changes_nothing(dlqctl, store):
    bury(store)
    for answer in ("", "n\n", "yess\n", "\n"):
        assert dlqctl("--flush", stdin=answer).returncode == 4
    assert store.audit().dead == 1


@pytest.mark.parametrize("args", [["--flush"], ["--retry", "all"]], ids=" ".join)
def test_act_moves_what_the_question_named_and_nothing_later(redis_server, store, args):
    made = [d.id for _ in range(2) for d in bury(store, 60)]
    env = {"PATH": os.environ["PATH"], "REDIS_URL": redis_server.url}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, str(ROOT / "dlqctl.py"), *args, "--json"]
    with subprocess.Popen(command, env=env, text=True, **pipes) as process:
        question = process.stderr.read(len("This discards"))
        later = bury(store)[0].id
        out, _ = process.communicate("y\n", timeout=20)
    assert question.startswith("This ") and process.returncode == 0
    moved = json.loads(out)["discarded" if "--flush" in args else "retried"]
    assert moved == made and dead_ids(store) == [later]


def test_flush_and_undo_bring_everything_back(dlqctl, store):
    made = bury(store, 3)
    batch = json.loads(dlqctl("--flush", "--json", "--yes").stdout)["batch"]
    assert (store.audit().dead, store.audit().discarded, store.audit().gap) == (0, 3, 0)
    assert dlqctl("--undo", batch).returncode == 0
    assert dead_ids(store) == [d.id for d in made] and store.audit().gap == 0
    assert dlqctl("--undo", batch).returncode == 3


def test_undo_without_a_name_takes_the_last_batch(dlqctl, store):
    bury(store)
    dlqctl("--flush", stdin="y\n")
    second = bury(store)
    dlqctl("--flush", stdin="y\n")
    assert dlqctl("--undo").returncode == 0
    assert dead_ids(store) == [second[0].id]


def test_audit_with_a_gap_exits_1_and_names_orphans(dlqctl, store):
    bury(store)
    assert json.loads(dlqctl("--audit", "--json").stdout) == {
        "accepted": 1, "ready": 0, "leased": 0, "retry": 0, "dead": 1, "done": 0, "discarded": 0, "spooled": 0, "gap": 0,
    }  # fmt: skip
    store.redis.zrem("{hookq}:dead", dead_ids(store)[0])
    done = dlqctl("--audit")
    assert (
        done.returncode == 1
        and "gap is 1" in done.stderr
        and "neither retry nor dead" in done.stderr
    )


def test_redis_away_exits_69_with_a_sentence(dlqctl):
    for args in (
        ["--view"],
        ["--retry", "0"],
        ["--flush", "--yes"],
        ["--audit"],
        ["--show", "x"],
        ["--undo"],
    ):
        done = dlqctl(*args, REDIS_URL="unix:///nowhere/r.sock")
        assert done.returncode == 69 and "Redis cannot be reached" in done.stderr


def test_wrong_settings_exit_78(dlqctl):
    done = dlqctl("--view", PORT="x", WORKERS="-1")
    assert done.returncode == 78 and "PORT" in done.stderr and "WORKERS" in done.stderr


def test_closed_pipe_exits_141_without_a_word(redis_server, store, dlqctl):
    bury(store, 60)
    env = {"PATH": os.environ["PATH"], "REDIS_URL": redis_server.url}
    command = [sys.executable, str(ROOT / "dlqctl.py"), "--view", "--limit", "0"]
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen(
        command, stdout=write, stderr=subprocess.PIPE, env=env, text=True
    ) as process:
        os.close(write)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 141 and "rror" not in errors


def test_two_people_retrying_the_same_number_put_it_back_once(redis_server, store, dlqctl):
    made = bury(store)
    env = {"PATH": os.environ["PATH"], "REDIS_URL": redis_server.url}
    command = [sys.executable, str(ROOT / "dlqctl.py"), "--retry", "0"]
    both = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    codes = sorted((p.communicate(timeout=60), p.returncode)[1] for p in both)
    assert codes == [0, 3]
    audit = Store(redis_server.url, "probe").audit()
    assert (audit.ready, audit.dead, audit.gap) == (1, 0, 0) and made


@pytest.mark.parametrize(
    "args",
    [
        ["--flush", "--limit", "1", "-y"],
        ["--undo", "--source", "github"],
        ["--audit", "--since", "1h"],
        ["--retry", "all", "--newest"],
        ["--retry", "0", "--source", "github"],
        ["--show", "x", "--by-cause"],
    ],
)
def test_option_that_would_be_ignored_is_refused(dlqctl, store, args):
    bury(store, 2)
    assert dlqctl(*args).returncode == 2 and store.audit().dead == 2


def test_dry_run_of_a_number_that_is_not_there_does_nothing(dlqctl, store):
    bury(store)
    assert dlqctl("--retry", "5", "--dry-run").returncode == 3
    assert dlqctl("--retry", "0", "--dry-run", "--json").returncode == 0 and store.audit().dead == 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pw@h",
        "redis://h/?password=x",
        "redis://h:notaport",
        "http://h",
        "redis://h/?foo=bar",
    ],
)
def test_redis_url_flag_takes_no_password(dlqctl, url):
    done = dlqctl("--audit", "--redis-url", url)
    assert done.returncode == 2 and "argument --redis-url" in done.stderr


def test_export_is_private_and_leaves_nothing_behind_when_it_fails(dlqctl, store, tmp_path):
    bury(store, 3)
    (tmp_path / "out").write_text("older")
    (tmp_path / "out").chmod(0o644)
    assert dlqctl("--export", "out").returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert len(rows) == 3 and (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    (tmp_path / "folder").mkdir()
    assert (
        dlqctl("--export", "folder").returncode == 1
        and dlqctl("--export", "nosuch/out").returncode == 1
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out"]
    assert len(dlqctl("--export", "-").stdout.splitlines()) == 3
