"""Where handlers are loaded, and where not: settings whose modules end, hang and fail when they are
imported, seen by each program.
"""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT, accepted, ask, request, until

from hookq import daemon
from hookq.settings import load
from hookq.work.handlers import Handlers
from hookq.work.marker import crashes, importing

SOURCE = """[sources.{name}]
scheme = "github"
secrets = ["env:WEBHOOK_SECRET"]
handler = "{handler}"
"""
GOOD = "import pathlib\npathlib.Path(__file__).with_name('imports').open('a').write('x')\n"
GOOD += "def f(delivery):\n    pass\n"


@pytest.fixture
def settings(tmp_path):
    """settings(name="handler", …) writes webhooks.toml; the first name is a source's."""

    def write(**handlers):
        texts = [SOURCE.format(name=name, handler=of) for name, of in handlers.items()]
        (tmp_path / "webhooks.toml").write_text("\n".join(texts))

    return write


def imports(folder):
    path = folder / "imports"
    return len(path.read_text()) if path.exists() else 0


@pytest.mark.parametrize(
    "text",
    ["import os\nos._exit(9)\n", "import time\ntime.sleep(60)\n", "1 / 0\n", "def f(:\n"],
    ids=["ends the process", "hangs", "raises", "does not parse"],
)
def test_ingestion_takes_deliveries_whatever_a_handler_does_on_import(
    serve,
    settings,
    tmp_path,
    text,
):
    (tmp_path / "h.py").write_text(text)
    settings(github="h.py:f")
    program, port = serve()
    assert ask(port, request())[0] == "HTTP/1.1 202 Accepted"
    assert program.end() == 0


def test_check_names_the_line_where_an_import_ends_its_process(running, settings, tmp_path):
    (tmp_path / "h.py").write_text("import os\n\nos._exit(9)\n")
    settings(github="h.py:f")
    program = running("webhookd.py", "--check")
    assert program.process.wait(60) == 78
    assert "h.py line 3: SystemExit: 9." in program.text and "Traceback" not in program.text
    assert "[sources.github] handler is 'h.py:f'" in program.text


