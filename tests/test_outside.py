"""Handlers outside Python: a URL and a command, with real servers, certificates and processes; and
the jobs that run concurrently.
"""

import http.server
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SECRET, accepted, dead, delivery, until
from test_worker import settled

from hookq.arrival import Arrival
from hookq.outcome import Failed, GiveUp, Retry, TimeLimit
from hookq.schemes import SCHEMES
from hookq.signing import Verifier, verify
from hookq.work import url
from hookq.work.command import Command
from hookq.work.url import Target, is_public, seconds_of

KEY = b"a-secret-of-the-target-5c1d"
BODY = b'{"n": 1}'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers, body, self.client_address))
        self.server.reply(self)

    def log_message(self, *_):
        pass

    def say(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def served():
    """served(reply, tls=folder) starts a server; reply is called with the handler of each request."""
    started = []

    def start(reply, context=None):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.reply, server.seen = True, reply, []
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = f"http{'s' if context else ''}://localhost:{server.server_port}/hooks?a=b"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


targets = []


@pytest.fixture(autouse=True)
def ended():
    yield
    while targets:
        targets.pop().disconnect()


def target(url, private=True, first_byte_s=5, **answers):
    table = {status.removeprefix("s"): word for status, word in answers.items()}
    targets.append(Target(url, KEY, table, private=private, first_byte_s=first_byte_s))
    return targets[-1]


def made(**more):
    head = b"Content-Type: application/json\r\nX-GitHub-Event: push\r\nX-Dup: a\r\nX-Dup: b\r\nConnection: close\r\nHost: sender\r\n"
    return delivery(body=BODY, head=head, attempt=2, **more)


# ---------------- a URL


def test_target_gets_the_raw_body_and_a_valid_signature_R3(served):
    server = served(lambda h: h.say(200, b"thanks"))
    job = made()
    error, facts = target(server.url).run(job, 5)
    assert error is None and facts == {"answer": {"status": 200, "body": "thanks"}}
    path, headers, body, _ = server.seen[0]
    assert (path, body, headers.get_all("X-Dup")) == ("/hooks?a=b", BODY, ["a", "b"])
    assert (
        headers["X-GitHub-Event"] == "push"
        and headers["Host"].startswith("localhost:")
        and headers["Connection"] is None
    )
    assert (headers["webhook-id"], headers["webhookd-attempt"]) == (job.id, "2")
    fields = {name.lower(): value for name, value in headers.items()}
    scheme = replace(SCHEMES["standard-webhooks"], key="text")
    assert (
        verify(
            Verifier(scheme, (KEY,)), Arrival("s", b"", fields, "", body, time.time()), "x"
        ).delivery_id
        == job.id
    )


def test_connection_is_reused_and_reopened_after_a_close(served):
    server = served(lambda h: h.say(204))
    one = target(server.url)
    for _ in range(3):
        assert one.run(made(), 5)[0] is None
    assert len({address for *_, address in server.seen}) == 1
    one.local.connection.sock.sock.shutdown(2)
    assert one.run(made(), 5)[0] is None
    assert len({address for *_, address in server.seen}) == 2


def hints(h):
    h.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    h.say(500)


def test_answer_after_early_hints_belongs_to_its_own_job(served):
    server = served(hints)
    one = target(server.url)
    for _ in range(3):
        assert isinstance(one.run(made(), 5)[0], Failed)
    assert len(server.seen) == len({address for *_, address in server.seen}) == 3


def late(h):
    h.close_connection = True
    h.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
    time.sleep(0.2)
    h.wfile.write(b"ok")


def test_answer_that_ends_with_its_connection_is_read_to_the_end(served):
    assert target(served(late).url).run(made(), 5) == (
        None,
        {"answer": {"status": 200, "body": "ok"}},
    )


def test_what_is_said_out_of_turn_is_no_answer_to_the_next_job(served):
    def reply(h):
        h.say(200)
        time.sleep(0.2)
        with suppress(OSError):
            h.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    one = target(served(reply).url)
    assert one.run(made(), 5)[0] is None
    until(lambda: not one.local.connection.sock.is_quiet())
    assert one.run(made(), 5)[0] is None


def test_endless_100_continue_is_cut_off_at_the_time_limit_R7(served):
    def reply(h):
        with suppress(OSError):
            while True:
                h.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    began = time.monotonic()
    assert isinstance(target(served(reply).url).run(made(), 1.0)[0], TimeLimit)
    assert time.monotonic() - began < 4  # of the first byte, 5 s are waited for


def test_header_that_is_the_senders_secret_is_not_passed_on(served):
    server = served(lambda h: h.say(200))
    targets.append(Target(server.url, KEY, {}, private=True, first_byte_s=5, withheld=["X-Dup"]))
    assert targets[-1].run(made(), 5)[0] is None and server.seen[0][1]["X-Dup"] is None


def test_secret_that_is_no_base64_after_whsec_signs_as_it_is(served):
    server = served(lambda h: h.say(200))
    one = Target(server.url, b"whsec_not base64!", {}, private=True, first_byte_s=5)
    targets.append(one)
    assert one.run(made(), 5)[0] is None and server.seen[0][1]["webhook-signature"].startswith(
        "v1,"
    )


@pytest.mark.parametrize(
    ("status", "headers", "kind", "after_s"),
    [
        (200, {}, None, None),
        (299, {}, None, None),
        (301, {"Location": "http://127.0.0.1:1/"}, Failed, None),
        (400, {}, GiveUp, None),
        (404, {}, GiveUp, None),
        (410, {}, GiveUp, None),
        (408, {}, Failed, None),
        (429, {}, Failed, None),
        (429, {"Retry_After": "7"}, Retry, 7.0),
        (503, {"Retry_After": "120"}, Retry, 120.0),
        (500, {"Retry_After": "7"}, Failed, None),
    ],
)
def test_status_says_what_becomes_of_the_job(served, status, headers, kind, after_s):
    server = served(lambda h: h.say(status, b"so", **headers))
    error, facts = target(server.url).run(made(), 5)
    assert (type(error) if error else None) is kind and facts["answer"]["status"] == status
    assert getattr(error, "after_s", None) == after_s and len(server.seen) == 1


def test_table_of_a_source_says_otherwise(served):
    server = served(lambda h: h.say(409))
    assert isinstance(target(server.url).run(made(), 5)[0], GiveUp)
    assert target(server.url, s409="done").run(made(), 5)[0] is None
    assert isinstance(target(server.url, s409="retry").run(made(), 5)[0], Failed)


def drip(h):
    h.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
    with suppress(OSError):
        for _ in range(600):
            h.wfile.write(b"a")
            h.wfile.flush()
            time.sleep(0.05)


def for_ever(h):
    h.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with suppress(OSError):
        while True:
            h.wfile.write(b"400\r\n" + b"x" * 1024 + b"\r\n")


def cut(h):
    h.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    h.close_connection = True


@pytest.mark.parametrize(
    ("reply", "first_byte_s", "kind", "said"),
    [
        (lambda h: time.sleep(30), 0.5, Failed, "had not begun to answer in time"),
        (drip, 30, TimeLimit, "had not answered in full within timeout_s"),
        (cut, 30, Failed, "did not speak HTTP to the end: IncompleteRead"),
        (
            lambda h: h.wfile.write(b"nonsense\r\n\r\n"),
            30,
            Failed,
            "did not speak HTTP to the end: BadStatusLine",
        ),
        (lambda h: h.connection.shutdown(2), 30, Failed, ""),
    ],
    ids=["never answers", "drips", "closes in the middle", "nonsense", "closes"],
)
def test_bad_target_costs_its_time_limit_and_a_sentence_R7(served, reply, first_byte_s, kind, said):
    server, began = served(reply), time.monotonic()
    error, _ = target(server.url, first_byte_s=first_byte_s).run(made(), 2.0)
    assert isinstance(error, kind) and said in str(error), error
    assert time.monotonic() - began < 15


def test_answer_before_the_body_was_read_counts():
    def refuse():
        with listener.accept()[0] as client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=refuse, daemon=True).start()
        large = made()._replace(body=b"x" * (64 << 20))
        error, facts = target(f"http://127.0.0.1:{listener.getsockname()[1]}/").run(large, 5)
    assert isinstance(error, GiveUp) and facts["answer"]["status"] == 413


