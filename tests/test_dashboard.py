"""The page: its login, its forms, what it shows of hostile values, and what it says when Redis is
away.
"""

import base64
import html
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlencode

import pytest
from conftest import ROOT, accepted, dead_ids, free_port, until

from hookq import wire
from hookq.operate import dlq
from hookq.schemes import SCHEMES
from hookq.store.keys import key
from hookq.store.records import Settled

LOGIN = {"Authorization": "Basic " + base64.b64encode(b"operator:a-password").decode()}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
HOSTILE = "'\"><img src=x onerror=1> $x ${y} $$ \x1b[2J ‮"


class Page:
    def __init__(self, port):
        self.port = port

    def bytes(self, path, method="GET", body=None, headers=LOGIN):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            self.answer = connection.getresponse()
            return self.answer.read()
        finally:
            connection.close()

    def ask(self, method="GET", path="/dashboard", body=None, headers=LOGIN):
        text = self.bytes(path, method, body, headers).decode()
        return self.answer.status, text, {k.lower(): v for k, v in self.answer.getheaders()}

    def up(self):
        try:
            return self.ask(path="/livez")[0] == 200
        except OSError:
            return False

    def token(self):
        return re.search(r'name="token" value="([0-9a-f]{64})"', self.ask()[1])[1]

    def submit(self, act, fields, **headers):
        return self.ask(
            "POST",
            f"/dashboard/{act}",
            urlencode([("token", self.token()), *fields]),
            {**LOGIN, **FORM, **headers},
        )

    def post(self, act, id, token=None, headers=None, **fields):
        form = urlencode({"only": id, "token": self.token() if token is None else token, **fields})
        return self.ask("POST", f"/dashboard/{act}", form, {**LOGIN, **FORM, **(headers or {})})

    def ids(self, path):
        return re.findall(r'name="id" value="([^"]+)"', self.ask(path=path)[1])


@pytest.fixture
def page(running):
    port = free_port()
    running("dashboard.py", DASHBOARD_PORT=port)
    made = Page(port)
    until(made.up, what="the dashboard answers")
    return made


def bury(store, **more):
    error, cause = (
        more.pop("error", "ValueError: no"),
        more.pop("cause", "ValueError in h.py:3 handle"),
    )
    trace = more.pop("trace", "")
    made = accepted(store, **more)[0]
    lease = store.lease({made.source: 9}, 100)[0]
    store.settle(
        [
            Settled(
                lease,
                "dead",
                {"attempt": 1, "of": 8, "error": error},
                reason="gave_up",
                cause=cause,
                trace=trace,
            )
        ]
    )
    return made


@pytest.mark.parametrize(
    "path",
    [
        "/dashboard",
        "/metrics",
        "/static/app.css",
        "/dashboard/retry",
        "/dashboard/live.json",
        "/nothing",
    ],
)
@pytest.mark.parametrize(
    "login", ["", "Basic", "Basic x", "Basic b3BlcmF0b3I6d3Jvbmc=", "Bearer a", "Basic \xff"]
)
def test_without_the_login_everything_is_closed(page, path, login):
    status, text, headers = page.ask(path=path, headers={"Authorization": login} if login else {})
    assert status == 401 and "www-authenticate" in headers and "<table" not in text


def test_overview_shows_numbers_under_a_strict_policy(page, store):
    made = bury(store)
    status, text, headers = page.ask()
    assert (
        status == 200
        and made.id in text
        and "ValueError in h.py:3 handle" in text
        and "No workers are running" in text
    )
    assert (
        "default-src 'none'" in headers["content-security-policy"]
        and headers["cache-control"] == "no-store"
    )
    assert (
        text.count("<script") == 1
        and "style=" not in text
        and "python" not in headers["server"].lower()
    )
    status, text, _ = page.ask(path="/dashboard/dead")
    assert (
        status == 200
        and made.id in text
        and "ValueError: no" in text
        and "1 match, of 1 dead letter." in text
    )


