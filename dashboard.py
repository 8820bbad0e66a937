#!/usr/bin/env python3
"""The operator's web page: what is where, what failed and why, the story of each delivery, and
`/metrics`.

One thread for each request (`http.server.ThreadingHTTPServer`): a page is asked for by few people,
and each waits for Redis. What strangers could abuse of http.server is replaced as in webhookd.py:
heads go through the strict parser of hookq.wire, have a time limit, and connections end after their
answer.

Safe by default: a login for everything but /livez and /readyz, acts by POST only, from our own
pages only, every value escaped, script and style from two static files, and a
Content-Security-Policy that says so. Does not promise: numbers of one moment, but those of the
ledger (hookq/operate/status.py).
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import http.server
import ipaddress
import json
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from typing import Any
from urllib.parse import parse_qs, unquote

from hookq import daemon, log, metrics, wire
from hookq.ingest.spool import SpoolFailed
from hookq.operate import dlq, pages, status
from hookq.outcome import place_of
from hookq.settings import VERSION, Settings, add_flags, load
from hookq.store import figures, reading
from hookq.store.boot import boot_check, format_is_known
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.records import Act, Search

HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
USER = "operator"
MAX_FORM = 16 * 1024
# At once: connections of anybody, each a thread, and of those who are logged in pages that ask
# Redis, and live pages.
MAX_CONNECTIONS, MAX_REQUESTS, MAX_STREAMS = 128, 32, 8
SLOT_S = 5.0  # that a page waits for others to be done
DRAIN_S = 5.0  # that those in hand are waited for at a reload or stop
STREAM_S, EVERY_S = (
    600.0,
    2.0,
)  # the browser comes again by itself; a stream without end would outlive its login
FAILED_LOGINS, FAILED_WITHIN_S, LOGIN_DELAY_S = (
    5,
    60.0,
    1.0,
)  # guesses in a minute, before each further one costs a second
SEARCH_S, DEEP_S = 0.05, 5.0  # a page answers in under 100 ms; who wants more asks for it
TOKEN_HOURS = 12  # a form left open over a working day still counts
HEADERS = (
    "Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; img-src "
    "'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: same-origin\r\nCache-Control: no-store\r\n"
)
STATIC = {
    "/static/app.css": "text/css; charset=utf-8",
    "/static/app.js": "text/javascript; charset=utf-8",
}
ACTS = ("/dashboard/retry", "/dashboard/discard", "/dashboard/restore")
DELIVERY = re.compile(r"/dashboard/deliveries/([^/]{1,300})(/body)?")

Answer = tuple[int, str, bytes, str]  # status, content type, body, extra header lines
Form = dict[str, list[str]]


class Gone(Exception):
    """The client is gone, or too slow."""


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True  # an answer that hangs does not hold up a stop

    def __init__(self, settings: Settings, inherited: socket.socket | None = None) -> None:
        self.settings = settings
        self.inherited = inherited
        self.failed_logins: deque[float] = deque(maxlen=FAILED_LOGINS)
        self.ending = False
        self.open = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.slots = threading.BoundedSemaphore(MAX_REQUESTS)
        self.streams = threading.BoundedSemaphore(MAX_STREAMS)
        super().__init__((settings.dashboard_host, settings.dashboard_port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, if there are not too many: the others are closed,
        whoever they are.
        """
        if self.open.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.open.release()

    def drain(self) -> None:
        """Take no more connections, and wait a while for those in hand: an act is not to be cut in
        the middle.
        """
        self.ending = True
        self.shutdown()
        end = time.monotonic() + DRAIN_S
        for _ in range(MAX_CONNECTIONS):
            self.open.acquire(timeout=max(0.0, end - time.monotonic()))

    def server_bind(self) -> None:
        if self.inherited:
            self.socket.close()
            self.socket = self.inherited
            return
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # without asking DNS for our own name

    def token(self, hour: int) -> str:
        """Return what a form must carry: other sites' pages cannot know it."""
        return hmac.new(
            self.settings.dashboard_password.encode(), f"form {hour}".encode(), hashlib.sha256
        ).hexdigest()

    def known(self, host: str) -> bool:
        """Tell whether a Host is ours. A page elsewhere gets in by a name of its own that it makes
        resolve to us (DNS rebinding), so an address is no danger, and names are known ones.
        """
        name = (
            host[: host.index("]") + 1].strip("[]")
            if host.startswith("[")
            else host.partition(":")[0]
        )
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name.lower() in {
                "localhost",
                self.settings.dashboard_host.lower(),
                *self.settings.dashboard_names,
            }


