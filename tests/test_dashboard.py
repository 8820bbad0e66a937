"""The page: its login, its forms, what it shows of hostile values, and what it says when Redis is away."""

import base64
import http.client
import re

import pytest
from conftest import accepted, dead_ids, free_port, until

from hookq.store import Settled

LOGIN = {"Authorization": "Basic " + base64.b64encode(b"operator:a-password").decode()}
HOSTILE = "'\"><img src=x onerror=1> $x ${y} $$ \x1b[2J ‮"


class Page:
    def __init__(self, port):
        self.port = port

    def ask(self, method="GET", path="/dashboard", body=None, headers=LOGIN):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=15)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def token(self):
        return re.search(r'name="token" value="([0-9a-f]{64})"', self.ask()[1])[1]

    def post(self, act, id, token=None, **headers):
        form = f"id={id}&token={self.token() if token is None else token}"
        return self.ask("POST", f"/dashboard/{act}", form, {**LOGIN, "Content-Type": "application/x-www-form-urlencoded", **headers})


@pytest.fixture
def page(running):
    port = free_port()
    running("dashboard.py", DASHBOARD_PORT=port)
    made = Page(port)

    def up():
        try:
            return made.ask(path="/livez")[0] == 200
        except OSError:
            return False

    until(up, what="the dashboard answers")
    return made


def bury(store, **more):
    error = more.pop("error", "ValueError: no")
    made = accepted(store, **more)[0]
    lease = store.lease([made.source], 9, 100)[0]
    store.settle([Settled(lease, "dead", {"attempt": 1, "error": error}, reason="gave_up")])
    return made


@pytest.mark.parametrize("path", ["/dashboard", "/metrics", "/static/app.css", "/dashboard/retry", "/nothing"])
@pytest.mark.parametrize("login", ["", "Basic", "Basic x", "Basic b3BlcmF0b3I6d3Jvbmc=", "Bearer a", "Basic \xff"])
def test_without_the_login_everything_is_closed(page, path, login):
    status, text, headers = page.ask(path=path, headers={"Authorization": login} if login else {})
    assert status == 401 and "www-authenticate" in headers and "<table" not in text


def test_overview_shows_numbers_and_dead_letters_under_a_strict_policy(page, store):
    made = bury(store)
    status, text, headers = page.ask()
    assert status == 200 and made.id in text and "ValueError: no" in text and "No workers are running" in text
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    assert "<script" not in text and "python" not in headers["server"].lower()


def test_hostile_values_arrive_escaped(page, store):
    bury(store, error=HOSTILE, delivery_id=HOSTILE)
    text = page.ask(path="/dashboard?notice=%3Cscript%3Ealert(1)%3C/script%3E%24x")[1]
    assert "<img" not in text and "<script" not in text and "\x1b" not in text and "‮" not in text
    assert "&lt;img src=x onerror=1&gt; $x ${y} $$" in text


def test_retry_by_post_puts_it_back_and_get_does_not(page, store):
    made = bury(store)
    assert page.ask(path=f"/dashboard/retry?id={made.id}")[0] == 405
    assert store.audit()["dead"] == 1
    status, _, headers = page.post("retry", made.id)
    assert status == 303 and "Put%20back" in headers["location"]
    assert (store.audit()["ready"], store.audit()["gap"]) == (1, 0)


def test_discard_and_restore_bring_it_back(page, store):
    made = bury(store)
    location = page.post("discard", made.id)[2]["location"]
    assert store.audit()["discarded"] == 1
    batch = re.search(r"batch%20([0-9a-f]{8})", location)[1]
    bury(store)  # so that the page has a form, and with it a token
    assert page.post("restore", batch)[0] == 303
    assert made.id in dead_ids(store) and store.audit()["gap"] == 0


@pytest.mark.parametrize(
    ("token", "headers"),
    [("", {}), ("0" * 64, {}), (None, {"Origin": "http://evil.example"}), (None, {"Sec-Fetch-Site": "cross-site"}), ("é", {})],
)
def test_form_of_another_page_changes_nothing(page, store, token, headers):
    made = bury(store)
    assert page.post("retry", made.id, token, **headers)[0] == 403
    assert store.audit()["dead"] == 1


def test_foreign_host_is_refused(page):
    assert page.ask(headers={**LOGIN, "Host": "evil.example"})[0] == 421


def test_id_that_is_no_dead_letter_is_told(page, store):
    bury(store)
    for id in ("nosuch", "", "%00%0d%0aX:1"):
        status, _, headers = page.post("retry", id)
        assert status == 303 and "no%20dead%20letter" in headers["location"] and "x" not in headers


def test_metrics_are_counters_and_gauges_of_the_store(page, store):
    bury(store)
    lines = page.ask(path="/metrics")[1].splitlines()
    assert 'webhookd_accepted_total{source="github"} 1' in lines and "webhookd_ledger_gap 0" in lines
    assert all(re.fullmatch(r'# TYPE \w+ (counter|gauge)|\w+(\{(\w+="[^"]*",?)+\})? -?\d+', line) for line in lines)


def test_redis_away_gets_503_and_a_useful_page(running, private_redis):
    port = free_port()
    running("dashboard.py", redis=private_redis, DASHBOARD_PORT=port).saw("process.start")
    made = Page(port)
    assert until(lambda: made.ask(path="/readyz")[0] == 200)
    private_redis.stop()
    status, text, headers = made.ask()
    assert status == 503 and "Redis is away" in text and headers["refresh"] == "5"
    assert made.ask(path="/readyz")[0] == 503 and made.ask(path="/livez")[0] == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /dashboard HTTP/1.1\r\n\r\n", 400),
        (b"POST /dashboard/retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"POST /dashboard/retry HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000, 431),
    ],
)
def test_bad_request_gets_its_code(page, request_, status):
    import socket

    with socket.create_connection(("127.0.0.1", page.port), 10) as s:
        s.sendall(request_)
        assert s.recv(4096).startswith(b"HTTP/1.1 %d " % status)