def test_check_tells_of_an_import_that_kills_its_process(running, settings, tmp_path):
    (tmp_path / "h.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    settings(github="h.py:f")
    program = running("webhookd.py", "--check")
    assert program.process.wait(60) == 78
    assert "A handler's import ended the check with signal 9." in program.text


def test_check_imports_each_handler_once(running, settings, tmp_path):
    (tmp_path / "h.py").write_text(GOOD)
    settings(github="h.py:f", other="h.py:f")
    program = running("webhookd.py", "--check")
    assert program.process.wait(60) == 0 and "Sources: github, other." in program.text
    assert imports(tmp_path) == 1


def test_check_of_a_worker_takes_a_port_in_use_for_its_own(running, settings, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"socket.create_server(('127.0.0.1', {taken.getsockname()[1]}))"
        (tmp_path / "h.py").write_text(f"import socket\n{bind}\ndef f(d): pass\n")
        settings(github="h.py:f")
        assert running("worker.py", "--check").process.wait(60) == 0


def test_ingestion_takes_new_settings_whatever_a_handler_became(serve, settings, tmp_path):
    (tmp_path / "h.py").write_text(GOOD)
    settings(github="h.py:f")
    program, port = serve()
    (tmp_path / "h.py").write_text(GOOD + "1 / 0\n")
    settings(github="h.py:f", later="h.py:f")
    program.process.send_signal(signal.SIGHUP)
    until(lambda: len(program.events("process.start")) == 2)
    line = ask(port, request(path="/api/webhooks/later"))[0]
    assert line == "HTTP/1.1 202 Accepted" and imports(tmp_path) == 0


def test_worker_refuses_a_reload_with_a_handler_that_cannot_be_loaded(running, settings, tmp_path):
    (tmp_path / "h.py").write_text(GOOD)
    settings(github="h.py:f")
    program = running("worker.py")
    program.saw("process.start")
    (tmp_path / "h.py").write_text("1 / 0\n")
    program.process.send_signal(signal.SIGHUP)
    assert "h.py line 1: ZeroDivisionError" in program.saw("settings.refused")[0]["problems"][0]
    assert program.end() == 0


def test_job_after_a_checked_reload_runs_the_new_handler(store, running, settings, tmp_path):
    (tmp_path / "h.py").write_text("def f(delivery):\n    raise ValueError\n")
    settings(github="h.py:f")
    program = running("worker.py")
    accepted(store)
    program.saw("job.reschedule")
    (tmp_path / "h.py").write_text(GOOD)
    assert running("webhookd.py", "--check").process.wait(60) == 0
    program.process.send_signal(signal.SIGHUP)
    late = accepted(store, 20)
    until(lambda: store.audit().done >= 20)
    assert not {job.id for job in late} & {line["id"] for line in program.events("job.reschedule")}


def test_reload_does_not_import_just_checked_handlers_again(running, settings, tmp_path):
    (tmp_path / "h.py").write_text(GOOD)
    settings(github="h.py:f")
    program = running("worker.py")
    program.saw("process.start")
    assert running("webhookd.py", "--check").process.wait(60) == 0
    until(lambda: imports(tmp_path) == 2, what="by the worker, and by the check")
    program.process.send_signal(signal.SIGHUP)
    until(lambda: len(program.events("process.start")) == 2 and imports(tmp_path) == 3)
    assert program.end() == 0 and imports(tmp_path) == 3


@pytest.mark.parametrize("broken", ["missing.py:f", "h.py:gone", "nosuch.module:f"])
def test_jobs_of_a_handler_that_cannot_be_loaded_wait_and_others_run(
    store, running, settings, tmp_path, broken
):
    (tmp_path / "h.py").write_text(GOOD)
    settings(bad=broken, good="h.py:f")
    program = running("worker.py")
    (job,) = accepted(store, source="bad")
    accepted(store, source="good")
    until(lambda: store.audit().done == 1)
    assert [line["source"] for line in program.saw("handler.failed")] == ["bad"]
    assert store.audit().ready == 1 and store.delivery(job.id).attempt == 0


def test_import_that_ends_its_worker_stops_no_other_source(store, running, settings, tmp_path):
    (tmp_path / "bad.py").write_text("import os\nos._exit(9)\n")
    (tmp_path / "h.py").write_text(GOOD)
    settings(bad="bad.py:f", good="h.py:f")
    (job,) = accepted(store, source="bad")
    accepted(store, 3, source="good")
    mark = tmp_path / "state/import/bad"
    assert running("worker.py").process.wait(20) == 9 and mark.stat().st_size == 1
    os.utime(mark, (0, 0))  # its pause is over
    assert running("worker.py").process.wait(20) == 9 and mark.stat().st_size == 2
    program = running("worker.py")
    until(lambda: store.audit().done == 3)
    (line,) = program.saw("handler.failed")
    assert (line["source"], line["why"]) == ("bad", "its import ended the worker")
    assert store.audit().ready == 1 and store.delivery(job.id).attempt == 0
    (tmp_path / "bad.py").write_text(GOOD)
    os.utime(mark, (0, 0))
    program.saw("handler.loaded")
    until(lambda: store.audit().done == 4)
    assert not mark.exists() and program.process.poll() is None


@pytest.fixture
def loading(settings, tmp_path):
    """The handlers of a worker whose only source has a marker of as many crashes as it is told, and
    of so many seconds ago.
    """
    (tmp_path / "h.py").write_text("def f(delivery):\n    pass\n")
    settings(github="h.py:f")
    env = {"WEBHOOK_SECRET": "x" * 32, "STATE_DIR": str(tmp_path)}
    loaded = load(environ=env, root=tmp_path)
    (tmp_path / "import").mkdir()

    def mark(crashes, ago_s):
        (tmp_path / "import/github").write_bytes(b"x" * crashes)
        os.utime(tmp_path / "import/github", (time.time() - ago_s,) * 2)
        return Handlers(loaded)

    return mark


@pytest.mark.parametrize(
    ("crashes", "ago_s", "waits"),
    [(0, 0, False), (1, 4, True), (1, 6, False), (3, 19, True), (3, 21, False), (99, 290, True)]
    + [(99, 301, False)],
)
def test_pause_after_an_import_that_ended_its_worker_grows_to_a_limit(
    loading, crashes, ago_s, waits
):
    handlers = loading(crashes, ago_s)
    handlers.load()
    assert (handlers.failed.keys(), "github" in handlers.routes) == (
        ({"github"}, False) if waits else (set(), True)
    )


def test_check_of_all_handlers_ends_the_pause(loading, tmp_path):
    handlers = loading(99, 10)
    (tmp_path / "checked").touch()
    handlers.load()
    assert not handlers.failed


def test_import_counts_as_a_crash_only_when_its_worker_died(tmp_path):
    code = """if True:
        import os, pathlib, sys
        from hookq.work.marker import importing
        with importing(pathlib.Path(sys.argv[1]), "github"):
            if os.fork() == 0:  # a child that outlives it is not the importer
                os.close(1)
                sys.stdin.read()
                os._exit(0)
            print("begun", flush=True)
            sys.stdin.read(1)
            os._exit(9)
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == b"begun\n"
        assert crashes(tmp_path, "github")[0] == 0
        with importing(tmp_path, "github"):
            assert crashes(tmp_path, "github")[0] == 0
        assert crashes(tmp_path, "github")[0] == 0, "the marker is the other's, and stays"
        other.kill()
        other.wait()
        assert crashes(tmp_path, "github")[0] == 1
        other.stdin.close()
    with importing(tmp_path, "github"):
        pass
    assert crashes(tmp_path, "github") == (0, 0.0)


@pytest.mark.parametrize("handler", ["h.py:f", "./run.sh"])
def test_handler_that_is_mended_is_loaded_without_a_restart(
    store, running, tmp_path, handler, settings
):
    settings(github=handler)
    if handler == "./run.sh":
        text = (tmp_path / "webhooks.toml").read_text().replace('"./run.sh"', '["./run.sh"]')
        (tmp_path / "webhooks.toml").write_text(text)
    program = running("worker.py")
    accepted(store)
    program.saw("handler.failed")
    (tmp_path / "h.py").write_text(GOOD)
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    program.saw("handler.loaded")
    until(lambda: store.audit().done == 1)


def test_settings_are_read_without_the_rooms_that_load_handlers():
    seen = "import hookq.settings, sys; print('hookq.work' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_mark_of_a_check_is_old_after_a_while(tmp_path, monkeypatch):
    made = type("Settings", (), {"state_dir": tmp_path})
    assert not daemon.just_checked(made)
    (tmp_path / "checked").touch()
    assert daemon.just_checked(made)
    monkeypatch.setattr(daemon, "CHECK_S", 0)
    assert not daemon.just_checked(made)
