"""What webhookd and the dashboard share of HTTP/1.1: limits, a strict parser of heads, replies.

Rules: pure (bytes in, values out); what RFC 9112 calls invalid is refused, never repaired, because
two programs that repair differently are how a request is smuggled; every limit is a number here
with its reason.

Replaces http.server's parser, which accepts 55 of gunicorn's 74 invalid requests and takes ten
times as long.
"""

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

# Four times what any known sender uses; bounds what a stranger can make us hold before we know who
# it is.
MAX_HEAD: Final = 16 * 1024
MAX_LINE: Final = 8 * 1024
MAX_FIELDS: Final = 100

# Absolute, not per read: one byte a second would otherwise hold a connection for ever.
HEAD_S: Final = 10.0
BODY_S: Final = 30.0
IDLE_S: Final = 60.0
WRITE_S: Final = 10.0
# How long and how much is read and thrown away after an error, so that the sender reads the answer
# instead of a reset (RFC 9112 section 9.6). Without it a 413 was lost 50 times of 50.
LINGER_S: Final = 2.0
LINGER_BYTES: Final = 1 << 20

# RFC 9110 section 5.6.2 without "_", which CGI-like layers confuse with "-"
_NAME_CHAR = r"[!#$%&'*+.^`|~0-9A-Za-z-]"
_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]{0,19}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])\r\n")
# All of the field lines at once: a folded, nameless or badly ended line is not found. Optional
# white space is part of the value here and stripped later; obs-text (0x80-0xff) is allowed in
# values.
_FIELDS = re.compile(rf"(?:{_NAME_CHAR}++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+")
# In a head that is not complete yet: a byte that can never become right is refused at once.
_ILLEGAL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_SINGLE = frozenset(("host", "content-length", "transfer-encoding"))


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class BadRequest(Exception):
    """The request cannot be answered with anything but `status`; the connection is closed after
    that.
    """

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def client_of(peer: str, forwarded: str, trusted: Sequence[Network]) -> str:
    """Return whose request this is: the peer's, or, where that is a trusted proxy, of whom it says
    so.

    `forwarded` is X-Forwarded-For: each proxy adds the address it was reached from at the end, and
    what stands before the first that is not trusted may be anybody's invention.
    """
    found = peer
    for text in reversed(forwarded.split(",")):
        try:
            if not any(ipaddress.ip_address(found) in network for network in trusted):
                break
            found = str(ipaddress.ip_address(text.strip()))
        except ValueError:
            break
    return found


@dataclass(slots=True)
class Request:
    """A parsed head. `head` are the header lines as they came; `length` is the body's length in
    bytes.
    """

    method: str
    path: str
    query: str
    fields: dict[str, str]
    head: bytes
    length: int | None
    keep_alive: bool
    expects: bool