def test_hostile_values_arrive_escaped_in_every_place(page, store):
    head = f"X-Evil: {HOSTILE}\r\nContent-Type: text/plain\r\n".encode()
    values = {
        "error": HOSTILE,
        "cause": HOSTILE,
        "trace": HOSTILE,
        "delivery_id": HOSTILE,
        "head": head,
        "body": HOSTILE.encode(),
    }
    made = bury(store, **values)
    waiting = accepted(store, **{k: values[k] for k in ("delivery_id", "head")}, source="other")[0]
    store.discard(
        [bury(store, **{**values, "delivery_id": HOSTILE + "2"}).id], dlq.actor("page", HOSTILE)
    )
    for path in (
        "/dashboard?notice=",
        "/dashboard/dead?q=",
        "/dashboard/dead?since=",
        f"/dashboard/deliveries/{made.id}?view=",
        f"/dashboard/deliveries/{waiting.id}?notice=",
    ):
        status, text, _ = page.ask(path=path + quote(HOSTILE))
        assert status == (400 if "since" in path else 200)
        assert (
            "<img" not in text
            and text.count("<script") == 1
            and "\x1b" not in text
            and "\u202e" not in text
        )
        assert "&lt;img src=x onerror=1&gt; $x ${y} $$" in text
    status, text, _ = page.post("discard", made.id, scope="match", q="", only="")
    assert status == 200 and "<img" not in text and "&lt;img" in text


@pytest.mark.parametrize(
    ("body", "kind", "shown"),
    [
        (b'{"a": [1, {"b": "<x>"}]}', "application/json", "&quot;b&quot;: &quot;&lt;x&gt;&quot;"),
        (b"payload=%7B%22a%22%3A1%7D", "application/x-www-form-urlencoded", "&quot;a&quot;: 1"),
        (b"no json", "application/json", "no json"),
        (b"\xff\xfe\x00", "application/json", "00000000  ff fe 00"),
        (b"x" * 5_000_000, "text/plain", "only the first 64 KiB are shown"),
        (b"[" * 100_000, "application/json", "[[[["),
    ],
    ids=["json", "form", "text", "binary", "long", "deep"],
)
def test_body_is_shown_harmless_and_downloaded_byte_for_byte(page, store, body, kind, shown):
    made = bury(
        store,
        body=body,
        head=f"Content-Type: {kind}\r\nAuthorization: Bearer marked\r\nX-Hub-Signature-256: marked\r\n".encode(),
    )
    for view in ("pretty", "raw"):
        status, text, _ = page.ask(path=f"/dashboard/deliveries/{made.id}?view={view}")
        assert status == 200 and len(text) < 500_000 and "marked" not in text and "(hidden)" in text
        assert shown in text or view == "raw"
    assert page.bytes(f"/dashboard/deliveries/{made.id}/body") == body


