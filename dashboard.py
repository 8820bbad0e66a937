#!/usr/bin/env python3
"""The operator's web page: what is where, what failed and why, the story of each delivery, and
`/metrics`.

Here is what each path answers, as a table of routes, and the acts. The connections, the login and
the limits are in hookq/operate/web.py, the markup in hookq/operate/pages.py.

Rules: acts by POST only, from our own pages only; a page reads, an act answers with a redirect and
a notice, so that a reload repeats nothing. A page that stays open asks for `/dashboard/live.json`
every two seconds, and holds no connection in between. Does not promise: numbers of one moment,
except those of the ledger (hookq/operate/status.py).
"""

import argparse
import contextlib
import hashlib
import json
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple
from urllib.parse import unquote

from hookq import daemon, log, metrics, wire
from hookq.operate import dlq, markup, pages, phrases, status, story, verdict, web
from hookq.operate.audit import audit, meanwhile
from hookq.operate.delivery_page import delivery_page
from hookq.operate.web import HTML, TEXT, Answer, Form, Visit, first, text
from hookq.settings import VERSION, Settings, add_flags, load
from hookq.store import figures, reading
from hookq.store.boot import boot_check, format_is_known
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.records import Act, Search

JSON: Final = "application/json"
PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
SEARCH_S: Final = 0.05  # a page answers in under 100 ms
FORMAT_LOOK_S: Final = 2.0  # until Redis was asked whether a newer version wrote its data
DEEP_S: Final = 5.0  # for a person who asks to search all
STATIC: Final = {
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
}
OVERVIEW: Final = "/dashboard"
DEAD: Final = "/dashboard/dead"
DELIVERY: Final = "/dashboard/deliveries"


# ---------------- reading


def overview(visit: Visit, store: Client) -> Answer:
    gathered = status.gather(store, visit.settings)
    return Answer(200, HTML, pages.overview(gathered, frame(visit, gathered.now)))


def live(visit: Visit, store: Client) -> Answer:
    """Return what changes on an open overview, for app.js."""
    try:
        gathered = status.gather(store, visit.settings)
    except Away as error:
        news = verdict.Verdict("bad", [verdict.Clause(f"Redis is away: {error}", OVERVIEW)])
        return live_news(news, {})
    texts: dict[str, str] = {}
    for row in verdict.numbers(gathered):
        texts |= {row.key: row.number, f"{row.key}-note": row.note}
    return live_news(verdict.verdict(gathered), texts)


def live_news(news: verdict.Verdict, texts: dict[str, str]) -> Answer:
    body = {"level": news.level, "verdict": news.clauses, "numbers": texts}
    return Answer(200, JSON, json.dumps(body).encode())


def dead_letters(visit: Visit, store: Client) -> Answer:
    query, now = visit.query, store.now()
    texts = {name: first(query, name) for name in pages.FILTER}
    given = first(query, "page") or "1"
    number = int(given) if re.fullmatch(r"[1-9][0-9]{0,6}", given) else 1
    try:
        search = search_of(texts, now)
    except dlq.Nonsense as error:
        return message(400, "Dead letters", str(error), markup.link(DEAD, "All dead letters"))
    passed = (number - 1) * pages.ROWS
    within_s = DEEP_S if first(query, "deep") else SEARCH_S
    # One row more than fits: it shows that there is another page.
    selected = dlq.select(store, search, passed, pages.ROWS + 1, newest=True, within_s=within_s)
    rows = pages.DeadPage(list(dlq.jobs(store, selected)), selected, texts, number)
    ledger = audit(store, visit.settings.state_dir)
    return Answer(200, HTML, pages.dead_list(rows, ledger, frame(visit, now)))


def delivery(visit: Visit, store: Client) -> Answer:
    try:
        history = story.find(store, id_of(visit))
    except dlq.NoSuch as error:
        return message(404, "No such delivery", str(error))
    view = first(visit.query, "view")
    return Answer(200, HTML, delivery_page(history, view, frame(visit, store.now())))


def download(visit: Visit, store: Client) -> Answer:
    try:
        history = story.find(store, id_of(visit))
    except dlq.NoSuch as error:
        return message(404, "No such delivery", str(error))
    if history.delivery is None:
        return text(404, f"The body is not kept any more: the job is {history.state}.")
    name = f'Content-Disposition: attachment; filename="{history.id}.bin"\r\n'
    return Answer(200, "application/octet-stream", history.delivery.body, name)


def id_of(visit: Visit) -> str:
    return unquote(visit.parts[0], errors="replace")


def exported(visit: Visit, store: Client) -> Answer:
    """Return /metrics: counters from Redis, gauges from the structures themselves."""
    began = time.perf_counter()
    store.raise_counters(log.take_counts())
    gathered, memory = status.gather(store, visit.settings), store.memory()
    took_s = time.perf_counter() - began
    gauges = status.gauges(gathered, memory, VERSION, platform.python_version(), took_s)
    lines = metrics.text(figures.metrics(store), gauges, gathered.audit.sources)
    return Answer(200, PROMETHEUS, "".join(lines).encode())