def head_end(data: bytes | bytearray) -> int:
    """Return where the head ends (just after the empty line), or -1 when more must be read.

    Raises BadRequest when no further byte can make it right: a limit is passed, or a byte is
    illegal.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end >= 0:
        return end + 4
    line = data.find(b"\r\n", 0, MAX_LINE)
    if line < 0 and len(data) >= MAX_LINE:
        raise BadRequest(414, f"the request line is longer than {MAX_LINE} bytes")
    if len(data) >= MAX_HEAD:
        raise BadRequest(431, f"the head is longer than {MAX_HEAD} bytes")
    bad = _ILLEGAL.search(data)
    if bad:
        raise BadRequest(
            400,
            f"byte {bad.start()} of the head is 0x{data[bad.start()]:02x}, which is not "
            "allowed there",
        )
    if data[:1] in (b"\r", b"\n"):
        raise BadRequest(400, "the request starts with an empty line")
    return -1


def parse_head(data: bytes) -> Request:
    """Return the request whose head is exactly `data`, the final empty line included. Raises
    BadRequest.
    """
    line = _REQUEST_LINE.match(data)
    if not line:
        if data.find(b"\r\n") > MAX_LINE:
            raise BadRequest(414, f"the request line is longer than {MAX_LINE} bytes")
        raise BadRequest(400, "the request line is not METHOD TARGET HTTP/1.1")
    if line.end() > MAX_LINE:
        raise BadRequest(414, f"the request line is longer than {MAX_LINE} bytes")
    if line[3] not in (b"1.1", b"1.0"):
        raise BadRequest(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    head = data[line.end() : -2]
    text = head.decode("latin-1")
    if not _FIELDS.fullmatch(text):
        raise BadRequest(400, "a header line is not NAME: VALUE")
    lines = text.split("\r\n")[:-1]
    if len(lines) > MAX_FIELDS:
        raise BadRequest(431, f"there are more than {MAX_FIELDS} header lines")
    if len(text) > MAX_LINE and max(map(len, lines)) > MAX_LINE:
        raise BadRequest(431, f"a header line is longer than {MAX_LINE} bytes")
    fields = {
        name.lower(): value.strip(" \t")
        for name, _, value in [line.partition(":") for line in lines]
    }
    if len(fields) != len(lines):
        fields = _joined(lines)
    path, query = _target(line[2].decode("ascii"))
    old = line[3] == b"1.0"
    _check_host(fields, old)
    return Request(
        line[1].decode("ascii"),
        path,
        query,
        fields,
        head,
        _length(fields, old),
        _keep_alive(fields, old),
        _expects(fields, old),
    )


def _joined(lines: list[str]) -> dict[str, str]:
    """Return the fields where a name stands more than once: values in their order, with a comma
    (RFC 9110 section 5.3).
    """
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        if name in fields and name in _SINGLE:
            raise BadRequest(400, f"there is more than one {name} header")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _target(target: str) -> tuple[str, str]:
    """Return (path, query) of origin-form or absolute-form (RFC 9112 section 3.2)."""
    if not target.startswith("/") and target.lower().startswith(("http://", "https://")):
        authority, slash, rest = target.partition("://")[2].partition("/")
        if not _HOST.fullmatch(authority):
            raise BadRequest(400, "the request target is no valid URL")
        target = slash + rest or "/"
    if not target.startswith("/") or "#" in target:
        raise BadRequest(400, "the request target must start with /")
    path, _, query = target.partition("?")
    return path, query


def _check_host(fields: dict[str, str], old: bool) -> None:
    host = fields.get("host")
    if host is None:
        if not old:  # RFC 9112 section 3.2: a server MUST respond with 400
            raise BadRequest(400, "there is no Host header")
    elif not _HOST.fullmatch(host):
        raise BadRequest(400, "the Host header is no host")


def _length(fields: dict[str, str], old: bool) -> int | None:
    """Return the length of the body; None when the head does not say. One way to frame a body, so
    no two readings of it.
    """
    length = fields.get("content-length")
    if "transfer-encoding" in fields:
        if length is not None or old:  # RFC 9112 sections 6.1 and 6.3
            raise BadRequest(400, "Transfer-Encoding stands beside Content-Length, or in HTTP/1.0")
        if fields["transfer-encoding"].lower() == "chunked":
            raise BadRequest(411, "send the body with Content-Length, not chunked")
        raise BadRequest(501, "this Transfer-Encoding is not supported")
    if length is None:
        return None
    # isdigit() of str takes digits of every script and int() takes "_" and "+": both were holes in
    # other servers.
    if not (length.isascii() and length.isdigit()):
        raise BadRequest(400, "Content-Length is not a whole number")
    if len(length) > 19:
        raise BadRequest(413, "the body is too large")
    return int(length)


def _keep_alive(fields: dict[str, str], old: bool) -> bool:
    if old:  # it would wait for us to say that the connection is kept, or for its end
        return False
    return "connection" not in fields or "close" not in {
        option.strip(" \t").lower() for option in fields["connection"].split(",")
    }


def _expects(fields: dict[str, str], old: bool) -> bool:
    expect = fields.get("expect")
    if expect is None or old:  # RFC 9110 section 10.1.1: ignored in HTTP/1.0
        return False
    if expect.lower() != "100-continue":
        raise BadRequest(417, "the only expectation that can be met is 100-continue")
    return True


REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


@functools.lru_cache(2)
def date(second: int) -> str:
    """Return a unix second as the Date of an answer (RFC 9110 section 5.6.7)."""
    return formatdate(second, usegmt=True)


def reply(
    status: int,
    body: bytes,
    kind: str,
    date: str,
    *,
    extra: str = "",
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """Return a whole response. `extra` are header lines of our own making, each ended with CR
    LF.
    """
    closing = "Connection: close\r\n" if close else ""
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nServer: webhookd\r\nDate: {date}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}{closing}\r\n"
    )
    return head.encode("latin-1") if head_only else head.encode("latin-1") + body


def quoted(text: str) -> str:
    """Return `text` as part of a query: no byte of it can end a header line."""
    return quote(text, safe="")
