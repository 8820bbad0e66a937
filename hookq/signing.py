"""Who sent this? Verification of raw bytes against a source's secrets, and the counterpart that
signs.

Rules: pure (no clock, no environment, no log, no Redis); any bytes from anybody give a Delivery or
a Rejected, and never another exception; nothing of the body is read before its signature holds
(R2), but for the three fields that mailgun signs; the comparison takes the same time wherever the
difference is; a timestamp is judged against the time of arrival (R10). The signature that would
have been right is never returned.

Does not promise: that a delivery is new. Replays within the tolerance are the store's to find, by
delivery id.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, parse_qsl, urlsplit

from hookq.job import Delivery
from hookq.schemes import Scheme

# A sender's id becomes part of a Redis key and of every list: providers use up to 60 bytes, this
# leaves room.
MAX_DELIVERY_ID: Final = 256
MAX_EVENT_TYPE: Final = 256
# Signatures of one header that are tried: a rotation needs two, and each costs an HMAC of the whole
# body for each secret.
MAX_SIGNATURES: Final = 8
# Of a body that is read for a field: to parse costs 10 ms a megabyte, and the loop waits. Longer
# ones have no id.
MAX_PARSED: Final = 1 << 20
# Of a form that is read before its signature is known to hold: a stranger may send it, and 6 MB of
# "%41" took 0.8 s and 500 MB. Twilio and Mailgun send a few kilobytes.
MAX_FORM: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Signer:
    """What verify needs to know of a source. `secrets` are the newest first; `dedupe` is id or
    body.
    """

    name: str
    scheme: Scheme
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    public_url: str = ""
    dedupe: str = "id"
    # Worked out once: verify runs for every request, and each name in lower case anew would cost it
    # half a microsecond.
    keys: tuple[tuple[int, bytes], ...] = field(default=(), init=False, repr=False)
    header: str = field(default="", init=False)
    id_header: str = field(default="", init=False)
    event_header: str = field(default="", init=False)

    def __post_init__(self) -> None:
        keys = tuple(
            (place, key)
            for place, secret in enumerate(self.secrets, 1)
            for key in keys_of(self.scheme, secret)
        )
        object.__setattr__(self, "keys", keys)
        for name in ("header", "id_header", "event_header"):
            object.__setattr__(self, name, getattr(self.scheme, name).lower())


class Rejected(NamedTuple):
    """The request is no delivery. `reason` is the word for the sender, `why` a sentence for the
    log.
    """

    reason: str
    why: str


# What a request says of itself: its signatures, when it was signed ("" when that is not said), what
# is signed, its id.
Claim = tuple[Sequence[str], str, Sequence[bytes], str]


def keys_of(scheme: Scheme, secret: bytes) -> tuple[bytes, ...]:
    """Return the keys that a secret stands for; none when it should be base64 and is not."""
    if scheme.key == "text":
        return (secret,)
    text = secret.removeprefix(b"whsec_")
    try:  # senders leave out the padding
        decoded: tuple[bytes, ...] = (
            base64.b64decode(text + b"=" * (-len(text) % 4), validate=True),
        )
    except binascii.Error:
        decoded = ()
    return decoded if scheme.key == "base64" else (secret, *decoded)


def verify(
    source: Signer,
    fields: Mapping[str, str],
    head: bytes,
    body: bytes,
    arrived_at: float,
    job_id: str,
    query: str = "",
    ahead_s: float = 0.0,
) -> Delivery | Rejected:
    """Return the Delivery if one of the source's secrets signed exactly these bytes, else Rejected.

    `fields` are the header fields by lower-case name, each value decoded as latin-1. `arrived_at`
    is unix seconds by our clock, which judges the sender's; the delivery is dated `ahead_s` later,
    by the clock that all hosts have in common.
    """
    scheme, id_header, event_header = source.scheme, source.id_header, source.event_header
    if scheme.or_else and source.header not in fields and scheme.or_else.header.lower() in fields:
        scheme = scheme.or_else
        id_header, event_header = scheme.id_header.lower(), scheme.event_header.lower()
    claim = _claim(source, scheme, fields, body, query)
    if isinstance(claim, Rejected):
        return claim
    signatures, timestamp, messages, delivery_id = claim
    secret = _matching(source, scheme, signatures, messages)
    if not secret:
        return Rejected("signature", f"no secret of source {source.name} made this signature")
    # From here on the sender is known, and the body may be read.
    content = _parsed(body) if scheme.reads_body and len(body) <= MAX_PARSED else None
    if (
        scheme.id_field and len(body) > MAX_PARSED
    ):  # too long to look for its id: it is still not to run twice
        delivery_id = hashlib.sha256(body).hexdigest()
    if scheme.timed:
        late = _untimely(scheme, timestamp or _at(content, scheme.timestamp_field), arrived_at)
        if late:
            return late
    delivery_id = delivery_id or fields.get(id_header, "") or _at(content, scheme.id_field)
    event_type = fields.get(event_header, "") or _at(content, scheme.event_field)
    if len(delivery_id) > MAX_DELIVERY_ID or len(event_type) > MAX_EVENT_TYPE:
        return Rejected(
            "malformed", f"the delivery id or the event type is over {MAX_DELIVERY_ID} characters"
        )
    if source.dedupe == "body":
        delivery_id = hashlib.sha256(body).hexdigest()
    return Delivery(
        job_id,
        source.name,
        delivery_id,
        event_type,
        arrived_at + ahead_s,
        head,
        body,
        secret=secret,
    )


def sign(
    source: Signer, body: bytes, now: float, delivery_id: str, event_type: str
) -> dict[str, str]:
    """Return the headers with which a sender would sign `body`: the counterpart of verify, for
    samples and tests.

    Raises ValueError for mailgun, whose signature stands in the body.
    """
    scheme = source.scheme
    if scheme.special == "mailgun":
        raise ValueError("mailgun signs within the body: send a file that has its signature")
    stamp = str(int(now * 1000 if scheme.timestamp_unit == "ms" else now))
    wanted = (
        (scheme.id_header, delivery_id),
        (scheme.event_header, event_type),
        (scheme.timestamp_header, stamp),
    )
    headers = {name: value for name, value in wanted if name}
    fields = {name.lower(): value for name, value in headers.items()}
    _, key = source.keys[0]
    if scheme.special == "twilio":
        messages: Sequence[bytes] | Rejected = _twilio_messages(source.public_url, body, "")
    else:
        message = _message(source, scheme, fields, body, stamp)
        messages = message if isinstance(message, Rejected) else [message]
    if isinstance(messages, Rejected):
        raise ValueError(messages.why)
    signature = (
        key.decode("latin-1")
        if scheme.algorithm == "token"
        else _encode(scheme, hmac.digest(key, messages[0], scheme.algorithm)).decode()
    )
    if scheme.separator:
        signature = f"{scheme.signature_name}{scheme.pair}{signature}"
        if scheme.timestamp_name:
            signature = f"{scheme.timestamp_name}{scheme.pair}{stamp}{scheme.separator}{signature}"
    headers[scheme.header] = scheme.prefix + signature
    return headers


# ---------------- what a request claims


def _claim(
    source: Signer, scheme: Scheme, fields: Mapping[str, str], body: bytes, query: str
) -> Claim | Rejected:
    if scheme.special == "mailgun":
        return _mailgun_claim(fields, body)
    given = fields.get(source.header if scheme is source.scheme else scheme.header.lower())
    if not given:
        return Rejected("missing", f"there is no {scheme.header} header")
    if not given.startswith(scheme.prefix):
        return Rejected("malformed", f"{scheme.header} does not start with {scheme.prefix!r}")
    signatures, timestamp = [given[len(scheme.prefix) :].strip()], ""
    if scheme.separator:
        listed = _listed(scheme, given)
        if isinstance(listed, Rejected):
            return listed
        signatures, timestamp = listed
    if scheme.timestamp_header:
        timestamp = fields.get(scheme.timestamp_header.lower(), "")
        if not timestamp:
            return Rejected("missing", f"there is no {scheme.timestamp_header} header")
    if scheme.special == "twilio":
        messages = _twilio_messages(source.public_url, body, query)
        return messages if isinstance(messages, Rejected) else (signatures, timestamp, messages, "")
    message = _message(source, scheme, fields, body, timestamp)
    return message if isinstance(message, Rejected) else (signatures, timestamp, (message,), "")


def _listed(scheme: Scheme, given: str) -> tuple[list[str], str] | Rejected:
    """Return (signatures, timestamp) of a header that is a list; parts of unknown names are left
    alone.
    """
    signatures: list[str] = []
    timestamp = ""
    for part in given.split(scheme.separator, 64)[:64]:
        name, _, value = part.strip().partition(scheme.pair)
        if name == scheme.signature_name and len(signatures) < MAX_SIGNATURES:
            signatures.append(value)
        elif name == scheme.timestamp_name and scheme.timestamp_name:
            timestamp = value
    if scheme.timestamp_name and not timestamp:
        return Rejected("malformed", f"{scheme.header} has no {scheme.timestamp_name}")
    if not signatures:
        return Rejected("malformed", f"{scheme.header} has no {scheme.signature_name}")
    return signatures, timestamp


def _message(
    source: Signer, scheme: Scheme, fields: Mapping[str, str], body: bytes, timestamp: str
) -> bytes | Rejected:
    """Return the signed bytes, or Rejected when a header that is part of them is missing."""
    if scheme.signed == "{body}":
        return body
    made = bytearray()
    for place, part in enumerate(scheme.parts()):
        if place % 2 == 0:
            made += part.encode()
        elif part == "body":
            made += body
        elif part == "url":
            made += source.public_url.encode()
        elif part == "timestamp":
            made += timestamp.encode("latin-1", "replace")
        else:
            name = scheme.id_header if part == "id" else part.removeprefix("header:")
            value = fields.get(name.lower())
            if value is None:
                return Rejected("missing", f"there is no {name} header, and it is signed")
            made += value.encode("latin-1", "replace")
    return bytes(made)


def _twilio_messages(public_url: str, body: bytes, query: str) -> Sequence[bytes] | Rejected:
    """Return what Twilio may have signed: the URL it called, with its port or without (their own
    libraries try both), and the form's fields by name; or the URL alone when it carries the hash of
    the body.
    """
    url = f"{public_url.partition('?')[0]}?{query}" if query else public_url
    split = urlsplit(url)
    hashed = parse_qs(split.query).get("bodySHA256")
    tail = b""
    if hashed:
        if not hmac.compare_digest(
            hashlib.sha256(body).hexdigest().encode(), hashed[0].lower().encode()
        ):
            return Rejected("signature", "the body is not the one whose hash the URL carries")
    elif len(body) > MAX_FORM:
        return Rejected("malformed", f"the form is over {MAX_FORM} bytes")
    else:
        try:
            found = sorted(
                set(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000))
            )
        except ValueError:
            return Rejected("malformed", "the body is no form")
        tail = "".join(name + value for name, value in found).encode("utf-8", "replace")
    host = split.hostname or ""
    port = {"https": 443, "http": 80}.get(split.scheme, 0)
    with_port = url.replace(f"//{host}", f"//{host}:{port}", 1) if not split.port else url
    without = url.replace(f"//{host}:{split.port}", f"//{host}", 1) if split.port else url
    return [made.encode("utf-8", "replace") + tail for made in (url, with_port, without)]


def _mailgun_claim(fields: Mapping[str, str], body: bytes) -> Claim | Rejected:
    """Return what a body says of itself: JSON with an object `signature`, or a form with the same
    three fields.
    """
    form = fields.get("content-type", "").startswith(
        ("application/x-www-form-urlencoded", "multipart/")
    )
    if len(body) > (MAX_FORM if form else MAX_PARSED):
        return Rejected("malformed", "the body is too long to look for the signature in it")
    try:
        found: Any = (
            dict(parse_qsl(body.decode(), max_num_fields=1000))
            if form
            else json.loads(body)["signature"]
        )
        # "replace": half a surrogate pair could be signed, but neither sent to Redis nor written to
        # a disk.
        signature, timestamp, token = (
            str(found[name]).encode("utf-8", "replace").decode()
            for name in ("signature", "timestamp", "token")
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return Rejected(
            "malformed", "the body has no signature with timestamp, token and signature"
        )
    return [signature], timestamp, [(timestamp + token).encode()], token


# ---------------- what holds


def _matching(
    source: Signer, scheme: Scheme, signatures: Sequence[str], messages: Sequence[bytes]
) -> int:
    """Return the place (from 1, the newest first) of the secret that made one of the signatures, 0
    for none.
    """
    claimed = [text.encode("latin-1", "replace") for text in signatures]
    if scheme.encoding == "hex" and scheme.algorithm != "token":
        claimed = [
            text.lower() for text in claimed
        ]  # RFC 4648 section 8 is case-insensitive; base64 is not
    for place, key in source.keys:
        for message in messages:
            right = (
                key
                if scheme.algorithm == "token"
                else _encode(scheme, hmac.digest(key, message, scheme.algorithm))
            )
            for text in claimed:
                if hmac.compare_digest(right, text):
                    return place
    return 0


def _untimely(scheme: Scheme, given: str, arrived_at: float) -> Rejected | None:
    """Return why the timestamp is not acceptable, or None; both too old and too new are refused."""
    # isdigit alone admits digits of every script; 15 of them are milliseconds until the year 33658.
    if not (given.isascii() and given.isdigit() and len(given) <= 15):
        return Rejected("malformed", "the time of signing is not a whole number")
    sent_at = int(given) / (1000 if scheme.timestamp_unit == "ms" else 1)
    if abs(arrived_at - sent_at) > scheme.tolerance_s:
        return Rejected(
            "timestamp", f"it was signed more than {scheme.tolerance_s:g} s away from now"
        )
    return None


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _at(content: Any, path: str) -> str:
    """Return the text or number at a dotted path of a parsed body, "" when there is none."""
    for name in path.split(".") if path else ():
        content = content.get(name) if isinstance(content, dict) else None
    if not path or isinstance(content, bool) or not isinstance(content, str | int):
        return ""
    return (
        str(content).encode("utf-8", "replace").decode()
        if isinstance(content, str) or abs(content) < 10**20
        else ""
    )


def _encode(scheme: Scheme, digest: bytes) -> bytes:
    if scheme.encoding == "hex":
        return digest.hex().encode()
    return (
        base64.b64encode(digest)
        if scheme.encoding == "base64"
        else base64.urlsafe_b64encode(digest)
    )
