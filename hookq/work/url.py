"""Passes a delivery on to a URL: its raw body and the sender's header lines, with our id, the
attempt, and a signature.

Rules: no redirect is followed; certificates are verified; an address is judged where the connection
is made, not where the name was looked up: private, link-local and metadata addresses are for
sources that say so; every wait has a limit.

Promises: the answer's status and its first 4 KB are kept with the attempt. Does not promise that
the target sees a job once: it gets our id as `webhook-id`, the same in every attempt, to be
idempotent with; nor that a name is looked up in time: there the resolver's own limits hold. Runs in
a thread of its own for each job (worker.py), and keeps one connection in each.
"""

import email.utils
import http.client
import io
import ipaddress
import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from hookq.job import Delivery, header_lines
from hookq.outcome import Failed, GiveUp, Retry, TimeLimit, sendable
from hookq.schemes import SCHEMES
from hookq.signing import Verifier, keys_of, sign

CONNECT_S: Final = 5.0  # all addresses together, TLS included
KEPT: Final = 4096  # bytes of an answer; whoever answers for ever is cut off there
# Of one connection only (RFC 9110 section 7.6.1), or made anew.
NOT_PASSED: Final = frozenset((
    "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
    "te", "trailer", "transfer-encoding", "upgrade", "expect", "host", "content-length",
    "webhook-id", "webhook-timestamp", "webhook-signature", "webhookd-attempt",
))  # fmt: skip
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# What Python 3.11 takes for global: metadata and platform services of clouds (Azure, Oracle), old
# and local ways to write IPv4 within IPv6, site-local, segment routing and documentation.
_NOT_PUBLIC: Final = tuple(map(ipaddress.ip_network, (
    "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48",
    "::/96", "::ffff:0:0:0/96", "fec0::/10", "5f00::/16", "3fff::/20",
)))  # fmt: skip
Answer = tuple[http.client.HTTPResponse, bytes]