def test_story_is_told_in_every_state(page, store):
    made = accepted(store)[0]
    ask = lambda: page.ask(path=f"/dashboard/deliveries/{made.id}")  # noqa: E731
    state = lambda: re.search(r"<dt>state</dt><dd>(\w+)</dd>", ask()[1])[1]  # noqa: E731
    assert state() == "ready"
    lease = store.lease({"github": 1}, 100)[0]
    assert state() == "leased"
    facts = {"attempt": 1, "of": 8, "worker": "w1", "wait_ms": 12.0, "run_ms": 3.5}
    store.settle(
        [
            Settled(
                lease,
                "dead",
                {**facts, "error": "ValueError: no"},
                reason="gave_up",
                cause="ValueError",
                trace="Traceback x",
            )
        ]
    )
    text = ask()[1]
    assert (
        state() == "dead"
        and "Traceback x" in text
        and "12.0 ms" in text
        and "3.5 ms" in text
        and "w1" in text
    )
    page.post("discard", made.id)
    assert (
        state() == "discarded"
        and "operator from 127.0.0.1" in ask()[1]
        and 'formaction="/dashboard/restore"' in ask()[1]
    )
    page.post("restore", made.id)
    assert state() == "dead"
    page.post("retry", made.id)
    assert state() == "ready"
    store.settle(
        [
            Settled(
                store.lease({"github": 1}, 100)[0],
                "done",
                {"attempt": 1, "event_type": "push", "delivery_id": made.delivery_id},
            )
        ]
    )
    text = ask()[1]
    assert state() == "done" and "no longer kept" in text and made.delivery_id in text
    assert page.ask(path=f"/dashboard/deliveries/{made.delivery_id}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "deliveries/nosuch",
        "deliveries/%00%ff",
        "deliveries/" + "a" * 300,
        "deliveries/0/body",
        "nosuch",
        "deliveries/",
    ],
)
def test_what_is_not_there_gets_404_and_a_sentence(page, path):
    status, text, _ = page.ask(path=f"/dashboard/{path}")
    assert status == 404 and text.strip()


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=x",
        "page=99999999999",
        "page=3",
        "cause=00000000",
        "source=nosuch",
        "q=nosuch",
        "until=2000-01-01",
    ],
)
def test_filter_that_matches_nothing_says_so(page, store, query):
    bury(store)
    status, text, _ = page.ask(path=f"/dashboard/dead?{query}")
    assert status == 200 and ("None match (1 in all)." in text or "ValueError: no" in text)


@pytest.mark.parametrize(
    "query", ["cause=zz", "since=yesterday", "since=%F0%9F%98%80", "until=1e99"]
)
def test_nonsense_in_the_filter_gets_400_and_a_sentence(page, query):
    status, text, _ = page.ask(path=f"/dashboard/dead?{query}")
    assert status == 400 and "is no" in text


def test_list_is_paged_newest_first_and_says_how_many_match(page, store):
    made = [bury(store, error=f"E {n:02}: no", source="a" if n % 2 else "b") for n in range(60)]
    found = page.ids("/dashboard/dead")
    assert (
        found == [d.id for d in reversed(made)][:25]
        and page.ids("/dashboard/dead?page=3") == [d.id for d in reversed(made)][50:]
    )
    assert "60 match, of 60 dead letters." in page.ask(path="/dashboard/dead")[1]
    assert "30 match, of 60 dead letters." in page.ask(path="/dashboard/dead?source=a")[1]
    assert page.ids("/dashboard/dead?q=e+1") == [made[n].id for n in range(19, 9, -1)]
    assert page.ids(f"/dashboard/dead?q={made[7].id[:14]}") == [made[7].id]
    assert page.ids("/dashboard/dead?error=e+3&source=a&page=1") == [
        made[n].id for n in (39, 37, 35, 33, 31)
    ]


def test_ticked_ones_are_moved_and_no_others(page, store):
    made = [bury(store) for _ in range(4)]
    status, _, headers = page.submit(
        "retry", [("scope", "ticked"), ("id", made[1].id), ("id", made[3].id), ("id", "nosuch")]
    )
    assert (
        status == 303
        and "Put%20back%202" in headers["location"]
        and "1%20were%20no" in headers["location"]
    )
    assert dead_ids(store) == [made[0].id, made[2].id]
    assert "None%20was%20ticked" in page.submit("discard", [("scope", "ticked")])[2]["location"]


def test_all_that_match_are_asked_for_and_later_ones_are_not_touched(page, store):
    made = [bury(store, cause="A", error="A: no") for _ in range(3)]
    bury(store, cause="B", error="B: no")
    cause = next(c.id for c in store.causes() if c.cause == "A")
    status, text, _ = page.submit("discard", [("scope", "match"), ("cause", cause)])
    assert status == 200 and "3 dead letters" in text and store.audit().dead == 4
    later = bury(store, cause="A", error="A: no")
    fields = [
        (name, html.unescape(value))
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text)
    ]
    status, _, headers = page.ask(
        "POST", "/dashboard/discard", urlencode(fields), {**LOGIN, **FORM}
    )
    assert status == 303 and "Discarded%203" in headers["location"]
    assert later.id in dead_ids(store) and not {d.id for d in made} & set(dead_ids(store))
    text = page.ask()[1]
    batch = re.search(r'name="batch" value="([0-9a-f]{8})"', text)[1]
    assert "cause " + cause in text
    page.submit("restore", [("batch", batch)])
    assert {d.id for d in made} <= set(dead_ids(store)) and store.audit().gap == 0


