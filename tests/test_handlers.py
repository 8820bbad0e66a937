"""Handlers: how they are found, what a broken one gets, the body's check, and the time limit."""

import signal
import time

import pytest
from conftest import delivery

import hookq
from hookq.outcome import NotJson, TimeLimit, place_of
from hookq.work.python import BadHandler, find_handler, parse_body, run, watch_time


def test_handler_is_found_in_a_file_and_in_a_module(tmp_path):
    (tmp_path / "h.py").write_text("def f(delivery):\n    return delivery.id\n")
    made = delivery()
    assert find_handler("h.py:f", tmp_path)(made) == made.id
    assert find_handler("hookq.work.python:parse_body", tmp_path) is parse_body


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "handlers.py").write_text(f"def f(_):\n    return {name!r}\n")
    assert [find_handler("handlers.py:f", tmp_path / name)(None) for name in ("a", "b")] == [
        "a",
        "b",
    ]
    assert hookq.work.python.find_handler is find_handler


@pytest.mark.parametrize(
    ("text", "spec", "said"),
    [
        (None, "gone.py:f", "there is no file"),
        ("def f(:\n", "h.py:f", "h.py line 1: invalid syntax"),
        (
            "\n\nimport nosuch_module\n",
            "h.py:f",
            "h.py line 3: ModuleNotFoundError: No module named 'nosuch_module'",
        ),
        ("raise SystemExit(3)\n", "h.py:f", "h.py line 1: SystemExit: 3"),
        ("x = 1\n", "h.py:f", "h.py has no function f."),
        ("async def f(delivery): pass\n", "h.py:f", "f is async or a generator"),
        ("def f(delivery):\n    yield\n", "h.py:f", "f is async or a generator"),
        ("def f(): pass\n", "h.py:f", "f cannot be called with one argument"),
        ("raise KeyboardInterrupt\n", "h.py:f", "h.py line 1: KeyboardInterrupt"),
        ("f = 1\n", "h.py:f", "h.py has no function f."),
        ("", "h.py", 'it must be "file.py:function"'),
        ("", "h.py:", 'it must be "file.py:function"'),
        ("", "nosuch.module:f", "No module named 'nosuch'"),
    ],
)
def test_handler_that_cannot_be_loaded_gets_a_sentence_with_its_line(tmp_path, text, spec, said):
    if text is not None:
        (tmp_path / "h.py").write_text(text)
    with pytest.raises(BadHandler) as refused:
        find_handler(spec, tmp_path)
    assert said in str(refused.value) and str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "kind", ["", "application/json", "application/vnd.x+json; charset=utf-8", "TEXT/JSON"]
)
def test_body_of_json_type_that_does_not_parse_is_not_json(kind):
    head = f"Content-Type: {kind}\r\n".encode() if kind else b""
    parse_body(delivery(head=head, body=b"[]"))
    for body in (b"no", b"", b"\xff", b"[" * 100_000):
        with pytest.raises(NotJson):
            parse_body(delivery(head=head, body=body))


def test_body_of_another_type_is_not_parsed():
    parse_body(delivery(head=b"Content-Type: text/plain\r\n", body=b"\xff{"))


def swallowing():
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            time.sleep(1)
        except Exception:
            pass


def computing():
    return all(n == 0 for n in iter(int, 1))


@pytest.mark.parametrize(
    "work", [lambda: time.sleep(30), computing, swallowing], ids=["waits", "computes", "swallows"]
)
def test_time_limit_stops_a_handler_in_python(work):
    watch_time()
    started = time.monotonic()
    error = run(lambda _: work(), delivery(), 0.05)
    assert isinstance(error, TimeLimit) and "timeout_s of 0.05 s" in str(error)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("handler", [lambda _: None, lambda _: 1 / 0], ids=["returns", "raises"])
def test_time_limit_leaves_nothing_behind(handler):
    watch_time()
    run(handler, delivery(), 0.05)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:  # a signal left armed would raise here
        pass


def test_time_limit_is_that_of_the_running_handler():
    watch_time()
    assert run(lambda _: None, delivery(), 30) is None
    started = time.monotonic()
    assert isinstance(run(lambda _: time.sleep(30), delivery(), 0.05), TimeLimit)
    assert time.monotonic() - started < 15
    assert run(lambda _: None, delivery(), 1) is None
    assert (
        run(lambda _: time.sleep(1.2), delivery(), 30) is None
    )  # the timer of the one before fires meanwhile


def test_time_limit_holds_after_a_handler_took_the_timer_for_itself():
    watch_time()
    assert run(lambda _: signal.signal(signal.SIGALRM, signal.SIG_IGN), delivery(), 5) is None
    watch_time()
    assert isinstance(run(lambda _: time.sleep(5), delivery(), 0.05), TimeLimit)


def test_place_is_where_the_error_arose(tmp_path):
    (tmp_path / "h.py").write_text("def f(_):\n    raise ValueError\n")
    try:
        find_handler("h.py:f", tmp_path)(None)
    except ValueError as error:
        assert place_of(error) == "h.py:2 f"


@pytest.mark.parametrize("after_s", [float("nan"), float("inf"), "soon"])
def test_retry_after_no_time_is_an_error_of_the_handler(after_s):
    with pytest.raises((ValueError, TypeError)):
        hookq.Retry(after_s=after_s)