def test_target_that_answers_for_ever_is_cut_off(served):
    error, facts = target(served(for_ever).url).run(made(), 5)
    assert error is None and facts["answer"]["body"] == "x" * url.KEPT


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/", "cannot be reached: Connection refused"),
        ("http://nowhere.invalid/", "nowhere.invalid cannot be resolved"),
    ],
)
def test_target_that_is_not_there_is_retried(url, said):
    error, facts = target(url).run(made(), 3)
    assert isinstance(error, Failed) and said in str(error) and facts == {}


def test_certificates_are_verified(served, tmp_path, monkeypatch):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    subprocess.run(
        [*command, "-keyout", key, "-out", cert, *names], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = served(lambda h: h.say(200), context)
    error, _ = target(server.url).run(made(), 5)
    assert (
        isinstance(error, Failed)
        and "the certificate of localhost" in str(error)
        and not server.seen
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    assert target(server.url).run(made(), 5)[0] is None
    assert "certificate" in str(
        target(server.url.replace("localhost", "127.0.0.1")).run(made(), 5)[0]
    )


def test_private_addresses_are_for_sources_that_say_so(served):
    server = served(lambda h: h.say(200))
    error, _ = target(server.url, private=False).run(made(), 5)
    assert (
        isinstance(error, Failed)
        and "is not public; allow_private = true" in str(error)
        and not server.seen
    )


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.0.0.1",
            "172.16.3.4",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
        ),
        *(
            "168.63.129.16",
            "192.0.0.192",
            "64:ff9b:1::7f00:1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "fec0::1",
            "3fff::1",
        ),
        *(
            "::1",
            "::",
            "fe80::1%eth0",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "ff02::1",
        ),
    ],
)
def test_address_that_is_not_of_the_public_internet_is_known(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::5db8:d822"]
)
def test_public_address_is_known(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 20.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("9" * 400, None),
    ],
)
def test_retry_after_is_a_number_or_a_date(text, seconds):
    assert seconds_of(text, 1445412460.0) == seconds