def test_two_operators_at_once_are_each_told_the_truth(page, store):
    made = bury(store)
    assert "Put%20back" in page.post("retry", made.id)[2]["location"]
    assert "somebody%20else" in page.post("discard", made.id)[2]["location"]
    assert store.audit().ready == 1


def test_page_and_command_select_count_and_act_alike(page, store, redis_server, tmp_path):
    causes = ["A", "B", "C"]
    made = [
        bury(
            store,
            cause=causes[n % 3],
            error=f"{causes[n % 3]}: no {n}",
            source="s1" if n < 9 else "s2",
        )
        for n in range(18)
    ]

    def command(*args):
        env = {
            "PATH": os.environ["PATH"],
            "REDIS_URL": redis_server.url,
            "STATE_DIR": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, str(ROOT / "dlqctl.py"), *args, "--json"],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    cause = next(c.id for c in store.causes() if (c.cause, c.source) == ("A", "s1"))
    for query, args in [
        ("", []), ("source=s1", ["--source", "s1"]), (f"cause={cause}", ["--cause", cause]), ("error=no+1", ["--error", "NO 1"]),
        ("since=1h", ["--since", "1h"]), ("until=1h", ["--until", "1h"]), ("source=s2&error=B", ["--source", "s2", "--error", "b"]),
    ]:  # fmt: skip
        found = command("--view", "--newest", "--limit", "0", *args)
        text = page.ask(path=f"/dashboard/dead?{query}")[1]
        assert page.ids(f"/dashboard/dead?{query}") == [row["id"] for row in found], query
        assert re.findall(r'aria-label="Tick [^"]*"></td><td>(\d+)</td>', text) == [
            str(row["n"]) for row in found
        ]
    groups = {
        row["id"]: (row["cause"], row["source"], row["total"])
        for row in command("--view", "--by-cause")
    }
    shown = re.findall(
        r'dead\?cause=(\w+)">([^<]*)</a></th><td>([^<]*)</td><td>(\d+)</td>', page.ask()[1]
    )
    assert (
        groups == {id: (cause, source, int(count)) for id, cause, source, count in shown}
        and len(groups) == 6
    )
    assert command("--retry", "all", "--cause", cause, "--dry-run")["would_retry"] == [
        made[n].id for n in (0, 3, 6)
    ]
    assert command("--retry", "all", "--cause", cause)["retried"] == [made[n].id for n in (0, 3, 6)]
    page.submit("discard", [("scope", "match"), ("source", "s1"), ("confirm", "yes")])
    acts = [(deed.name, deed.total, deed.act.by) for deed in store.acts(9)]
    assert acts == [("discard", 6, "page"), ("retry", 3, "command")] and store.audit().gap == 0


def test_numbers_of_an_open_page_come_as_json(page, store):
    bury(store)
    status, text, headers = page.ask(path="/dashboard/live.json")
    news = json.loads(text)
    assert status == 200 and headers["content-type"] == "application/json"
    assert headers["connection"] == "close" and headers["cache-control"] == "no-store"
    assert (
        news["numbers"]["dead"] == "1"
        and news["level"] == "bad"
        and "No workers are running" in news["verdict"][0][0]
    )
    assert page.ask("POST", "/dashboard/live.json")[0] == 405


def test_any_number_of_open_pages_stays_live(page, store):
    """The 41st, too: each asks again and again, and holds nothing in between."""
    bury(store)

    def one(_):
        mine = Page(page.port)
        return [mine.ask(path="/dashboard/live.json")[0] for _ in range(3)]

    with ThreadPoolExecutor(41) as pages:
        assert list(pages.map(one, range(41))) == [[200] * 3] * 41


