"""The page's connections, and who may ask: everything of HTTP that comes before a route.

One thread per request (`http.server.ThreadingHTTPServer`): few people ask for pages, and each waits
for Redis. What strangers could abuse of http.server is replaced as in webhookd.py: heads go through
the strict parser of hookq.wire, every read and write has a time limit, and each connection ends
after its answer, so an open page holds none.

Safe by default: a login for every path that is not public, known Host names only, a token in every
form, and a Content-Security-Policy on every answer. Does not promise: fairness between those who
are logged in, beyond MAX_REQUESTS at once.
"""

import base64
import hashlib
import hmac
import http.server
import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from hookq import log, wire
from hookq.outcome import place_of
from hookq.settings import Settings

HTML: Final = "text/html; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"
USER: Final = "operator"
MAX_FORM: Final = 16 * 1024
MAX_FIELDS: Final = 200  # of a query or a form
MAX_CONNECTIONS: Final = 128  # at once, whoever they are: each is a thread
MAX_REQUESTS: Final = 32  # at once, of those who are logged in: each asks Redis
SLOT_S: Final = 5.0  # the longest wait for one of those
DRAIN_S: Final = 5.0  # the longest wait for requests in hand at a reload or stop
LINGER_S: Final = 0.2  # between reads of what is left after the answer
# From the fifth wrong password within a minute on, each further one costs a second.
FAILED_LOGINS: Final = 5
FAILED_WITHIN_S: Final = 60.0
LOGIN_DELAY_S: Final = 1.0
TOKEN_HOURS: Final = 12  # a form left open over a working day still counts
HEADERS: Final = (
    "Content-Security-Policy: default-src 'none'; style-src 'self'; script-src 'self'; img-src "
    "'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'\r\n"
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: same-origin\r\nCache-Control: no-store\r\n"
)

Form = dict[str, list[str]]


class Answer(NamedTuple):
    """`extra` are further header lines, each with its line end."""

    status: int
    type: str
    body: bytes
    extra: str = ""


class Visit(NamedTuple):
    """One request of somebody who is logged in; `parts` are what its route takes from the path."""

    settings: Settings
    request: wire.Request
    body: bytes
    client: str
    parts: tuple[str, ...] = ()

    @property
    def query(self) -> Form:
        """Raises BadRequest."""
        return _fields_of(self.request.query)

    @property
    def form(self) -> Form:
        """Raises BadRequest."""
        return _fields_of(self.body.decode("utf-8", "replace"))

    @property
    def token(self) -> str:
        """What a form of this page must carry."""
        return _token(self.settings, _hour())

    def own_form(self) -> bool:
        """Tell whether our own page sent this form, by what the browser says of it and by its
        token. `Sec-Fetch-Site` is missing on plain HTTP from another machine, `Origin` from old
        browsers: the token is asked for in any case.
        """
        fields = self.request.fields
        site, origin = fields.get("sec-fetch-site"), fields.get("origin")
        if site not in (None, "same-origin"):
            return False
        if origin is not None and origin.partition("://")[2] != fields.get("host"):
            return False
        given, hour = first(self.form, "token").encode(), _hour()
        tokens = [_token(self.settings, hour - ago).encode() for ago in range(TOKEN_HOURS)]
        return any(hmac.compare_digest(given, token) for token in tokens)


Respond = Callable[[Visit], Answer]
Public = Mapping[str, Callable[[Settings], Answer]]


def first(form: Form, name: str) -> str:
    return form.get(name, [""])[0]


def text(status: int, sentence: str, extra: str = "") -> Answer:
    return Answer(status, TEXT, f"{sentence}\n".encode(), extra)


