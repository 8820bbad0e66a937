"""Heads of requests: what is valid is read as RFC 9112 says, what is not is refused. Fed whole and
byte by byte.
"""

import ipaddress

import pytest

from hookq import wire
from hookq.wire import BadRequest, head_end, parse_head

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /x HTTP/1.1\r\nHost: a\r\n"

INVALID = {  # section of the RFC: rows of (head, status)
    "9112-2.2-line-ends": [
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\rHost: a\r\n\r\n", 400),
        (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (GET + b"X: a\r\r\n\r\n", 400),
        (GET + b"X: a\n\r\n\r\n", 400),
    ],
    "9112-3-request-line": [
        (b"GET /\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / /x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
    "9112-3.2-target": [
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ],
    "9112-2.3-version": [
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/11\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/\xb2.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
    "9112-3.2-host": [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOsT: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n", 400),
    ],
    "9112-5-field-lines": [
        (GET + b"X\r\n\r\n", 400),
        (GET + b": a\r\n\r\n", 400),
        (GET + b"X : a\r\n\r\n", 400),
        (GET + b" X: a\r\n\r\n", 400),
        (GET + b"X: a\r\n b\r\n\r\n", 400),
        (GET + b"X: a\r\n\tb\r\n\r\n", 400),
        (GET + b"X\t: a\r\n\r\n", 400),
        (GET + b"X_Y: a\r\n\r\n", 400),
        (GET + b"X(Y): a\r\n\r\n", 400),
        (GET + b"X\x00: a\r\n\r\n", 400),
        (GET + b"X: a\x00b\r\n\r\n", 400),
        (GET + b"X: a\x0bb\r\n\r\n", 400),
        (GET + b"X: a\x7fb\r\n\r\n", 400),
        (GET + b"X: a\x1b[2J\r\n\r\n", 400),
        (GET + b"\xc3\xa9: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ],
    "9112-6.2-content-length": [
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: +5\r\n\r\n", 400),
        (POST + b"Content-Length: 1_0\r\n\r\n", 400),
        (POST + b"Content-Length: 0x5\r\n\r\n", 400),
        (POST + b"Content-Length: 5.0\r\n\r\n", 400),
        (POST + b"Content-Length: \xb2\r\n\r\n", 400),
        (POST + b"Content-Length:\r\n\r\n", 400),
        (POST + b"Content-Length: 5 5\r\n\r\n", 400),
        (POST + b"Content-Length: 5, 5\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (POST + b"Content-Length: 0\r\ncontent-length: 31\r\n\r\n", 400),
        (POST + b"Content-Length : 5\r\n\r\n", 400),
        (POST + b"Content-Length: " + b"9" * 20 + b"\r\n\r\n", 413),
    ],
    "9112-6.1-transfer-encoding": [
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", 411),
        (POST + b"Transfer-Encoding: Chunked\r\n\r\n", 411),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: identity\r\n\r\n", 501),
        (POST + b"Transfer-Encoding:\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
        (POST + b"Transfer_Encoding: chunked\r\n\r\n", 400),
        (b"POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
    "9110-10.1.1-expect": [
        (POST + b"Expect: 200-ok\r\n\r\n", 417),
        (POST + b"Expect:\r\n\r\n", 417),
    ],
    "limits": [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (GET + b"X: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (GET + b"X: a\r\n" * 100 + b"\r\n", 431),
        (GET + b"X: %s\r\n" % (b"a" * 8000) * 3 + b"\r\n", 431),
    ],
}
ROWS = [
    pytest.param(head, status, id=f"{section}-{n}")
    for section, rows in INVALID.items()
    for n, (head, status) in enumerate(rows)
]


def read(feed):
    """Parse what arrives piece by piece; return the request, or None when it is not complete."""
    data = b""
    for piece in feed:
        data += piece
        end = head_end(data)
        if end >= 0:
            return parse_head(data[:end])
    return None


@pytest.mark.parametrize(("head", "status"), ROWS)
def test_invalid_head_is_refused_whole_and_byte_by_byte(head, status):
    for feed in (
        [head],
        [head + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"],
        [head[i : i + 1] for i in range(len(head))],
    ):
        with pytest.raises(BadRequest) as refused:
            read(feed)
        assert refused.value.status == status


@pytest.mark.parametrize("byte", [b for b in range(33) if b not in (9, 10, 13, 32)] + [127])
def test_control_byte_is_refused_before_the_head_is_complete(byte):
    with pytest.raises(BadRequest):
        head_end(GET + b"X: a" + bytes([byte]))


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\rX", b"\r\n", b"a" * 9000, GET + b"a: b\r\n" * 4000],
)
def test_hopeless_head_is_refused_at_once(data):
    with pytest.raises(BadRequest):
        head_end(data)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (
            GET + b"\r\n",
            {"method": "GET", "path": "/", "keep_alive": True, "length": None, "expects": False},
        ),
        (b"GET /a?b=c?d HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", {"path": "/a", "query": "b=c?d"}),
        (b"GET http://a:1/b?c HTTP/1.1\r\nHost: a\r\n\r\n", {"path": "/b", "query": "c"}),
        (b"GET HTTPS://a HTTP/1.1\r\nHost: a\r\n\r\n", {"path": "/"}),
        (b"GET / HTTP/1.0\r\n\r\n", {"keep_alive": False}),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", {"keep_alive": False}),
        (GET + b"Connection: foo , CLOSE\r\n\r\n", {"keep_alive": False}),
        (GET + b"Connection: keep-alive\r\n\r\n", {"keep_alive": True}),
        (POST + b"Content-Length: 007\r\n\r\n", {"length": 7}),
        (
            POST + b"Content-Length: \t 5 \t\r\nExpect: 100-Continue\r\n\r\n",
            {"length": 5, "expects": True},
        ),
        (
            b"POST /x HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            {"expects": False},
        ),
        (b"GET / HTTP/1.1\r\nhost:a\r\n\r\n", {"method": "GET"}),
        (b"M-SEARCH / HTTP/1.1\r\nHost: a\r\n\r\n", {"method": "M-SEARCH"}),
    ],
)
def test_valid_head_is_read_as_meant(head, expected):
    for feed in ([head], [head[i : i + 1] for i in range(len(head))]):
        found = read(feed)
        assert {name: getattr(found, name) for name in expected} == expected


def test_values_keep_their_bytes_and_repeated_fields_are_joined():
    found = parse_head(GET + b"X-A: \xe9\xff\r\nx-a:b\r\nEmpty:\r\n\r\n")
    assert found.fields == {"host": "a", "x-a": "\xe9\xff, b", "empty": ""}
    assert found.head == b"Host: a\r\nX-A: \xe9\xff\r\nx-a:b\r\nEmpty:\r\n"


def test_reply_carries_its_length_and_says_when_it_is_the_last():
    made = wire.reply(503, b"abc", "text/plain", "now", extra="Retry-After: 5\r\n", close=True)
    assert made.startswith(b"HTTP/1.1 503 Service Unavailable\r\n") and made.endswith(
        b"Connection: close\r\n\r\nabc"
    )
    assert b"Content-Length: 3\r\n" in made and b"Retry-After: 5\r\n" in made


def test_quoted_text_cannot_end_a_header_line():
    assert wire.quoted("a\r\nX: b&c") == "a%0D%0AX%3A%20b%26c"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        (
            "203.0.113.9",
            "198.51.100.1",
            "203.0.113.9",
        ),  # not of a proxy of ours: anybody can write that
        ("10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.2", "192.0.2.66, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.2", "192.0.2.66, 198.51.100.1, 10.0.0.3", "198.51.100.1"),
        ("10.0.0.2", "10.0.0.4, 10.0.0.3", "10.0.0.4"),
        ("10.0.0.2", "", "10.0.0.2"),
        ("10.0.0.2", "198.51.100.1, nonsense", "10.0.0.2"),
        ("10.0.0.2", "2001:db8::1", "2001:db8::1"),
        ("", "198.51.100.1", ""),
    ],
)
def test_client_is_whom_the_last_trusted_proxy_names(peer, forwarded, client):
    trusted = [ipaddress.ip_network("10.0.0.0/8")]
    assert wire.client_of(peer, forwarded, trusted) == client
    assert wire.client_of(peer, forwarded, []) == peer
