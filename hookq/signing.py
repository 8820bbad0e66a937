"""Who sent it: verify a request against a source's secrets, and the counterpart that signs.

Rules: pure (no clock, no environment, no log, no Redis); any bytes from anybody give a Delivery or a Rejected, and
never another exception; nothing of the body is read before its signature holds (R2); the comparison takes the same
time wherever the difference is; a timestamp is judged against the time of arrival (R10).

Does not promise: that a delivery is new. Replays within the tolerance are the store's to find, by delivery id.
"""

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hookq.job import Delivery
from hookq.schemes import Scheme

# A sender's id becomes part of a Redis key and of every list: providers use up to 60 bytes, this leaves room.
MAX_DELIVERY_ID: Final = 256
MAX_EVENT_TYPE: Final = 256


@dataclass(frozen=True, slots=True)
class Signer:
    """What verify needs to know of a source."""

    name: str
    scheme: Scheme
    secrets: tuple[bytes, ...] = field(default=(), repr=False)  # newest first
    public_url: str = ""


class Rejected(NamedTuple):
    """The request is no delivery. `reason` is the word for the sender, `why` a sentence for the log."""

    reason: str
    why: str


def verify(source: Signer, fields: Mapping[str, str], head: bytes, body: bytes, arrived_at: float, job_id: str) -> Delivery | Rejected:
    """Return the Delivery if one of the source's secrets signed exactly these bytes, else Rejected.

    `fields` are the header fields by lower-case name, each value decoded as latin-1. `arrived_at` is unix seconds.
    """
    scheme = source.scheme
    given = fields.get(scheme.header.lower())
    if not given:
        return Rejected("missing", f"there is no {scheme.header} header")
    if not given.startswith(scheme.prefix):
        return Rejected("malformed", f"{scheme.header} does not start with {scheme.prefix!r}")
    delivery_id = fields.get(scheme.id_header.lower(), "") if scheme.id_header else ""
    event_type = fields.get(scheme.event_header.lower(), "") if scheme.event_header else ""
    if len(delivery_id) > MAX_DELIVERY_ID or len(event_type) > MAX_EVENT_TYPE:
        return Rejected("malformed", f"{scheme.id_header or 'the id'} or the event type is over {MAX_DELIVERY_ID} bytes")
    message = _message(source, fields, body)
    if isinstance(message, Rejected):
        return message
    claimed = given[len(scheme.prefix) :].strip().encode("latin-1", "replace")
    if scheme.encoding == "hex":
        claimed = claimed.lower()  # RFC 4648 section 8 is case-insensitive; base64 is not
    for secret in source.secrets:
        if hmac.compare_digest(_encode(scheme, hmac.digest(secret, message, scheme.algorithm)), claimed):
            late = _untimely(scheme, fields, arrived_at)
            return late or Delivery(job_id, source.name, delivery_id, event_type, arrived_at, head, body)
    return Rejected("signature", f"no secret of source {source.name} made this {scheme.header}")


def sign(source: Signer, body: bytes, now: float, delivery_id: str, event_type: str) -> dict[str, str]:
    """Return the headers with which a sender would sign `body`: the counterpart of verify, for samples and tests."""
    scheme = source.scheme
    headers = {}
    if scheme.id_header:
        headers[scheme.id_header] = delivery_id
    if scheme.event_header:
        headers[scheme.event_header] = event_type
    if scheme.timestamp_header:
        headers[scheme.timestamp_header] = str(int(now * 1000 if scheme.timestamp_unit == "ms" else now))
    message = _message(source, {name.lower(): value for name, value in headers.items()}, body)
    if isinstance(message, Rejected):
        raise ValueError(message.why)
    digest = hmac.digest(source.secrets[0], message, scheme.algorithm)
    headers[scheme.header] = scheme.prefix + _encode(scheme, digest).decode()
    return headers


def _message(source: Signer, fields: Mapping[str, str], body: bytes) -> bytes | Rejected:
    """Return the signed bytes, or Rejected when a header that is part of them is missing."""
    scheme = source.scheme
    if scheme.signed == "{body}":
        return body
    names = {"timestamp": scheme.timestamp_header, "id": scheme.id_header}
    made = bytearray()
    for place, part in enumerate(scheme.parts()):
        if place % 2 == 0:
            made += part.encode()
        elif part == "body":
            made += body
        elif part == "url":
            made += source.public_url.encode()
        else:
            name = names.get(part) or part.removeprefix("header:")
            value = fields.get(name.lower())
            if value is None:
                return Rejected("missing", f"there is no {name} header, and it is signed")
            made += value.encode("latin-1", "replace")
    return bytes(made)


def _untimely(scheme: Scheme, fields: Mapping[str, str], arrived_at: float) -> Rejected | None:
    """Return why the timestamp is not acceptable, or None; both too old and too new are refused."""
    if not scheme.timestamp_header:
        return None
    given = fields.get(scheme.timestamp_header.lower())
    if not given:
        return Rejected("missing", f"there is no {scheme.timestamp_header} header")
    # isdigit alone admits digits of every script; 15 of them are milliseconds until the year 33658.
    if not (given.isascii() and given.isdigit() and len(given) <= 15):
        return Rejected("malformed", f"{scheme.timestamp_header} is not a whole number")
    sent_at = int(given) / (1000 if scheme.timestamp_unit == "ms" else 1)
    if abs(arrived_at - sent_at) > scheme.tolerance_s:
        return Rejected("timestamp", f"{scheme.timestamp_header} is more than {scheme.tolerance_s} s away from now")
    return None


def _encode(scheme: Scheme, digest: bytes) -> bytes:
    if scheme.encoding == "hex":
        return digest.hex().encode()
    return base64.b64encode(digest) if scheme.encoding == "base64" else base64.urlsafe_b64encode(digest)