def _fields_of(query: str) -> Form:
    try:
        return parse_qs(query, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise wire.BadRequest(400, f"there are more than {MAX_FIELDS} fields") from None


def _hour() -> int:
    return int(time.time() // 3600)


def _token(settings: Settings, hour: int) -> str:
    """Return what a form must carry: other sites' pages cannot know it."""
    password = settings.dashboard_password.encode()
    return hmac.new(password, f"form {hour}".encode(), hashlib.sha256).hexdigest()


def known_host(settings: Settings, host: str) -> bool:
    """Tell whether a Host is ours. A page elsewhere gets in by a name of its own that it makes
    resolve to us (DNS rebinding), so an address is no danger, and names must be known ones.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        names = {"localhost", settings.dashboard_host.lower(), *settings.dashboard_names}
        return name.lower() in names


class Gone(Exception):
    """The client is gone, or too slow."""


class Server(http.server.ThreadingHTTPServer):
    """Listens; starts a thread per connection. `public` answers without a login, by path; `respond`
    everything else.
    """

    request_queue_size = 128
    daemon_threads = True  # an answer that hangs does not hold up a stop

    def __init__(
        self, settings: Settings, public: Public, respond: Respond, inherited: socket.socket | None
    ) -> None:
        self.settings, self.public, self.respond = settings, public, respond
        self.inherited = inherited
        self.failed_logins: deque[float] = deque(maxlen=FAILED_LOGINS)
        self.open = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.slots = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__((settings.dashboard_host, settings.dashboard_port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection. One too many is closed, whoever it is."""
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
        """Take no more connections, and wait a while for those in hand: an act must not be cut
        off half-way.
        """
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

    def failed_login(self, client: str) -> None:
        """Log a wrong password; after several within a minute, let it cost a second."""
        log.event("login.reject", "warning", client=client)
        now, before = time.monotonic(), self.failed_logins
        slow = len(before) == FAILED_LOGINS and now - before[0] < FAILED_WITHIN_S
        before.append(now)
        if slow:
            time.sleep(LOGIN_DELAY_S)


class Handler(http.server.BaseHTTPRequestHandler):
    """One request on one connection; of its base class only the life of the socket is used."""

    server: Server

    def handle(self) -> None:
        try:
            self._handle()
        except Gone:
            pass  # nobody is there to be answered

    def _handle(self) -> None:
        end, head_only = time.monotonic() + wire.HEAD_S, False
        try:
            request, body = self._receive(end)
            head_only = request.method == "HEAD"
            answer = self._answer(request, body)
        except wire.BadRequest as bad:
            answer = text(bad.status, f"{bad}.")
        except Gone:
            raise
        except Exception as error:  # a fault of ours: logged with its place, answered in a sentence
            log.event("page.failed", "error", error=repr(error), place=place_of(error))
            answer = text(500, "This page failed; its log says why.")
        self._send(answer, head_only)
        self._linger()

    # ---------------- bytes

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

    def _send(self, answer: Answer, head_only: bool) -> None:
        data = wire.reply(
            answer.status,
            answer.body,
            answer.type,
            self.date_time_string(),
            extra=HEADERS + answer.extra,
            close=True,
            head_only=head_only,
        )
        try:
            self.connection.settimeout(wire.WRITE_S)
            self.connection.sendall(data)
        except OSError:
            raise Gone from None

    def _linger(self) -> None:
        """Read what is left of the request: closing over unread bytes would reset the answer
        away.
        """
        try:
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(LINGER_S)
            for _ in range(16):
                if not self.connection.recv(65536):
                    return
        except OSError:
            pass

    # ---------------- who may

    def _answer(self, request: wire.Request, body: bytes) -> Answer:
        server = self.server
        if request.path in server.public:
            return server.public[request.path](server.settings)
        if not known_host(server.settings, request.fields.get("host", "")):
            return text(
                421,
                "This Host is not known here: open the page by its address, or add the name to "
                "DASHBOARD_NAMES.",
            )
        client = wire.client_of(
            self.client_address[0],
            request.fields.get("x-forwarded-for", ""),
            server.settings.trusted_proxies,
        )
        if not self._logged_in(request, client):
            challenge = 'WWW-Authenticate: Basic realm="webhookd", charset="UTF-8"\r\n'
            how = "The login is user operator, with DASHBOARD_PASSWORD of .env."
            return text(401, how, challenge)
        if not server.slots.acquire(timeout=SLOT_S):
            return text(503, "Too many requests at once: try again.", "Retry-After: 5\r\n")
        try:
            return server.respond(Visit(server.settings, request, body, client))
        finally:
            server.slots.release()

    def _logged_in(self, request: wire.Request, client: str) -> bool:
        password = self.server.settings.dashboard_password
        expected = base64.b64encode(f"{USER}:{password}".encode())
        kind, _, credentials = request.fields.get("authorization", "").partition(" ")
        given = credentials.strip().encode("latin-1")
        good = hmac.compare_digest(given, expected) and kind.lower() == "basic"
        if credentials and not good:
            self.server.failed_login(client)
        return good

    def log_message(self, *_: Any) -> None:
        """Log nothing: http.server's own lines have another form; acts and refusals are logged
        where they happen.
        """
