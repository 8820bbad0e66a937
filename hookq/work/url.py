"""Passes a delivery on to a URL: its raw body and the sender's headers, with our id, the attempt,
and a signature.

Rules: no redirect is followed. Certificates are verified. Private, link-local and metadata
addresses are refused unless the source allows them; what counts is the address connected to, not
the one that a lookup gave a moment ago. Every wait has a limit (R7).

Promises: the response's status and its first 4 KB are kept with the attempt. Does not promise that
the target sees a job once: `webhook-id` is our id, the same in each attempt, to be idempotent with.
Nor that a name lookup ends in time: the resolver has limits of its own. Runs in threads of the pool
(pool.py); each thread keeps one connection.
"""

import contextlib
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
from hookq.outcome import Failed, GiveUp, Outcome, Retry, TimeLimit, sendable
from hookq.schemes import SCHEMES
from hookq.signing import Verifier, keys_of, sign

CONNECT_S: Final = 5.0  # for all addresses together, TLS included
# Bytes of a response body that are read. A target that sends for ever is cut off there.
KEPT: Final = 4096
# Hop-by-hop headers (RFC 9110 section 7.6.1), and those that we set ourselves.
NOT_PASSED: Final = frozenset((
    "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
    "te", "trailer", "transfer-encoding", "upgrade", "expect", "host", "content-length",
    "webhook-id", "webhook-timestamp", "webhook-signature", "webhookd-attempt",
))  # fmt: skip
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# Addresses that Python 3.11 calls global and that are not: metadata and platform services of clouds
# (Azure, Oracle), old and local forms of IPv4 within IPv6, site-local, segment routing,
# documentation.
_NOT_PUBLIC: Final = tuple(map(ipaddress.ip_network, (
    "168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "64:ff9b:1::/48",
    "::/96", "::ffff:0:0:0/96", "fec0::/10", "5f00::/16", "3fff::/20",
)))  # fmt: skip
Response = tuple[http.client.HTTPResponse, bytes]


class _TimedSocket:
    """A socket as http.client needs it, with deadlines: for the whole exchange, and for the first
    byte of the response. A limit per read would let a target drip for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.deadline, self.first_byte_by = sock, 0.0, 0.0
        self.readers, self.closing = 0, False

    def sendall(self, data: Any) -> None:
        self._until(self.deadline, "taken all of it", self.sock.sendall, data)

    def makefile(self, *_: Any) -> io.BufferedReader:
        self.readers += 1
        return io.BufferedReader(_ResponseReader(self))

    def read(self, buffer: Any) -> int:
        what = "begun to answer" if self.first_byte_by else "answered in full"
        deadline = self.first_byte_by or self.deadline
        size = self._until(deadline, what, self.sock.recv_into, buffer)
        self.first_byte_by = 0.0
        return int(size)

    def is_quiet(self) -> bool:
        """Tell whether there is nothing to read. Otherwise the target has closed the connection, or
        sent what would be taken for the response to the next request.
        """
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close, once the last reader is done: http.client closes a connection that is not kept
        before its response is read.
        """
        self.closing = True
        if not self.readers:
            self.sock.close()

    def _until(self, deadline: float, what: str, call: Callable[..., Any], *args: Any) -> Any:
        left = deadline - time.monotonic()
        if left <= 0:  # a target that always has more to send never blocks
            raise TimeoutError(what)
        self.sock.settimeout(left)
        try:
            return call(*args)
        except TimeoutError:
            raise TimeoutError(what) from None