def gone(pid):
    with suppress(OSError):
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    return True


# ---------------- a command


def script(tmp_path, text, name="run.sh"):
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return Command([f"./{name}", "an arg"], tmp_path)


def test_command_gets_the_body_facts_in_the_environment_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    command, job = script(tmp_path, 'cat > body; env > env; echo "$1" > arg; echo said'), made()
    assert command.run(job, 5) == (None, {"output": "said\n"})
    assert (tmp_path / "body").read_bytes() == BODY and (tmp_path / "arg").read_text() == "an arg\n"
    env = (tmp_path / "env").read_text()
    assert (
        SECRET not in env
        and f"WEBHOOKD_ID={job.id}\n" in env
        and "WEBHOOKD_ATTEMPT=2\n" in env
        and "WEBHOOKD_EVENT_TYPE=push\n" in env
    )


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("exit 0", None, ""),
        ("exit 75", Retry, "exited with 75"),
        ("exit 100", GiveUp, "exited with 100"),
        ("exit 1", Failed, "exited with 1"),
        ("kill -9 $$", Failed, "was ended by SIGKILL"),
        ("kill -35 $$", Failed, "was ended by signal 35"),
    ],
)
def test_exit_code_says_what_becomes_of_the_job(tmp_path, text, kind, said):
    error, _ = script(tmp_path, text).run(made(), 5)
    assert (type(error) if error else None) is kind and (not error or said in str(error))


def test_command_that_reads_nothing_and_prints_much_is_done(tmp_path):
    command = script(tmp_path, "yes y | tr -d '\\n' | head -c 9000000; printf end")
    error, facts = command.run(made()._replace(body=b"x" * 5_000_000), 20)
    assert error is None and facts["output"].endswith("yend") and len(facts["output"]) == 4096


def test_command_with_closed_output_gets_all_of_a_large_body(tmp_path):
    command = script(tmp_path, "exec >/dev/null 2>&1; sleep 0.1; cat > body")
    assert command.run(made()._replace(body=b"x" * 3_000_000), 10) == (None, {})
    assert (tmp_path / "body").stat().st_size == 3_000_000


def test_command_over_its_time_is_killed_with_all_that_it_started_R7(tmp_path):
    began = time.monotonic()
    error, facts = script(tmp_path, "sleep 77.7 & echo $! > child; echo begun; sleep 60").run(
        made(), 2
    )
    assert (
        isinstance(error, TimeLimit)
        and facts == {"output": "begun\n"}
        and time.monotonic() - began < 30
    )
    child = int((tmp_path / "child").read_text())
    until(lambda: gone(child), what="the child is gone")


def test_command_that_leaves_something_behind_is_done_when_it_ends(tmp_path):
    began = time.monotonic()
    error, facts = script(tmp_path, "sleep 60 & echo $!").run(made(), 30)
    assert error is None and time.monotonic() - began < 15
    os.kill(int(facts["output"]), signal.SIGKILL)


def test_command_that_is_not_there_any_more_is_retried(tmp_path):
    command = script(tmp_path, "exit 0")
    (tmp_path / "run.sh").chmod(0o644)
    error, _ = command.run(made(), 5)
    assert isinstance(error, Failed) and "not there, or not executable" in str(error)


# ---------------- concurrently


TOML = """[sources.github]
scheme = "github"
secrets = ["env:WEBHOOK_SECRET"]
retry_base_s = 0.01
max_attempts = 3
"""