def static(visit: Visit, store: Client) -> Answer:
    name = visit.parts[0]
    content = (markup.TEMPLATES / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    if visit.request.fields.get("if-none-match") == tag:
        return Answer(304, STATIC[name], b"", f"ETag: {tag}\r\n")
    return Answer(200, STATIC[name], content, f"ETag: {tag}\r\n")


def home(visit: Visit, store: Client) -> Answer:
    return Answer(303, TEXT, b"", f"Location: {OVERVIEW}\r\n")


def no_icon(visit: Visit, store: Client) -> Answer:
    """Answer what browsers ask for by themselves."""
    return Answer(204, TEXT, b"")


def frame(visit: Visit, now: float) -> markup.Frame:
    return markup.Frame(visit.token, first(visit.query, "notice")[:300], now)


def message(status: int, title: str, sentence: str, then: str = "") -> Answer:
    return Answer(status, HTML, markup.page("message", title=title, text=sentence, then=then))


def search_of(texts: dict[str, str], now: float) -> Search:
    """Return what the page's filter selects; `q` is its search field. Raises Nonsense."""
    named = {**texts, "text": texts.get("q", ""), "event_type": texts.get("type", "")}
    return dlq.search_of(named, now)


# ---------------- acting


def act(visit: Visit, store: Client, verb: str) -> Answer:
    """Do what the form says, or ask first; then send the browser back with a notice: a reload of
    that page repeats nothing.
    """
    if not visit.own_form():
        return text(
            403,
            "This form did not come from a page of this dashboard, or is over 11 hours old: reload "
            "the page.",
        )
    form = visit.form
    back = DEAD if "scope" in form or "only" in form else OVERVIEW
    if first(form, "back"):
        back = f"{DELIVERY}/{wire.quoted(first(form, 'back'))}"
    try:
        if verb in pages.QUESTIONS and all_that_match(form) and not first(form, "confirm"):
            return question(visit, store, verb)
        actor = dlq.actor("page", f"{web.USER} from {visit.client}")
        notice = (
            restore(store, form, actor) if verb == "restore" else move(store, verb, form, actor)
        )
    except (dlq.NoSuch, dlq.Nonsense) as error:
        notice = str(error)
    return Answer(303, TEXT, b"", f"Location: {back}?notice={wire.quoted(notice)}\r\n")


def all_that_match(form: Form) -> bool:
    return first(form, "scope") == "match" and not first(form, "only")


def question(visit: Visit, store: Client, verb: str) -> Answer:
    """Return the page that asks before an act on all that match. Raises NoSuch, Nonsense."""
    form, now = visit.form, store.now()
    texts = {name: first(form, name) for name in pages.FILTER}
    search = dlq.frozen(search_of(texts, now), now)
    ids = dlq.select(store, search, limit=dlq.PAGE_LIMIT).ids
    if not ids:
        raise dlq.NoSuch("None match any more.")
    ends = reading.parked(store, [ids[0], *ids[1:][-4:]])
    if not ends:
        raise dlq.NoSuch("Somebody else has just moved these: reload the list.")
    content = pages.confirm(verb, ids, ends, search, texts, markup.Frame(visit.token, "", now))
    return Answer(200, HTML, content)


def move(store: Client, verb: str, form: Form, actor: Act) -> str:
    """Redrive or discard what the form selects; return what was done. Raises NoSuch, Nonsense."""
    named = form["only"][:1] if first(form, "only") else form.get("id", [])
    if not named and not all_that_match(form):
        raise dlq.NoSuch("None was ticked.")
    search = Search(ids=tuple(named))
    if not named:
        search = search_of({name: first(form, name) for name in pages.FILTER}, store.now())
    ids = dlq.select(store, search, limit=dlq.PAGE_LIMIT).ids
    moved = (dlq.redrive if verb == "redrive" else dlq.discard)(store, ids, search, actor)
    if not moved:
        raise dlq.NoSuch(
            "No dead letter was moved: somebody else has put back or discarded what was chosen."
        )
    what = moved[0] if len(moved) == 1 else phrases.counted(len(moved))
    left = len(named) - len(moved)
    missed = f" {left} were no longer dead letters." if left > 0 else ""
    if verb == "redrive":
        return f"Put back {what}.{missed}"
    return (
        f"Discarded {what} (batch {actor.act}).{missed} They can be restored for 24 h: on the "
        f"overview, or by dlqctl --undo {actor.act}."
    )


def restore(store: Client, form: Form, actor: Act) -> str:
    """Restore what the form names; return what was done. Raises NoSuch."""
    if first(form, "only"):
        return f"Restored {dlq.restore_one(store, first(form, 'only'), actor)}."
    batch, moved = dlq.restore(store, first(form, "batch"), actor)
    return f"Restored {phrases.counted(len(moved))} of batch {batch}."


# ---------------- the table


class Route(NamedTuple):
    """The paths that match whole, the methods they take, and what answers; groups of the path are
    `visit.parts`.
    """

    path: re.Pattern[str]
    methods: tuple[str, ...]
    answer: Callable[[Visit, Client], Answer]


READ: Final = ("GET", "HEAD")
ROUTES: Final = tuple(
    Route(re.compile(path), methods, answer)
    for path, methods, answer in (
        (r"/(?:dashboard/)?", READ, home),
        (r"/favicon\.ico", READ, no_icon),
        (r"/static/(app\.css|app\.js)", READ, static),
        (r"/metrics", READ, exported),
        (r"/dashboard", READ, overview),
        (r"/dashboard/live\.json", READ, live),
        (r"/dashboard/dead", READ, dead_letters),
        (r"/dashboard/deliveries/([^/]{1,300})", READ, delivery),
        (r"/dashboard/deliveries/([^/]{1,300})/body", READ, download),
        (r"/dashboard/retry", ("POST",), partial(act, verb="redrive")),
        (r"/dashboard/discard", ("POST",), partial(act, verb="discard")),
        (r"/dashboard/restore", ("POST",), partial(act, verb="restore")),
    )
)


def respond(visit: Visit) -> Answer:
    """Answer whoever is logged in."""
    for route in ROUTES:
        if path := route.path.fullmatch(visit.request.path):
            break
    else:
        return text(404, "There is nothing here; the page is /dashboard.")
    if visit.request.method not in route.methods:
        allow = f"Allow: {', '.join(route.methods)}\r\n"
        return text(405, f"Only {route.methods[0]} is possible here.", allow)
    name = daemon.name_of("dashboard")
    with closing(Client(visit.settings.redis_url, name, timeout_s=2.0)) as store:
        try:
            return route.answer(visit._replace(parts=path.groups()), store)
        except Away as error:
            return redis_away(visit, str(error))


def redis_away(visit: Visit, why: str) -> Answer:
    if visit.request.path == "/metrics":  # a scrape that fails would only say that we are down
        lines = metrics.text(None, {"webhookd_redis_up": [({}, 0)]}, ())
        return Answer(200, PROMETHEUS, "".join(lines).encode())
    kept = meanwhile(visit.settings.state_dir)
    then = (
        "Look at `supervisorctl -c supervisord.conf status` and at redis.log. This page tries "
        "again every 5 seconds."
    )
    page = message(503, "Redis is away", f"Nothing can be shown: {why}. {kept}", then)
    return page._replace(extra="Refresh: 5\r\n")


def alive(settings: Settings) -> Answer:
    return text(200, "ok")


def ready(settings: Settings) -> Answer:
    try:
        with closing(Client(settings.redis_url, "dashboard", timeout_s=1.0)) as store:
            store.ping()
    except Away:
        return text(503, "Redis is away")
    return text(200, "ok")


PUBLIC: Final = {"/livez": alive, "/readyz": ready}  # without a login


# ---------------- the program


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

    # The kernel may hand a signal to any thread, and Python runs its handler in this one, which
    # must be woken for that.
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signals = daemon.Signals()
    settings = daemon.load_or_exit(read_settings)
    if args.check:
        daemon.end_check(settings)
    server = listening(settings)
    serving = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    serving.start()
    log.event("process.start", program="dashboard", version=VERSION)
    boot_check(settings.redis_url, daemon.name_of("dashboard"), settings.durability)
    serve_until_asked(settings, signals, woken)
    server.drain()
    if not signals.stop:
        daemon.reexec(signals, server.socket)
    log.event("process.end", program="dashboard")


def serve_until_asked(settings: Settings, signals: daemon.Signals, woken: socket.socket) -> None:
    """Return when a stop or a reload is wanted; end beside the data of a newer version."""
    known = False
    while not (signals.stop or daemon.reload_wanted(signals)):
        try:
            known = known or format_is_known(settings.redis_url, "dashboard")
        except NewerData as error:
            daemon.refuse_newer(str(error))
        woken.settimeout(None if known else FORMAT_LOOK_S)
        with contextlib.suppress(TimeoutError):
            woken.recv(4096)


def listening(settings: Settings) -> web.Server:
    try:
        return web.Server(settings, PUBLIC, respond, daemon.inherited_socket())
    except OSError as error:
        where = f"{settings.dashboard_host}:{settings.dashboard_port}"
        sys.exit(
            f"{where} cannot be listened on: {error.strerror}. Set DASHBOARD_HOST and "
            "DASHBOARD_PORT to a free address."
        )


if __name__ == "__main__":
    main()