class _ResponseReader(io.RawIOBase):
    """Reads one response; the connection outlives it."""

    def __init__(self, sock: _TimedSocket) -> None:
        self.sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.sock.read(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.sock.readers -= 1
            if self.sock.closing:
                self.sock.close()


class Target:
    """A URL that deliveries are passed on to. `answers` overrides what a status means for a job."""

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
        """`withheld` names headers that are the sender's secret, such as X-Gitlab-Token."""
        parts = urlsplit(url)
        self.host, self.tls = parts.hostname or "", parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.authority = parts.netloc
        self.path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.answers, self.private, self.first_byte_s = answers, private, first_byte_s
        self.not_passed = NOT_PASSED | {name.lower() for name in withheld}
        standard = replace(SCHEMES["standard-webhooks"], or_else=None)
        decoded = secret.startswith(b"whsec_") and keys_of(standard, secret)
        self.signer = Verifier(standard if decoded else replace(standard, key="text"), (secret,))
        self.context = ssl.create_default_context() if self.tls else None
        self.local = threading.local()

    def run(self, delivery: Delivery, limit_s: float) -> Outcome:
        """Pass it on; return why that failed, if it did, and the response."""
        deadline = time.monotonic() + limit_s
        try:
            response, body = self._send(delivery, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.disconnect()
            if time.monotonic() >= deadline:
                why = f"{self.authority} had not answered in full within timeout_s ({limit_s:g} s)"
                return TimeLimit(why), {}
            return self._failed(error), {}
        text = sendable(body[:KEPT].decode("utf-8", "replace"))
        facts = {"answer": {"status": response.status, "body": text}}
        return self._error_of(response.status, response.getheader("Retry-After", "")), facts

    def disconnect(self) -> None:
        """Close this thread's connection, if there is one."""
        connection = getattr(self.local, "connection", None)
        if connection:
            connection.close()
            self.local.connection = None

    # ---------------- one exchange

    def _send(self, delivery: Delivery, deadline: float) -> Response:
        """Send it on the kept connection, or on a new one."""
        kept: http.client.HTTPConnection | None = getattr(self.local, "connection", None)
        sock: Any = kept and kept.sock
        if kept and sock.is_quiet():
            # The target may close it at this moment. That says nothing about the job.
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError):
                return self._exchange(kept, delivery, deadline)
        self.disconnect()
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.sock = _TimedSocket(self._connect(deadline))
        self.local.connection = connection
        return self._exchange(connection, delivery, deadline)

    def _exchange(
        self, connection: http.client.HTTPConnection, delivery: Delivery, deadline: float
    ) -> Response:
        """Send the request and read the response; keep the connection if both ended cleanly."""
        sock: Any = connection.sock
        sock.deadline = deadline
        connection.putrequest("POST", self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self._headers(delivery):
            connection.putheader(name, value)
        sent = True
        try:
            connection.endheaders(delivery.body)
        # A target may answer before it has read a large body, with 413 for example, and close.
        except ConnectionError:
            sent = False
        sock.first_byte_by = min(deadline, time.monotonic() + self.first_byte_s)
        response = connection.getresponse()
        try:
            body = response.read(KEPT + 1)
            whole = response.isclosed()
            # Cut off within what we read: the status alone would look like a response.
            if len(body) <= KEPT and response.length:
                raise http.client.IncompleteRead(body)
        finally:
            response.close()
        # After an interim one, as 103, the response is still to come.
        if not (sent and whole) or response.will_close or response.status < 200:
            self.disconnect()
        return response, body

    def _headers(self, delivery: Delivery) -> list[tuple[str, str]]:
        passed = [
            line for line in header_lines(delivery.head) if line[0].lower() not in self.not_passed
        ]
        signed = sign(self.signer, delivery.body, time.time(), delivery.id, delivery.event_type)
        own = [
            ("Host", self.authority),
            ("Content-Length", str(len(delivery.body))),
            ("webhookd-attempt", str(delivery.attempt)),
        ]
        return [*own, *passed, *signed.items()]

    def _connect(self, deadline: float) -> socket.socket:
        """Return a connection to the first address that takes one, within CONNECT_S for all."""
        end, why = min(deadline, time.monotonic() + CONNECT_S), "it has no address"
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            if not self.private and not is_public(str(address[0])):
                raise ValueError(
                    f"its address {address[0]} is not public; allow_private = true would allow it"
                )
            sock = socket.socket(family, kind, protocol)
            try:
                return self._open(sock, address, end)
            except TimeoutError:
                sock.close()
                why = f"no connection within {CONNECT_S:g} s"
            except ssl.SSLError:  # it would be the same at the other addresses
                sock.close()
                raise
            except OSError as error:
                sock.close()
                why = error.strerror or str(error)
        raise ConnectionError(why)

    def _open(self, sock: socket.socket, address: Any, end: float) -> socket.socket:
        sock.settimeout(max(0.001, end - time.monotonic()))
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(max(0.001, end - time.monotonic()))
        if self.context is None:
            return sock
        return self.context.wrap_socket(sock, server_hostname=self.host)

    # ---------------- what it means for the job

    def _failed(self, error: Exception) -> Failed:
        """Return the sentence about an exchange that did not end."""
        name = self.authority
        if isinstance(error, socket.gaierror):
            return Failed(f"{self.host} cannot be resolved: {error.strerror}", "not resolved")
        if isinstance(error, ssl.SSLCertVerificationError):
            why = f"the certificate of {name} is not good: {error.verify_message}"
            return Failed(why, "certificate")
        if isinstance(error, TimeoutError):
            return Failed(f"{name} had not {error} in time", f"not {error} in time")
        if isinstance(error, http.client.HTTPException):
            why = f"{name} did not speak HTTP to the end: {type(error).__name__}"
            return Failed(why, "broken answer")
        why = f"{name} cannot be reached: {getattr(error, 'strerror', None) or error}"
        return Failed(why, "not reached")

    def _error_of(self, status: int, retry_after: str) -> BaseException | None:
        """Return what a status means, None for done."""
        outcome = self.answers.get(str(status)) or _usual(status)
        why, cause = f"{self.authority} answered {status}", f"answered {status}"
        if outcome == "done":
            return None
        if outcome == "dead":
            return GiveUp(why).because(cause)
        after_s = seconds_of(retry_after, time.time()) if status in (429, 503) else None
        return Failed(why, cause) if after_s is None else Retry(why, after_s=after_s)


def _usual(status: int) -> str:
    """Return what a status means unless a source says otherwise."""
    if 200 <= status < 300:
        return "done"
    return "dead" if 400 <= status < 500 and status not in (408, 425, 429) else "retry"


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to the public Internet, in any of the forms in which IPv6
    holds IPv4.
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
    """Return the seconds that a Retry-After asks for, as a number or a date (RFC 9110 section
    10.2.3); None if it is neither.
    """
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after) if len(retry_after) < 10 else None
    try:
        at = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, at - now) if math.isfinite(at) else None