def test_open_page_is_told_when_redis_is_away(running, private_redis):
    port = free_port()
    running("dashboard.py", redis=private_redis, DASHBOARD_PORT=port).saw("process.start")
    made = Page(port)
    assert until(lambda: made.ask(path="/readyz")[0] == 200)
    private_redis.stop()
    status, text, _ = made.ask(path="/dashboard/live.json")
    news = json.loads(text)
    assert status == 200 and news["level"] == "bad" and "Redis is away" in news["verdict"][0][0]


def test_static_files_have_a_tag_and_are_small(page):
    total = 0
    for name in ("app.css", "app.js"):
        status, text, headers = page.ask(path=f"/static/{name}")
        assert status == 200 and headers["etag"]
        assert (
            page.ask(path=f"/static/{name}", headers={**LOGIN, "If-None-Match": headers["etag"]})[0]
            == 304
        )
        total += len(text)
    assert total + len(page.ask()[1]) < 60_000


def test_without_supervisord_heartbeats_are_shown_and_it_says_so(page, store):
    store.beat({"at": time.time(), "up_s": 5, "pid": 4242, "done": 0, "job": None})
    text = page.ask()[1]
    assert "supervisord does not answer" in text and "4242" in text and "heartbeat" in text


def test_silent_and_spooling_hosts_are_named(page, store):
    began = time.monotonic()
    for name, ago_s, spooled in (("quiet<b>", 30, 1204), ("busy", -100, 7), ("fine", -100, 0)):
        facts = json.dumps({"pid": 77, "up_s": 3600, "connections": 3, "spooled": spooled})
        store.redis.hset(
            key("ingestion"), f"ingest-{name}-77-a", f"{store.now() - ago_s}\n{name}\n{facts}"
        )
    text = page.ask()[1]
    (ago_s,) = re.findall(
        "Ingestion on quiet&lt;b&gt; was last heard from (\\d+) s ago, with 1,204 deliveries in its spool.",
        text,
    )
    assert 30 <= int(ago_s) <= 30 + time.monotonic() - began
    assert "The spool of busy has 7 deliveries." in text and "The spool of fine" not in text
    assert f"silent for {ago_s} s" in text and text.count("3 connections, ") == 3


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:9", 200), ("10.0.0.7", 200), ("dash.example.com", 200), ("DASH.example.com:443", 200),
     ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421), ("example.com", 421)],
)  # fmt: skip
def test_host_must_be_known(running, store, host, status):
    port = free_port()
    running("dashboard.py", DASHBOARD_PORT=port, DASHBOARD_NAMES="dash.example.com, other").saw(
        "process.start"
    )
    made = Page(port)
    until(lambda: made.up())
    assert made.ask(headers={**LOGIN, "Host": host})[0] == status


def test_guesses_at_the_password_are_slowed_down(page):
    for _ in range(5):
        page.ask(headers={"Authorization": "Basic eDp5"})
    started = time.monotonic()
    assert (
        page.ask(headers={"Authorization": "Basic eDp5"})[0] == 401
        and time.monotonic() - started > 0.9
    )
    assert page.ask()[0] == 200


def test_retry_by_post_puts_it_back_and_get_does_not(page, store):
    made = bury(store)
    assert page.ask(path=f"/dashboard/retry?id={made.id}")[0] == 405
    assert store.audit().dead == 1
    status, _, headers = page.post("retry", made.id)
    assert status == 303 and "Put%20back" in headers["location"]
    assert (store.audit().ready, store.audit().gap) == (1, 0)


@pytest.mark.parametrize(
    ("token", "headers"),
    [
        ("", {}),
        ("0" * 64, {}),
        (None, {"Origin": "http://evil.example"}),
        (None, {"Sec-Fetch-Site": "cross-site"}),
        ("é", {}),
    ],
)
def test_form_of_another_page_changes_nothing(page, store, token, headers):
    made = bury(store)
    assert page.post("retry", made.id, token, headers)[0] == 403
    assert store.audit().dead == 1