class _Socket:
    """What http.client needs of a socket, with absolute limits: for the first byte, and for all."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.deadline, self.first_byte = sock, 0.0, 0.0
        self.readers, self.closing = 0, False

    def sendall(self, data: Any) -> None:
        self._until(self.deadline, "taken all of it", self.sock.sendall, data)

    def makefile(self, *_: Any) -> io.BufferedReader:
        self.readers += 1
        return io.BufferedReader(_Answer(self))

    def read(self, into: Any) -> int:
        what = "begun to answer" if self.first_byte else "answered in full"
        found = self._until(self.first_byte or self.deadline, what, self.sock.recv_into, into)
        self.first_byte = 0.0
        return int(found)

    def _until(self, moment: float, what: str, call: Callable[..., Any], *args: Any) -> Any:
        left = moment - time.monotonic()
        if left <= 0:  # also of a target that always has more to say
            raise TimeoutError(what)
        self.sock.settimeout(left)
        try:
            return call(*args)
        except TimeoutError:
            raise TimeoutError(what) from None

    def close(self) -> None:
        """Close with the last reader: http.client closes a connection that is not kept before its
        answer is read.
        """
        self.closing = True
        if not self.readers:
            self.sock.close()


class _Answer(io.RawIOBase):
    """One answer of a connection that outlives it."""

    def __init__(self, of: _Socket) -> None:
        self.of = of

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        return self.of.read(into)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.of.readers -= 1
            if self.of.closing:
                self.of.close()


class Target:
    """A URL that deliveries are passed on to. `answers` says what becomes of a job by status, where
    it is not the usual.
    """

    def __init__(
        self,
        url: str,
        secret: bytes,
        answers: Mapping[str, str],
        *,
        private: bool,
        first_byte_s: float,
        withheld: Sequence[str] = (),
    ) -> None:
        """`withheld` names header lines of the sender that are its secret, such as
        X-Gitlab-Token.
        """
        parts = urlsplit(url)
        self.host, self.tls = parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.named = parts.netloc
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.answers, self.private, self.first_byte_s = answers, private, first_byte_s
        self.not_passed = NOT_PASSED | {name.lower() for name in withheld}
        standard = replace(SCHEMES["standard-webhooks"], or_else=None)
        decoded = secret.startswith(b"whsec_") and keys_of(standard, secret)
        self.signer = Verifier(standard if decoded else replace(standard, key="text"), (secret,))
        self.context = ssl.create_default_context() if self.tls else None
        self.mine = threading.local()

    def run(
        self, delivery: Delivery, limit_s: float
    ) -> tuple[BaseException | None, dict[str, Any]]:
        """Pass it on; return why that failed, if it did, and what is known of the answer."""
        deadline = time.monotonic() + limit_s
        try:
            response, body = self._ask(delivery, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._drop()
            if time.monotonic() >= deadline:
                return TimeLimit(
                    f"{self.named} had not answered in full within timeout_s ({limit_s:g} s)"
                ), {}
            return self._failed(error), {}
        facts = {
            "answer": {
                "status": response.status,
                "body": sendable(body[:KEPT].decode("utf-8", "replace")),
            }
        }
        return self._verdict(response.status, response.getheader("Retry-After", "")), facts

    def _ask(self, delivery: Delivery, deadline: float) -> Answer:
        kept: http.client.HTTPConnection | None = getattr(self.mine, "connection", None)
        if kept and not _silent(
            kept.sock
        ):  # it was closed, or speaks out of turn: that would be taken for the next answer
            self._drop()
        elif kept:
            try:
                return self._exchange(kept, delivery, deadline)
            except (http.client.RemoteDisconnected, ConnectionError):
                self._drop()  # the target had closed it meanwhile: that says nothing about the job
        made = http.client.HTTPConnection(self.host, self.port)
        made.sock = _Socket(self._connect(deadline))
        self.mine.connection = made
        return self._exchange(made, delivery, deadline)

    def _exchange(
        self, connection: http.client.HTTPConnection, delivery: Delivery, deadline: float
    ) -> Answer:
        sock: Any = connection.sock
        sock.deadline = deadline
        connection.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self._headers(delivery):
            connection.putheader(name, value)
        early = False
        try:
            connection.endheaders(delivery.body)
        except (
            ConnectionError
        ):  # it may have answered before it had read all of a large body, such as 413
            early = True
        sock.first_byte = min(deadline, time.monotonic() + self.first_byte_s)
        response = connection.getresponse()
        try:
            body = response.read(KEPT + 1)
            whole = response.isclosed()
            if len(body) <= KEPT and response.length:  # the status alone would look like an answer
                raise http.client.IncompleteRead(body)
        finally:
            response.close()
        if (
            not whole or early or response.will_close or response.status < 200
        ):  # after 103 the answer is still to come
            self._drop()
        return response, body

    def _headers(self, delivery: Delivery) -> list[tuple[str, str]]:
        passed = [
            line for line in header_lines(delivery.head) if line[0].lower() not in self.not_passed
        ]
        ours = sign(self.signer, delivery.body, time.time(), delivery.id, delivery.event_type)
        own = [
            ("Host", self.named),
            ("Content-Length", str(len(delivery.body))),
            ("webhookd-attempt", str(delivery.attempt)),
        ]
        return [*own, *passed, *ours.items()]

    def _connect(self, deadline: float) -> socket.socket:
        end, why = min(deadline, time.monotonic() + CONNECT_S), "it has no address"
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self.host, self.port, type=socket.SOCK_STREAM
        ):
            if not self.private and not is_public(str(address[0])):
                raise ValueError(
                    f"its address {address[0]} is not public; allow_private = true would allow it"
                )
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(0.001, end - time.monotonic()))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(0.001, end - time.monotonic()))
                return (
                    self.context.wrap_socket(sock, server_hostname=self.host)
                    if self.context
                    else sock
                )
            except TimeoutError:
                sock.close()
                why = f"no connection within {CONNECT_S:g} s"
            except ssl.SSLError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                why = error.strerror or str(error)
        raise ConnectionError(why)

    def _drop(self) -> None:
        connection = getattr(self.mine, "connection", None)
        if connection:
            connection.close()
            self.mine.connection = None

    def _failed(self, error: Exception) -> Failed:
        if isinstance(error, socket.gaierror):
            return Failed(f"{self.host} cannot be resolved: {error.strerror}", "not resolved")
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failed(
                f"the certificate of {self.named} is not good: {error.verify_message}",
                "certificate",
            )
        if isinstance(error, TimeoutError):
            return Failed(f"{self.named} had not {error} in time", f"not {error} in time")
        if isinstance(error, http.client.HTTPException):
            return Failed(
                f"{self.named} did not speak HTTP to the end: {type(error).__name__}",
                "broken answer",
            )
        return Failed(
            f"{self.named} cannot be reached: {getattr(error, 'strerror', None) or error}",
            "not reached",
        )

    def _verdict(self, status: int, retry_after: str) -> BaseException | None:
        usual = (
            "done"
            if 200 <= status < 300
            else "dead"
            if 400 <= status < 500 and status not in (408, 425, 429)
            else "retry"
        )
        word = self.answers.get(str(status), usual)
        told, cause = f"{self.named} answered {status}", f"answered {status}"
        if word == "done":
            return None
        if word == "dead":
            return GiveUp(told).because(cause)
        after_s = seconds_of(retry_after, time.time()) if status in (429, 503) else None
        return Failed(told, cause) if after_s is None else Retry(told, after_s=after_s)


def _silent(sock: Any) -> bool:
    look = select.poll()
    look.register(sock.sock, select.POLLIN)
    return not look.poll(0)


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public Internet, also as it is written within
    IPv6.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
    return (
        ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)
    )


def seconds_of(retry_after: str, now: float) -> float | None:
    """Return the seconds a Retry-After (RFC 9110 section 10.2.3) asks for: a number, or a date;
    None if it is neither.
    """
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after) if len(retry_after) < 10 else None
    try:
        at = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, at - now) if math.isfinite(at) else None