class Handler(http.server.BaseHTTPRequestHandler):
    """One request on one connection; of its base class only the life of the socket is used."""

    server: Server

    def handle(self) -> None:
        try:
            self._handle()
        except Gone:
            pass  # there is nobody to tell

    def _handle(self) -> None:
        end, head_only = time.monotonic() + wire.HEAD_S, False
        try:
            request, body = self._receive(end)
            head_only = request.method == "HEAD"
            answer = self._answer(request, body)
            if answer is None:
                return self._stream()
        except wire.BadRequest as bad:
            answer = bad.status, TEXT, f"{bad}.\n".encode(), ""
        except Gone:
            raise
        except (
            Exception
        ) as error:  # a fault of ours: told in the log, with its place, and as a sentence here
            log.event("page.failed", "error", error=repr(error), place=place_of(error))
            answer = 500, TEXT, b"This page failed; its log says why.\n", ""
        code, kind, content, extra = answer
        self._send(
            wire.reply(
                code,
                content,
                kind,
                self.date_time_string(),
                extra=HEADERS + extra,
                close=True,
                head_only=head_only,
            )
        )
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(
                0.2
            )  # read what is left, so that the answer is not reset away
            for _ in range(16):
                if not self.connection.recv(65536):
                    return None
        except OSError:
            pass
        return None

    def _send(self, data: bytes) -> None:
        try:
            self.connection.settimeout(wire.WRITE_S)
            self.connection.sendall(data)
        except OSError:
            raise Gone from None

    def _receive(self, end: float) -> tuple[wire.Request, bytes]:
        data = b""
        while (where := wire.head_end(data)) < 0:
            data += self._more(end)
        request = wire.parse_head(data[:where])
        length = request.length or 0
        if length > MAX_FORM:
            raise wire.BadRequest(413, f"a form is at most {MAX_FORM} bytes")
        while len(data) < where + length:
            data += self._more(end)
        return request, data[where : where + length]

    def _more(self, end: float) -> bytes:
        self.connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            data: bytes = self.connection.recv(65536)
        except TimeoutError:
            raise wire.BadRequest(408, "the request was not complete in time") from None
        except OSError:
            raise Gone from None
        if not data:
            raise Gone
        return data

    def _stream(self) -> None:
        """Send the numbers every 2 s, as server-sent events (HTML standard, section 9.2), until the
        browser goes.
        """
        if not self.server.streams.acquire(blocking=False):
            full = wire.reply(
                503,
                b"Too many pages are live.\n",
                TEXT,
                self.date_time_string(),
                extra=HEADERS,
                close=True,
            )
            self._send(full)
            return
        try:
            head = (
                "HTTP/1.1 200 OK\r\nServer: webhookd\r\nContent-Type: "
                f"text/event-stream\r\n{HEADERS}Connection: close\r\n\r\n"
            )
            self._send(f"{head}retry: 5000\n\n".encode())
            end = time.monotonic() + STREAM_S
            while time.monotonic() < end and not self.server.ending:
                self._send(f"data: {json.dumps(self._news())}\n\n".encode())
                time.sleep(EVERY_S)
        finally:
            self.server.streams.release()

    def _news(self) -> dict[str, Any]:
        store = self._store()
        try:
            found = status.gather(store, self.server.settings)
            level, clauses = status.verdict(found)
            texts = {key: number for key, (_, number, _) in status.numbers(found).items()}
            texts |= {f"{key}-note": note for key, (_, _, note) in status.numbers(found).items()}
            return {"level": level, "verdict": clauses, "numbers": texts}
        except Away as error:
            return {
                "level": "bad",
                "verdict": [(f"Redis is away: {error}", "/dashboard")],
                "numbers": {},
            }
        finally:
            store.close()

    # ---------------- who may

    def _answer(self, request: wire.Request, body: bytes) -> Answer | None:
        """Return the answer, or None for the stream of events."""
        if request.path in ("/livez", "/readyz"):
            return self._health(request.path)
        if not self.server.known(request.fields.get("host", "")):
            return (
                421,
                TEXT,
                b"This Host is not known here: open the page by its address, or add the name "
                b"to DASHBOARD_NAMES.\n",
                "",
            )
        if not self._logged_in(request):
            how = b"The login is user operator, with DASHBOARD_PASSWORD of .env.\n"
            return 401, TEXT, how, 'WWW-Authenticate: Basic realm="webhookd", charset="UTF-8"\r\n'
        if not self.server.slots.acquire(timeout=SLOT_S):
            return 503, TEXT, b"Too many pages are being made: try again.\n", "Retry-After: 5\r\n"
        try:
            return self._route(request, body)
        except Away as error:
            if (
                request.path == "/metrics"
            ):  # a scrape that fails would only say that the page is down
                return (
                    200,
                    PROMETHEUS,
                    "".join(metrics.text(None, {"webhookd_redis_up": [({}, 0)]}, ())).encode(),
                    "",
                )
            return 503, HTML, self._away(str(error)), "Refresh: 5\r\n"
        finally:
            self.server.slots.release()

    def _client(self, request: wire.Request) -> str:
        return wire.client_of(
            self.client_address[0],
            request.fields.get("x-forwarded-for", ""),
            self.server.settings.trusted_proxies,
        )

    def _logged_in(self, request: wire.Request) -> bool:
        given = request.fields.get("authorization", "")
        expected = base64.b64encode(f"{USER}:{self.server.settings.dashboard_password}".encode())
        kind, _, credentials = given.partition(" ")
        good = (
            hmac.compare_digest(credentials.strip().encode("latin-1"), expected)
            and kind.lower() == "basic"
        )
        if credentials and not good:
            now, before = time.monotonic(), self.server.failed_logins
            log.event("login.reject", "warning", client=self._client(request))
            slow = len(before) == FAILED_LOGINS and now - before[0] < FAILED_WITHIN_S
            before.append(now)
            if slow:
                time.sleep(LOGIN_DELAY_S)
        return good

    def _own_form(self, request: wire.Request, form: Form) -> bool:
        """Tell whether our own page sent this form, by what the browser says of it and by its
        token. `Sec-Fetch-Site` is missing on plain HTTP from another machine, `Origin` from old
        browsers: the token is asked for in any case.
        """
        site, origin = request.fields.get("sec-fetch-site"), request.fields.get("origin")
        if site not in (None, "same-origin") or (
            origin is not None and origin.partition("://")[2] != request.fields.get("host")
        ):
            return False
        hour, given = int(time.time() // 3600), first(form, "token").encode()
        return any(
            hmac.compare_digest(given, self.server.token(hour - n).encode())
            for n in range(TOKEN_HOURS)
        )

    # ---------------- what

    def _health(self, path: str) -> Answer:
        if path == "/readyz":
            try:
                Client(self.server.settings.redis_url, "dashboard", timeout_s=1.0).ping()
            except Away:
                return 503, TEXT, b"Redis is away\n", ""
        return 200, TEXT, b"ok\n", ""

    def _store(self) -> Client:
        return Client(self.server.settings.redis_url, daemon.name_of("dashboard"), timeout_s=2.0)

    def _frame(self, query: Form, now: float) -> pages.Frame:
        return pages.Frame(
            self.server.token(int(time.time() // 3600)), first(query, "notice")[:300], now
        )

    def _away(self, why: str) -> bytes:
        try:
            kept = (
                "Deliveries go into the spool meanwhile; this machine's holds "
                f"{dlq.spool_size(self.server.settings.state_dir)[0]:,}."
            )
        except SpoolFailed as error:
            kept = str(error)
        then = (
            "Look at `supervisorctl -c supervisord.conf status` and at redis.log. This page tries "
            "again every 5 seconds."
        )
        return pages.page(
            "message",
            title="Redis is away",
            text=f"It cannot be asked what is where: {why}. {kept}",
            then=then,
        )

    def _route(self, request: wire.Request, body: bytes) -> Answer | None:
        path = request.path
        if path in ("/", "/dashboard/"):
            return 303, TEXT, b"", "Location: /dashboard\r\n"
        if path == "/favicon.ico":  # browsers ask by themselves; there is none
            return 204, TEXT, b"", ""
        delivery = DELIVERY.fullmatch(path)
        if not delivery and path not in (
            "/dashboard",
            "/dashboard/dead",
            "/dashboard/events",
            "/metrics",
            *STATIC,
            *ACTS,
        ):
            return 404, TEXT, b"There is nothing here; the page is /dashboard.\n", ""
        wanted = ("POST",) if path in ACTS else ("GET", "HEAD")
        if request.method not in wanted:
            return (
                405,
                TEXT,
                f"Only {wanted[0]} is possible here.\n".encode(),
                f"Allow: {', '.join(wanted)}\r\n",
            )
        if path in STATIC:
            return self._static(request)
        if path == "/dashboard/events" and request.method == "GET":
            return None
        query, form = fields_of(request.query), fields_of(body.decode("utf-8", "replace"))
        store = self._store()
        try:
            if path in ACTS:
                return self._act(store, request, form)
            if path == "/metrics":
                return 200, PROMETHEUS, metrics_text(store, self.server.settings).encode(), ""
            if path == "/dashboard/dead":
                return self._dead(store, query)
            if delivery:
                return self._delivery(
                    store, unquote(delivery[1], errors="replace"), bool(delivery[2]), query
                )
            found = status.gather(store, self.server.settings)
            return 200, HTML, pages.overview(found, self._frame(query, found.now)), ""
        finally:
            store.close()

    def _static(self, request: wire.Request) -> Answer:
        content = (pages.TEMPLATES / request.path.rpartition("/")[2]).read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        extra = f"ETag: {tag}\r\n"
        if request.fields.get("if-none-match") == tag:
            return 304, STATIC[request.path], b"", extra
        return 200, STATIC[request.path], content, extra

    def _dead(self, store: Client, query: Form) -> Answer:
        texts = {name: first(query, name) for name in pages.FILTER}
        given = first(query, "page") or "1"
        number, now = int(given) if re.fullmatch(r"[1-9][0-9]{0,6}", given) else 1, store.now()
        try:
            search = search_of(texts, now)
        except dlq.Nonsense as error:
            back = pages.part("link", href="/dashboard/dead", text="All dead letters")
            return (
                400,
                HTML,
                pages.page("message", title="Dead letters", text=str(error), then=back),
                "",
            )
        within_s = DEEP_S if first(query, "deep") else SEARCH_S
        selected = dlq.select(
            store, search, (number - 1) * pages.ROWS, pages.ROWS + 1, newest=True, within_s=within_s
        )
        chosen = list(dlq.jobs(store, selected))
        return (
            200,
            HTML,
            pages.dead_list(
                chosen, selected, reading.audit(store), texts, number, self._frame(query, now)
            ),
            "",
        )

    def _delivery(self, store: Client, id: str, download: bool, query: Form) -> Answer:
        try:
            found = dlq.story(store, id)
        except dlq.NoSuch as error:
            return (
                404,
                HTML,
                pages.page("message", title="No such delivery", text=str(error), then=""),
                "",
            )
        if not download:
            return (
                200,
                HTML,
                pages.delivery(found, first(query, "view"), self._frame(query, store.now())),
                "",
            )
        if found.delivery is None:
            return (
                404,
                TEXT,
                f"The body is not kept any more: the job is {found.state}.\n".encode(),
                "",
            )
        return (
            200,
            "application/octet-stream",
            found.delivery.body,
            f'Content-Disposition: attachment; filename="{found.id}.bin"\r\n',
        )

    def _act(self, store: Client, request: wire.Request, form: Form) -> Answer:
        """Do what the form says, then send the browser back with a notice: a reload of the page
        repeats nothing.
        """
        if not self._own_form(request, form):
            return (
                403,
                TEXT,
                b"This form did not come from a page of this dashboard, or is over 11 hours "
                b"old: reload the page.\n",
                "",
            )
        verb, act = (
            request.path.rpartition("/")[2],
            dlq.actor("page", f"{USER} from {self._client(request)}"),
        )
        back = "/dashboard/dead" if "scope" in form or "only" in form else "/dashboard"
        if first(form, "back"):
            back = f"/dashboard/deliveries/{wire.quoted(first(form, 'back'))}"
        try:
            if verb != "restore" and first(form, "scope") == "match" and not first(form, "only"):
                asked = self._ask(store, verb, form)
                if asked:
                    return asked
            notice = do(store, verb, form, act)
        except (dlq.NoSuch, dlq.Nonsense) as error:
            notice = str(error)
        return 303, TEXT, b"", f"Location: {back}?notice={wire.quoted(notice)}\r\n"

    def _ask(self, store: Client, verb: str, form: Form) -> Answer | None:
        """Return the page that asks before an act on all that match, None when it has been
        asked.
        """
        if first(form, "confirm"):
            return None
        now = store.now()
        texts = {name: first(form, name) for name in pages.FILTER}
        search = search_of(texts, now)
        search = search._replace(until=min(now, search.until))
        ids = list(dlq.select(store, search, limit=dlq.PAGE_LIMIT).numbers)
        if not ids:
            raise dlq.NoSuch("None match any more.")
        ends = reading.parked(store, [ids[0], *ids[1:][-4:]])
        if not ends:
            raise dlq.NoSuch("Somebody else has just moved these: look again.")
        return 200, HTML, pages.confirm(verb, ids, ends, search, texts, self._frame({}, now)), ""

    def log_message(self, *_: Any) -> None:
        """http.server's own lines have another form; acts and refusals are logged where they
        happen.
        """


def fields_of(text: str) -> Form:
    """Return the fields of a query or a form. Raises BadRequest."""
    try:
        return parse_qs(text, max_num_fields=200)
    except ValueError:
        raise wire.BadRequest(400, "there are more than 200 fields") from None


def first(form: Form, name: str) -> str:
    return form.get(name, [""])[0]


def search_of(texts: dict[str, str], now: float) -> Search:
    """Return what the page's filter selects; `q` is its search field. Raises Nonsense."""
    return dlq.search_of(
        {**texts, "text": texts.get("q", ""), "event_type": texts.get("type", "")}, now
    )


def do(store: Client, verb: str, form: Form, act: Act) -> str:
    """Do one act of the page; return what was done. Raises NoSuch, Nonsense."""
    if verb == "restore":
        if first(form, "only"):
            return f"Restored {dlq.restore_one(store, first(form, 'only'), act)}."
        batch, moved = dlq.restore(store, first(form, "batch"), act)
        return f"Restored {dlq.counted(len(moved))} of batch {batch}."
    ids = tuple(form["only"][:1] if first(form, "only") else form.get("id", []))
    if ids or first(form, "scope") != "match":
        search = Search(ids=ids)
        if not ids:
            raise dlq.NoSuch("None was ticked.")
    else:
        texts = {name: first(form, name) for name in pages.FILTER}
        search = search_of(texts, store.now())
    moved = (dlq.retry if verb == "retry" else dlq.discard)(store, search, act, dlq.PAGE_LIMIT)
    if not moved:
        raise dlq.NoSuch(
            "No dead letter any more: somebody else has put back or discarded what was chosen."
        )
    named = moved[0] if len(moved) == 1 else dlq.counted(len(moved))
    left = (
        f" {len(ids) - len(moved)} were no dead letters any more." if len(ids) > len(moved) else ""
    )
    if verb == "retry":
        return f"Put back {named}.{left}"
    return (
        f"Discarded {named} (batch {act.act}).{left} They can be restored for 24 h, below on the "
        f"overview or by dlqctl --undo {act.act}."
    )


def metrics_text(store: Client, settings: Settings) -> str:
    """Return /metrics: counters from Redis, gauges from the structures themselves."""
    began = time.perf_counter()
    store.raise_counters(log.take_counts())
    found, memory = status.gather(store, settings), store.memory()
    gauges = metrics.gauges_of(
        found, memory, VERSION, platform.python_version(), time.perf_counter() - began
    )
    return "".join(metrics.text(figures.metrics(store), gauges, found.audit.sources))


def serve_until_asked(settings: Settings, signals: daemon.Signals, woken: socket.socket) -> None:
    """Return when a stop or a reload is wanted; end beside the data of a newer version."""
    known = False
    while not (signals.stop or daemon.reload_wanted(signals)):
        try:
            known = known or format_is_known(settings.redis_url, "dashboard")
        except NewerData as error:
            daemon.refuse_newer(str(error))
        woken.settimeout(None if known else EVERY_S)
        with contextlib.suppress(TimeoutError):
            woken.recv(4096)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="dashboard.py", description="The operator's web page.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    add_flags(parser, "DASHBOARD_HOST", "DASHBOARD_PORT", "STATE_DIR", "WEBHOOKS_FILE")
    daemon.add_check(parser)
    args = parser.parse_args()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}

    def read_settings() -> Settings:
        return load(flags, root=daemon.root(), need=("DASHBOARD_PASSWORD",), sources=False)

    # The kernel may hand a signal to any thread, and Python runs its handler in this one: it must
    # be woken for that.
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signals = daemon.Signals()
    settings = daemon.load_or_exit(read_settings)
    if args.check:
        daemon.end_check(settings)
    try:
        server = Server(settings, daemon.inherited_socket())
    except OSError as error:
        where = f"{settings.dashboard_host}:{settings.dashboard_port}"
        sys.exit(
            f"{where} cannot be listened on: {error.strerror}. Set DASHBOARD_HOST and "
            "DASHBOARD_PORT to a free address."
        )
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True
    ).start()
    log.event("process.start", program="dashboard", version=VERSION)
    boot_check(settings.redis_url, daemon.name_of("dashboard"), settings.durability)
    serve_until_asked(settings, signals, woken)
    server.drain()
    if not signals.stop:
        daemon.reexec(server.socket)
    log.event("process.end", program="dashboard")


if __name__ == "__main__":
    main()