def test_id_that_is_no_dead_letter_is_told(page, store):
    bury(store)
    for id in ("nosuch", "", "%00%0d%0aX:1"):
        status, _, headers = page.post("retry", id)
        assert (
            status == 303
            and re.search("o%20dead%20letter|None%20was%20ticked", headers["location"])
            and "x" not in headers
        )


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
        (
            b"POST /dashboard/retry HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
            413,
        ),
        (
            b"POST /dashboard/retry HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            411,
        ),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000, 431),
    ],
)
def test_bad_request_gets_its_code(page, request_, status):
    with socket.create_connection(("127.0.0.1", page.port), 10) as s:
        s.sendall(request_)
        assert s.recv(4096).startswith(b"HTTP/1.1 %d " % status)


def test_filter_holds_from_the_list_to_the_act(page, store):
    made = [bury(store, error=error) for error in ("Other: no", "ValueError: no", "ValueError: no")]
    text = page.ask(path="/dashboard/dead?error=Other")[1]
    assert "1 match" in text and '<input type="hidden" name="error" value="Other">' in text
    text = page.submit("discard", [("scope", "match"), ("error", "Other")])[1]
    assert "1 dead letter" in text and "error Other" in text
    fields = [
        (name, html.unescape(value))
        for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text)
    ]
    page.ask("POST", "/dashboard/discard", urlencode(fields), {**LOGIN, **FORM})
    assert set(dead_ids(store)) == {d.id for d in made[1:]}


def test_silent_connections_keep_nobody_out(page):
    silent = [socket.create_connection(("127.0.0.1", page.port), 5) for _ in range(100)]
    started = time.monotonic()
    assert page.ask(path="/livez")[0] == 200 and page.ask()[0] == 200
    assert time.monotonic() - started < wire.HEAD_S - 2
    for sock in silent:
        sock.close()


def test_delivery_that_is_sent_again_keeps_its_state(page, store):
    made = accepted(store)[0]
    store.settle(
        [Settled(store.lease({"github": 1}, 100)[0], "done", {"attempt": 1, "event_type": "push"})]
    )
    assert store.accept([(made._replace(id=made.id[:-1] + "9"), 604_800)]) == [made.id]
    assert "<dd>done</dd>" in page.ask(path=f"/dashboard/deliveries/{made.id}")[1]
    assert re.search(rf"{made.id}</code></a></th><td>done</td>", page.ask()[1])


@pytest.mark.parametrize("path", ["/dashboard?", "/dashboard/dead?"])
def test_too_many_fields_get_400_and_a_sentence(page, path):
    status, text, _ = page.ask(path=path + "&".join(f"a{n}=1" for n in range(300)))
    assert status == 400 and "200 fields" in text


def test_search_past_its_end_says_so(page, store):
    bury(store, error="Timeout: no")
    assert "No more match" in page.ask(path="/dashboard/dead?q=timeout&page=5")[1]


def test_signature_of_every_scheme_is_hidden(page, store):
    head = "".join(
        f"{name}: marked\r\n" for scheme in SCHEMES.values() for name in [scheme.header] if name
    ).encode()
    made = bury(store, head=head)
    assert "marked" not in page.ask(path=f"/dashboard/deliveries/{made.id}")[1]


def test_hup_finishes_what_is_in_hand_and_refuses_no_connection(running, store):
    port = free_port()
    program = running("dashboard.py", DASHBOARD_PORT=port)
    made = Page(port)
    until(made.up)
    for life in range(2, 4):
        program.process.send_signal(signal.SIGHUP)
        while len(program.events("process.start")) < life:
            assert made.ask(path="/livez")[0] == 200
    assert made.ask()[0] == 200
    for number in (signal.SIGHUP, signal.SIGTERM):  # the one within the handler of the other
        program.process.send_signal(number)
    assert program.process.wait(30) == 0