def test_event_types_are_worked_on_by_the_first_rule_that_fits(store, running, served, tmp_path):
    server = served(lambda h: h.say(200))
    script(tmp_path, 'echo "$WEBHOOKD_DELIVERY_ID" >> started')
    (tmp_path / "h.py").write_text(
        "import pathlib\ndef handle(d):\n    pathlib.Path(__file__).with_name('ran').write_text(d.delivery_id)\n"
    )
    rules = [
        ("pull_request*", f'"{server.url}"'),
        ("deploy", '["./run.sh"]'),
        ("ping", '"ignore"'),
        ("*review", '"h.py:no"'),
    ]
    (tmp_path / "h.py").write_text((tmp_path / "h.py").read_text() + "def no(d):\n    1 / 0\n")
    on = "".join(
        f'[[sources.github.on]]\nevent = "{event}"\nhandler = {handler}\n'
        for event, handler in rules
    )
    (tmp_path / "webhooks.toml").write_text(
        TOML + 'handler = "h.py:handle"\nallow_private = true\n' + on
    )
    running("worker.py")
    kinds = ["pull_request", "pull_request_review", "deploy", "ping", "other"]
    jobs = [delivery(delivery_id=kind)._replace(event_type=kind) for kind in kinds]
    store.accept([(job, 60) for job in jobs])
    settled(store, done=5)
    assert sorted(headers["webhook-id"] for _, headers, *_ in server.seen) == [
        jobs[0].id,
        jobs[1].id,
    ]
    assert (tmp_path / "started").read_text() == "deploy\n" and (
        tmp_path / "ran"
    ).read_text() == "other"
    told = {
        job.event_type: next(
            event for event in store.events(job.id) if event.event == "job.complete"
        )
        for job in jobs
    }
    assert told["ping"].facts["ignored"] and told["pull_request"].facts["answer"]["status"] == 200


@pytest.mark.parametrize("concurrency", [1, 20])
def test_no_more_run_at_once_than_the_source_lets(store, running, served, tmp_path, concurrency):
    now, most, changed = [0], [0], threading.Condition()

    def reply(h):
        with changed:
            now[0] += 1
            most[0] = max(most[0], now[0])
            changed.notify_all()
            # The first ones wait until as many are here as may be.
            changed.wait_for(lambda: most[0] >= concurrency, 10)
        time.sleep(0.05)  # so that one too many would be seen
        with changed:
            now[0] -= 1
        h.say(200)

    server = served(reply)
    (tmp_path / "webhooks.toml").write_text(
        TOML + f'handler = "{server.url}"\nallow_private = true\nconcurrency = {concurrency}\n'
    )
    running("worker.py")
    accepted(store, 60)
    settled(store, done=60)
    assert most[0] == concurrency


WAITS = """
import pathlib, time
here = pathlib.Path(__file__).parent

def until_go():
    while not (here / "go").exists():
        time.sleep(0.01)

"""


def test_long_job_in_python_keeps_no_job_from_its_url(store, running, served, tmp_path):
    server = served(lambda h: h.say(200))
    (tmp_path / "h.py").write_text(WAITS + "def f(d):\n    until_go()\n")
    url = TOML.replace("github]", "url]") + f'handler = "{server.url}"\nallow_private = true\n'
    (tmp_path / "webhooks.toml").write_text(TOML + f'handler = "h.py:f"\n{url}')
    running("worker.py").saw("process.start")
    accepted(store)
    until(lambda: store.audit().leased == 1)
    accepted(store, 20, source="url")
    until(lambda: store.audit().done == 20, what="done while the other is in hand")
    assert store.audit().leased == 1
    (tmp_path / "go").touch()


def test_quick_jobs_wait_for_the_slow_job_in_hand_and_no_other(store, running, tmp_path):
    slow = """def slow(d):
    with (here / "slow").open("a") as file:
        file.write("x")
    time.sleep(0.5)
    if (here / "slow").read_text() == "xx":
        until_go()

def quick(d):
    pass
"""
    (tmp_path / "h.py").write_text(WAITS + slow)
    quick = TOML.replace("github]", "quick]") + 'handler = "h.py:quick"\n'
    (tmp_path / "webhooks.toml").write_text(TOML + f'handler = "h.py:slow"\n{quick}')
    accepted(store, 8)
    running("worker.py")
    begun = tmp_path / "slow"
    until(lambda: begun.exists() and begun.read_text() == "xx", what="the second is in hand")
    accepted(store, 100, source="quick")
    (tmp_path / "go").touch()
    settled(store, done=108)
    ended = [event.source for event in store.latest_events(200)][::-1]
    last_quick = len(ended) - ended[::-1].index("quick")
    assert ended[:last_quick].count("github") <= 2, "the one before, and the one in hand"


