#!/usr/bin/env python3
"""The operator's web page: what is where, what failed, and `/metrics`.

One thread for each request (`http.server.ThreadingHTTPServer`): a page is asked for by few people, and each waits
for Redis. What strangers could abuse of http.server is replaced as in webhookd.py: heads go through the strict
parser of hookq.wire, have a time limit, and connections end after their answer.

Safe by default: a login for everything but /livez and /readyz, acts by POST only with a token from our own page, every
value escaped, no script, and a Content-Security-Policy that says so.
"""

import argparse
import base64
import hashlib
import hmac
import html
import http.server
import socket
import string
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from hookq import dlq, log, process, wire
from hookq.config import VERSION, Config, add_flags, load
from hookq.handlers import place_of
from hookq.store import Act, Away, Parked, Search, Store

TEMPLATES = Path(__file__).with_name("templates")
HTML, TEXT = "text/html; charset=utf-8", "text/plain; charset=utf-8"
USER = "operator"
ROWS = 25
MAX_FORM = 4096
MAX_REQUESTS = 32  # at once: a page that hangs on Redis must not become a thousand threads
FAILED_LOGINS, LOGIN_DELAY_S = 5, 1.0  # guesses in a row, before each further one costs a second
HEADERS = (
    "Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: same-origin\r\nCache-Control: no-store\r\n"
)

Answer = tuple[int, str, bytes, str]  # status, content type, body, extra header lines


class Markup(str):
    """Text that `page` has made: it is not escaped again."""


