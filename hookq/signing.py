"""Who sent this? An arrival is verified against its source's secrets; the counterpart signs.

Rules: pure (no clock, no environment, no log, no Redis). Any bytes from anybody give a Delivery or
a Rejected, never an exception. Nothing of the body is parsed before its signature is verified (R2),
except what `special` must read. Signatures are compared in constant time. A timestamp is judged
against the time of arrival (R10). The right signature is never returned.

Does not promise: that a delivery is new. Replays within the tolerance are for the store to find, by
delivery id.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hookq.arrival import Arrival, Claim, Rejected
from hookq.job import Delivery
from hookq.schemes import Scheme
from hookq.special import mailgun_claim, twilio_messages

# A sender's id becomes part of a Redis key and of every list: providers use up to 60 bytes, this
# leaves room.
MAX_DELIVERY_ID: Final = 256
MAX_EVENT_TYPE: Final = 256
# The signatures tried of one header: a rotation needs two, and each costs an HMAC of the whole body
# per secret.
MAX_SIGNATURES: Final = 8
# The longest body that is parsed for its id and event type: parsing costs 10 ms per megabyte, and
# the loop waits meanwhile.
MAX_PARSED: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Verifier:
    """How a source proves who it is. `secrets` are the newest first; `dedupe` is id or body."""

    scheme: Scheme
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    public_url: str = ""
    dedupe: str = "id"
    # (number of the secret from 1, key): computed once, since verify runs for every request.
    keys: tuple[tuple[int, bytes], ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        keys = tuple(
            (number, key)
            for number, secret in enumerate(self.secrets, 1)
            for key in keys_of(self.scheme, secret)
        )
        object.__setattr__(self, "keys", keys)


def keys_of(scheme: Scheme, secret: bytes) -> tuple[bytes, ...]:
    """Return the keys that a secret stands for; none when it should be base64 and is not."""
    if scheme.key == "text":
        return (secret,)
    text = secret.removeprefix(b"whsec_")
    try:
        # Senders leave out the padding.
        decoded = (base64.b64decode(text + b"=" * (-len(text) % 4), validate=True),)
    except binascii.Error:
        return () if scheme.key == "base64" else (secret,)
    return decoded if scheme.key == "base64" else (secret, *decoded)


def verify(
    verifier: Verifier, arrival: Arrival, job_id: str, ahead_s: float = 0.0
) -> Delivery | Rejected:
    """Return the Delivery if one of the source's secrets signed exactly these bytes, else Rejected.

    Our clock judges the sender's timestamp. The delivery is dated `ahead_s` later, by the clock
    that all hosts share.
    """
    source, head, fields, _, body, at = arrival
    scheme = verifier.scheme
    if scheme.or_else:
        scheme = _scheme_used(scheme, fields)
    claim = _claim(verifier, scheme, arrival)
    if isinstance(claim, Rejected):
        return claim
    signatures, timestamp, messages, claimed_id = claim
    secret = _matching(verifier, scheme, signatures, messages)
    if not secret:
        return Rejected("signature", f"no secret of source {source} made this signature")
    # From here on the sender is known, and the body may be parsed (R2).
    content = _parsed(body) if scheme.reads_body else None
    if scheme.timed:
        timestamp = timestamp or _text_at(content, scheme.timestamp_field)
        if untimely := _untimely(scheme, timestamp, at):
            return untimely
    delivery_id = claimed_id or _delivery_id(scheme, arrival, content)
    event_type = fields.get(scheme.lower.event_header, "") or _text_at(content, scheme.event_field)
    if len(delivery_id) > MAX_DELIVERY_ID or len(event_type) > MAX_EVENT_TYPE:
        return Rejected(
            "malformed", f"the delivery id or the event type is over {MAX_DELIVERY_ID} characters"
        )
    if verifier.dedupe == "body":
        delivery_id = hashlib.sha256(body).hexdigest()
    return Delivery(
        job_id, source, delivery_id, event_type, at + ahead_s, head, body, secret=secret
    )


def sign(
    verifier: Verifier, body: bytes, now: float, delivery_id: str, event_type: str
) -> dict[str, str]:
    """Return the headers with which a sender would sign `body`: the counterpart of verify, for
    samples, targets and tests.

    Raises ValueError for mailgun, whose signature stands in the body.
    """
    scheme = verifier.scheme
    if scheme.special == "mailgun":
        raise ValueError("mailgun signs within the body: send a file that has its signature")
    stamp = str(int(now * 1000 if scheme.timestamp_unit == "ms" else now))
    headers = {
        name: value
        for name, value in (
            (scheme.id_header, delivery_id),
            (scheme.event_header, event_type),
            (scheme.timestamp_header, stamp),
        )
        if name
    }
    fields = {name.lower(): value for name, value in headers.items()}
    messages = _messages(verifier, scheme, Arrival("", b"", fields, "", body, now), stamp)
    if isinstance(messages, Rejected):
        raise ValueError(messages.why)
    signature = _signature(scheme, verifier.keys[0][1], messages[0]).decode("latin-1")
    if scheme.separator:
        signature = f"{scheme.signature_name}{scheme.pair}{signature}"
        if scheme.timestamp_name:
            signature = f"{scheme.timestamp_name}{scheme.pair}{stamp}{scheme.separator}{signature}"
    headers[scheme.header] = scheme.prefix + signature
    return headers


# ---------------- what an arrival claims


def _scheme_used(scheme: Scheme, fields: Mapping[str, str]) -> Scheme:
    """Return the scheme whose signature header is there, the first if neither is."""
    other = scheme.or_else
    if other and scheme.lower.header not in fields and other.lower.header in fields:
        return other
    return scheme


def _claim(verifier: Verifier, scheme: Scheme, arrival: Arrival) -> Claim | Rejected:
    if scheme.special == "mailgun":
        return mailgun_claim(arrival)
    fields = arrival.fields
    value = fields.get(scheme.lower.header)
    if not value:
        return Rejected("missing", f"there is no {scheme.header} header")
    if not value.startswith(scheme.prefix):
        return Rejected("malformed", f"{scheme.header} does not start with {scheme.prefix!r}")
    signatures, timestamp = [value[len(scheme.prefix) :].strip()], ""
    if scheme.separator:
        listed = _listed(scheme, value)
        if isinstance(listed, Rejected):
            return listed
        signatures, timestamp = listed
    if scheme.timestamp_header:
        timestamp = fields.get(scheme.lower.timestamp_header, "")
        if not timestamp:
            return Rejected("missing", f"there is no {scheme.timestamp_header} header")
    messages = _messages(verifier, scheme, arrival, timestamp)
    return messages if isinstance(messages, Rejected) else (signatures, timestamp, messages, "")


def _listed(scheme: Scheme, value: str) -> tuple[list[str], str] | Rejected:
    """Return (signatures, timestamp) of a header that is a list; other names are ignored."""
    signatures: list[str] = []
    timestamp = ""
    for item in value.split(scheme.separator, 64)[:64]:
        name, _, text = item.strip().partition(scheme.pair)
        if name == scheme.signature_name and len(signatures) < MAX_SIGNATURES:
            signatures.append(text)
        elif name == scheme.timestamp_name and scheme.timestamp_name:
            timestamp = text
    if scheme.timestamp_name and not timestamp:
        return Rejected("malformed", f"{scheme.header} has no {scheme.timestamp_name}")
    if not signatures:
        return Rejected("malformed", f"{scheme.header} has no {scheme.signature_name}")
    return signatures, timestamp


def _messages(
    verifier: Verifier, scheme: Scheme, arrival: Arrival, timestamp: str
) -> Sequence[bytes] | Rejected:
    """Return the bytes that may have been signed, or Rejected when a header among them is
    missing.
    """
    if scheme.special == "twilio":
        return twilio_messages(verifier.public_url, arrival)
    if scheme.signed == "{body}":
        return (arrival.body,)
    message = bytearray()
    for number, part in enumerate(scheme.parts):
        if number % 2 == 0:
            message += part.encode()
        elif part == "body":
            message += arrival.body
        elif part == "url":
            message += verifier.public_url.encode()
        elif part == "timestamp":
            message += timestamp.encode("latin-1", "replace")
        else:
            name = scheme.id_header if part == "id" else part.removeprefix("header:")
            value = arrival.fields.get(name.lower())
            if value is None:
                return Rejected("missing", f"there is no {name} header, and it is signed")
            message += value.encode("latin-1", "replace")
    return (bytes(message),)


# ---------------- what is proven


def _matching(
    verifier: Verifier, scheme: Scheme, signatures: Sequence[str], messages: Sequence[bytes]
) -> int:
    """Return the number of the secret (from 1, the newest first) that made one of the signatures, 0
    for none.
    """
    claimed = [text.encode("latin-1", "replace") for text in signatures]
    if scheme.encoding == "hex" and scheme.algorithm != "token":
        # Hex is case-insensitive (RFC 4648 section 8), base64 is not.
        claimed = [text.lower() for text in claimed]
    for number, key in verifier.keys:
        for message in messages:
            right = _signature(scheme, key, message)
            for text in claimed:
                if hmac.compare_digest(right, text):
                    return number
    return 0


def _signature(scheme: Scheme, key: bytes, message: bytes) -> bytes:
    if scheme.algorithm == "token":
        return key
    digest = hmac.digest(key, message, scheme.algorithm)
    if scheme.encoding == "hex":
        return digest.hex().encode()
    encode = base64.b64encode if scheme.encoding == "base64" else base64.urlsafe_b64encode
    return encode(digest)


def _untimely(scheme: Scheme, timestamp: str, at: float) -> Rejected | None:
    """Return why the timestamp is refused, too old and too new alike, or None."""
    # isdigit alone admits the digits of every script; 15 digits are milliseconds until the year
    # 33658.
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 15):
        return Rejected("malformed", "the time of signing is not a whole number")
    signed_at = int(timestamp) / (1000 if scheme.timestamp_unit == "ms" else 1)
    if abs(at - signed_at) > scheme.tolerance_s:
        return Rejected(
            "timestamp", f"it was signed more than {scheme.tolerance_s:g} s away from now"
        )
    return None


def _delivery_id(scheme: Scheme, arrival: Arrival, content: Any) -> str:
    if scheme.id_field and len(arrival.body) > MAX_PARSED:
        # The id in so long a body is not looked for; its hash still keeps it from running twice.
        return hashlib.sha256(arrival.body).hexdigest()
    id_header = arrival.fields.get(scheme.lower.id_header, "")
    return id_header or _text_at(content, scheme.id_field)


def _parsed(body: bytes) -> Any:
    """Return the value of a JSON body, None for one that is too long or not JSON."""
    try:
        return json.loads(body) if len(body) <= MAX_PARSED else None
    except (ValueError, RecursionError):
        return None


def _text_at(content: Any, path: str) -> str:
    """Return the text or number at a dotted path of a parsed body, "" when there is none."""
    if not path:
        return ""
    for name in path.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    if isinstance(content, str):
        return content.encode("utf-8", "replace").decode()
    if isinstance(content, int) and not isinstance(content, bool) and abs(content) < 10**20:
        return str(content)
    return ""