def test_jobs_beside_a_killed_one_run_again_uncharged_R9(store, running, tmp_path):
    script(tmp_path, 'echo "$WEBHOOKD_ID $$" >> starts; [ -e go ] || sleep 60')
    (tmp_path / "webhooks.toml").write_text(TOML + 'handler = ["./run.sh"]\nconcurrency = 4\n')
    first = running("worker.py")
    made = accepted(store, 4)
    starts = tmp_path / "starts"
    until(lambda: starts.exists() and len(starts.read_text().splitlines()) == 4)
    pids = [int(line.split()[1]) for line in starts.read_text().splitlines()]
    first.end(signal.SIGKILL)
    until(lambda: all(map(gone, pids)), what="they end with it")
    (tmp_path / "go").touch()
    second = running("worker.py")
    settled(store, done=4, ready=0, leased=0)
    assert sorted(line.split()[0] for line in starts.read_text().splitlines()) == sorted(
        [job.id for job in made] * 2
    )
    assert {line["deaths"] for line in second.events("job.reclaim")} == {0}


def test_stop_waits_for_what_runs_beside_and_settles_it(store, running, tmp_path):
    script(tmp_path, "echo >> begun; until [ -e go ]; do sleep 0.05; done")
    (tmp_path / "webhooks.toml").write_text(TOML + 'handler = ["./run.sh"]\nconcurrency = 2\n')
    program = running("worker.py")
    accepted(store, 6)
    begun = tmp_path / "begun"
    until(lambda: begun.exists() and begun.read_text() == "\n\n", what="both run")
    program.process.send_signal(signal.SIGTERM)
    program.saw("process.drain")
    (tmp_path / "go").touch()
    assert program.process.wait(60) == 0
    audit = store.audit()
    assert audit.done == 2 and audit.leased == 0 and audit.ready == 4 and audit.gap == 0


def test_failures_outside_are_told_to_the_operator_in_a_sentence(store, running, served, tmp_path):
    server = served(lambda h: h.say(418, b"I am a teapot"))
    (tmp_path / "webhooks.toml").write_text(
        TOML + f'handler = "{server.url}"\nallow_private = true\n'
    )
    running("worker.py")
    accepted(store)
    settled(store, dead=1)
    (letter,) = dead(store)
    assert (letter.reason, letter.cause) == (
        "gave_up",
        "answered 418",
    ) and "answered 418" in letter.facts["error"]
    assert letter.facts["answer"] == {"status": 418, "body": "I am a teapot"}


# ---------------- bad handlers in Python


def test_handler_that_eats_memory_restarts_its_worker(store, running, tmp_path):
    (tmp_path / "h.py").write_text(
        "def handle(d):\n    if d.body == b'eat':\n        bytearray(1 << 30)\n"
    )
    (tmp_path / "webhooks.toml").write_text(TOML + 'handler = "h.py:handle"\n')
    program = running("worker.py", WORKER_MEMORY="300mb")
    accepted(store, body=b"eat")
    accepted(store, 3)
    settled(store, dead=1, done=3)
    (letter,) = dead(store)
    assert letter.facts["error"].startswith("MemoryError") and letter.attempt == 3
    until(lambda: len(program.events("process.start")) == 4)
    assert program.process.poll() is None


def test_handler_that_forks_settles_its_job_once(store, running, tmp_path):
    (tmp_path / "h.py").write_text(
        "import os\ndef handle(d):\n    print('x' * 100)\n    os.fork()\n    return ['nonsense']\n"
    )
    (tmp_path / "webhooks.toml").write_text(TOML + 'handler = "h.py:handle"\n')
    program = running("worker.py")
    accepted(store, 20)
    settled(store, done=20)
    assert store.metrics().get("refused_settles", 0) == 0 and "Traceback" not in program.text
    of_it = ["ps", "--ppid", str(program.process.pid), "-o", "stat="]

    def ended():
        children = subprocess.run(of_it, capture_output=True, text=True).stdout.split()
        return all(state.startswith("Z") for state in children)

    until(ended, what="no child works on")


def test_story_of_an_attempt_outside_is_shown_by_the_command(store, running, tmp_path):
    script(tmp_path, "echo it is broken; exit 100")
    (tmp_path / "webhooks.toml").write_text(TOML + 'handler = ["./run.sh"]\n')
    running("worker.py")
    (job,) = accepted(store)
    settled(store, dead=1)
    shown = running("dlqctl.py", "--show", job.id)
    shown.process.wait(60)
    assert "it is broken" in shown.text