def page(name: str, /, **values: object) -> Markup:
    """Return templates/<name> with every value escaped, unless it is Markup. Children are rendered first, never twice."""
    safe = {key: value if isinstance(value, Markup) else html.escape(log.printable(str(value))) for key, value in values.items()}
    return Markup(string.Template((TEMPLATES / name).read_text()).substitute(safe))


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True  # an answer that hangs does not hold up a stop

    def __init__(self, settings: Config) -> None:
        self.settings = settings
        self.failed_logins = 0
        self.slots = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__((settings.dashboard_host, settings.dashboard_port), Handler)

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)  # without asking DNS for our own name

    def token(self, hour: int) -> str:
        """Return what a form must carry: other sites' pages cannot know it."""
        return hmac.new(self.settings.dashboard_password.encode(), f"form {hour}".encode(), hashlib.sha256).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request on one connection; of its base class only the life of the socket is used."""

    server: Server

    def handle(self) -> None:
        if not self.server.slots.acquire(timeout=wire.WRITE_S):
            return
        try:
            self._handle()
        except OSError:
            pass  # the client is gone or too slow; there is nobody to tell
        finally:
            self.server.slots.release()

    def _handle(self) -> None:
        end = time.monotonic() + wire.HEAD_S
        try:
            request, body = self._receive(end)
            status, kind, content, extra = self._answer(request, body)
            head_only = request.method == "HEAD"
        except wire.BadRequest as bad:
            status, kind, content, extra, head_only = bad.status, TEXT, f"{bad}.\n".encode(), "", False
        except OSError:
            raise
        except Exception as error:  # a fault of ours: told in the log, with its place, and as a sentence here
            log.event("page.failed", "error", error=repr(error), place=place_of(error))
            status, kind, content, extra, head_only = 500, TEXT, b"This page failed; its log says why.\n", "", False
        date = self.date_time_string()
        reply = wire.reply(status, content, kind, date, extra=HEADERS + extra, close=True, head_only=head_only)
        self.connection.settimeout(wire.WRITE_S)
        self.connection.sendall(reply)
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(0.2)  # read what is left, so that the answer is not reset away
        for _ in range(16):
            if not self.connection.recv(65536):
                return

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
        if not data:
            raise ConnectionResetError
        return data

    # ---------------- who may

    def _answer(self, request: wire.Request, body: bytes) -> Answer:
        if request.path in ("/livez", "/readyz"):
            return self._health(request.path)
        if not self._known(request.fields.get("host", "")):
            return 421, TEXT, b"This Host is not known here: open the page by the address it is bound to.\n", ""
        if not self._logged_in(request.fields.get("authorization", "")):
            return (
                401,
                TEXT,
                b"The login is user operator, with DASHBOARD_PASSWORD of .env.\n",
                'WWW-Authenticate: Basic realm="webhookd"\r\n',
            )
        try:
            return self._route(request, body)
        except Away as error:
            return 503, HTML, page("away.html", why=str(error)).encode(), "Refresh: 5\r\n"

    def _known(self, host: str) -> bool:
        """Tell whether the Host is ours: a foreign name that resolves to us is how a page elsewhere would get in."""
        settings = self.server.settings
        name, _, port = host.rpartition(":") if ":" in host else (host, "", "")
        bound = settings.dashboard_host
        return bound == "0.0.0.0" or (name or port) in (bound, "localhost", "127.0.0.1")  # noqa: S104

    def _logged_in(self, given: str) -> bool:
        expected = base64.b64encode(f"{USER}:{self.server.settings.dashboard_password}".encode())
        kind, _, credentials = given.partition(" ")
        good = hmac.compare_digest(credentials.strip().encode("latin-1"), expected) and kind.lower() == "basic"
        if credentials and not good:
            self.server.failed_logins += 1
            log.event("login.reject", "warning", client=self.client_address[0])
            if self.server.failed_logins > FAILED_LOGINS:
                time.sleep(LOGIN_DELAY_S)
        elif good:
            self.server.failed_logins = 0
        return good

    def _own_form(self, request: wire.Request, form: dict[str, list[str]]) -> bool:
        """Tell whether our own page sent this form, by what the browser says of it and by its token."""
        fields = request.fields
        site, origin = fields.get("sec-fetch-site"), fields.get("origin")
        if site not in (None, "same-origin") or (origin is not None and origin.partition("://")[2] != fields.get("host")):
            return False
        hour, given = int(time.time() // 3600), form.get("token", [""])[0].encode()
        return any(hmac.compare_digest(given, self.server.token(hour - n).encode()) for n in range(12))

    # ---------------- what

    def _health(self, path: str) -> Answer:
        if path == "/readyz":
            try:
                Store(self.server.settings.redis_url, "dashboard", timeout_s=1.0).ping()
            except Away:
                return 503, TEXT, b"Redis is away\n", ""
        return 200, TEXT, b"ok\n", ""

    def _route(self, request: wire.Request, body: bytes) -> Answer:
        acts = {"/dashboard/retry", "/dashboard/discard", "/dashboard/restore"}
        pages = {"/dashboard", "/metrics", "/static/app.css"}
        if request.path == "/":
            return 303, TEXT, b"", "Location: /dashboard\r\n"
        if request.path not in acts | pages:
            return 404, TEXT, b"There is nothing here; the page is /dashboard.\n", ""
        wanted = ("POST",) if request.path in acts else ("GET", "HEAD")
        if request.method not in wanted:
            return 405, TEXT, f"Only {wanted[0]} is possible here.\n".encode(), f"Allow: {', '.join(wanted)}\r\n"
        if request.path == "/static/app.css":
            return 200, "text/css; charset=utf-8", (TEMPLATES / "app.css").read_bytes(), ""
        store = Store(self.server.settings.redis_url, process.name_of("dashboard"), timeout_s=2.0)
        try:
            if request.path == "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", "".join(metrics(store)).encode(), ""
            if request.path == "/dashboard":
                return 200, HTML, self._overview(store, request.query).encode(), ""
            return self._act(store, request, body)
        finally:
            store.close()

    def _overview(self, store: Store, query: str) -> str:
        audit, beats, now = dlq.audit(store, self.server.settings.state_dir), store.workers(), time.time()
        live = {name: beat for name, beat in beats.items() if now - beat["at"] < 10}
        dead = [job for _, job in dlq.jobs(store, dlq.select(store, Search(), limit=ROWS))]
        token = self.server.token(int(now // 3600))
        names = ("ready", "leased", "retry", "dead", "done", "discarded", "spooled", "accepted", "gap")
        shown = {name: "unknown" if audit[name] is None else f"{audit[name]:,}" for name in names}
        sources = [page("source.html", name=name, ready=n["ready"], leased=n["leased"]) for name, n in sorted(audit["sources"].items())]
        return page(
            "dashboard.html",
            verdict=verdict(audit, len(live)),
            notice=parse_qs(query).get("notice", [""])[0][:200],
            risks=" ".join(store.health()[1]),
            counts=Markup("".join(page("count.html", name=name, number=number) for name, number in shown.items())),
            sources=Markup("".join(sources) or page("empty.html", text="Nothing received yet. Send one: webhookd.py --send", columns=3)),
            dead=Markup(
                "".join(dead_rows(dead, now, token)) or page("empty.html", text="None. A job lands here when no retry can help.", columns=6)
            ),
            workers=Markup(
                "".join(worker_rows(live, now))
                or page("empty.html", text="Nothing is taking jobs. Start: supervisorctl start worker:*", columns=4)
            ),
            shown=len(dead),
            total=audit["dead"],
            version=VERSION,
        )

    def _act(self, store: Store, request: wire.Request, body: bytes) -> Answer:
        """Do what the form says, then send the browser back with a notice: a reload of the page repeats nothing."""
        form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=20)
        if not self._own_form(request, form):
            return 403, TEXT, b"This form did not come from a page of this dashboard, or is over 11 hours old: reload the page.\n", ""
        act, id = request.path.rpartition("/")[2], form.get("id", [""])[0]
        try:
            notice = act_on(store, act, id, dlq.actor("page", f"{USER} from {self.client_address[0]}"))
        except dlq.NoSuch as error:
            notice = str(error)
        return 303, TEXT, b"", f"Location: /dashboard?notice={wire.quoted(notice)}\r\n"

    def log_message(self, *_: Any) -> None:
        """http.server's own lines have another form; acts and refusals are logged where they happen."""


def act_on(store: Store, verb: str, id: str, act: Act) -> str:
    """Do one act of the page on a whole id (restore: on a batch); return what was done. Raises NoSuch."""
    if verb == "restore":
        batch, moved = dlq.restore(store, id, act)
        return f"Restored {len(moved)} of batch {batch}."
    moved = (dlq.retry if verb == "retry" else dlq.discard)(store, Search(ids=(id,)), act)
    if not moved:
        raise dlq.NoSuch(f"{log.printable(id) or 'That'} is no dead letter any more: somebody else has put it back or discarded it.")
    return f"Put back {id}." if verb == "retry" else f"Discarded {id} (batch {act.act}; back: dlqctl --undo {act.act})."


# ---------------- parts of the page


def verdict(audit: dict[str, Any], workers: int) -> str:
    """Return one sentence, always true, the worst first."""
    if audit["gap"]:
        return f"The ledger's gap is {audit['gap']}: what was accepted and what is there differ."
    if not workers:
        return f"No workers are running and {audit['ready']:,} jobs are ready."
    dead = f"{dlq.counted(audit['dead'])}." if audit["dead"] else "No dead letters."
    return f"{workers} worker{'' if workers == 1 else 's'} up. {audit['ready']:,} ready. {dead}"


def dead_rows(dead: list[Parked], now: float, token: str) -> Iterator[str]:
    for job in dead:
        facts = {"id": job.id, "source": job.source, "event_type": job.event_type, "attempts": job.attempt}
        yield page("dead.html", **facts, age=dlq.age(now - job.at), error=dlq.why(job)[:300], token=token)


def worker_rows(live: dict[str, dict[str, Any]], now: float) -> Iterator[str]:
    for name, beat in sorted(live.items()):
        job = beat.get("job")
        hand = f"{job['id']} for {job['for_s']} s" if job else "idle"
        yield page("worker.html", name=name, pid=beat["pid"], up=int(now - beat["started_at"]), hand=hand)


COUNTERS = {  # in Redis: <name>:<label value>[:<label value>]
    "accepted": ("webhookd_accepted_total", ("source",)),
    "duplicates": ("webhookd_duplicates_total", ("source",)),
    "rejected": ("webhookd_rejected_total", ("source", "reason")),
    "http": ("webhookd_http_requests_total", ("source", "code")),
    "attempts": ("webhookd_attempts_total", ("source", "outcome")),
    "dead": ("webhookd_dead_total", ("source", "reason")),
    "reclaimed": ("webhookd_reclaimed_total", ("source",)),
    "redriven": ("webhookd_redriven_total", ("by",)),
    "discarded": ("webhookd_discarded_total", ("by",)),
    "restored": ("webhookd_restored_total", ("by",)),
}


def metrics(store: Store) -> Iterator[str]:
    """Yield lines of the Prometheus text format: counters from Redis, gauges from the structures themselves."""
    audit, counters = store.audit(), store.metrics()
    for name, (exported, labels) in COUNTERS.items():
        yield f"# TYPE {exported} counter\n"
        for field, value in sorted(counters.items()):
            parts = field.split(":")
            if parts[0] == name and len(parts) == len(labels) + 1:
                told = ",".join(f'{label}="{part}"' for label, part in zip(labels, parts[1:], strict=True))
                yield f"{exported}{{{told}}} {value}\n"
    yield "# TYPE webhookd_jobs gauge\n"
    for source, found in sorted(audit["sources"].items()):
        for state in ("ready", "leased"):
            yield f'webhookd_jobs{{source="{source}",state="{state}"}} {found[state]}\n'
    for state in ("retry", "dead"):
        yield f'webhookd_jobs{{source="",state="{state}"}} {audit[state]}\n'
    yield f"# TYPE webhookd_ledger_gap gauge\nwebhookd_ledger_gap {audit['gap']}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="dashboard.py", description="The operator's web page.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    add_flags(parser, "DASHBOARD_HOST", "DASHBOARD_PORT", "STATE_DIR", "WEBHOOKS_FILE")
    parser.add_argument("--check", action="store_true", help="test the settings and say what is wrong")
    args = parser.parse_args()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}

    def read_settings() -> Config:
        return load(flags, root=process.root(), need=("DASHBOARD_PASSWORD",), sources=False)

    asked = threading.Event()
    signals = process.Signals()
    signals.wake = asked.set
    settings = process.load_or_exit(read_settings, check=args.check)
    try:
        server = Server(settings)
    except OSError as error:
        where = f"{settings.dashboard_host}:{settings.dashboard_port}"
        sys.exit(f"{where} cannot be listened on: {error.strerror}. Set DASHBOARD_HOST and DASHBOARD_PORT to a free address.")
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    log.event("process.start", program="dashboard", version=VERSION)
    process.boot_check(settings.redis_url, process.name_of("dashboard"))
    while True:
        asked.wait()
        asked.clear()
        if signals.stop or process.reload_wanted(signals):
            break
    server.shutdown()
    if not signals.stop:
        process.reexec()
    log.event("process.end", program="dashboard")


if __name__ == "__main__":
    main()
