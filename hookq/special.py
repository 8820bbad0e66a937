"""Schemes that no row of `schemes` can express: what Twilio and Mailgun sign.

Rules: pure; any bytes give a result or a Rejected. Both read a body whose sender is still unknown
(R2), so what they read is bounded.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, urlsplit

from hookq.arrival import Arrival, Claim, Rejected

# The longest form that is parsed before its signature is verified: 6 MB of "%41" from a stranger
# took 0.8 s and 500 MB. Twilio and Mailgun send a few kilobytes.
MAX_FORM: Final = 64 * 1024
# The same for JSON, where parsing costs 10 ms per megabyte.
MAX_JSON: Final = 1 << 20


def twilio_messages(public_url: str, arrival: Arrival) -> Sequence[bytes] | Rejected:
    """Return what Twilio may have signed: the called URL, then the form's fields sorted by name, or
    nothing where the URL carries the hash of the body. The port may be in the URL or not: Twilio's
    own libraries try both.
    """
    query = arrival.query
    url = f"{public_url.partition('?')[0]}?{query}" if query else public_url
    hashed = parse_qs(urlsplit(url).query).get("bodySHA256")
    fields = _hash_matches(hashed[0], arrival.body) if hashed else _sorted_fields(arrival.body)
    if isinstance(fields, Rejected):
        return fields
    return [text.encode("utf-8", "replace") + fields for text in _with_and_without_port(url)]


def _hash_matches(claimed: str, body: bytes) -> bytes | Rejected:
    """Return b"", since the form is not signed then, or Rejected for a body of another hash."""
    if hmac.compare_digest(hashlib.sha256(body).hexdigest().encode(), claimed.lower().encode()):
        return b""
    return Rejected("signature", "the body is not the one whose hash the URL carries")


def _sorted_fields(body: bytes) -> bytes | Rejected:
    if len(body) > MAX_FORM:
        return Rejected("malformed", f"the form is over {MAX_FORM} bytes")
    try:
        fields = set(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000))
    except ValueError:
        return Rejected("malformed", "the body is no form")
    return "".join(name + value for name, value in sorted(fields)).encode("utf-8", "replace")


def _with_and_without_port(url: str) -> tuple[str, str, str]:
    split = urlsplit(url)
    host, port = split.hostname or "", split.port
    default = {"https": 443, "http": 80}.get(split.scheme, 0)
    with_port = url if port else url.replace(f"//{host}", f"//{host}:{default}", 1)
    without = url.replace(f"//{host}:{port}", f"//{host}", 1) if port else url
    return url, with_port, without


def mailgun_claim(arrival: Arrival) -> Claim | Rejected:
    """Return the claim in a body: JSON with an object `signature`, or a form with the same three
    fields. The token is the delivery id.
    """
    form = arrival.fields.get("content-type", "").startswith(
        ("application/x-www-form-urlencoded", "multipart/")
    )
    if len(arrival.body) > (MAX_FORM if form else MAX_JSON):
        return Rejected("malformed", "the body is too long to look for the signature in it")
    try:
        fields: Any = (
            dict(parse_qsl(arrival.body.decode(), max_num_fields=1000))
            if form
            else json.loads(arrival.body)["signature"]
        )
        # "replace": half a surrogate pair could be signed, but neither sent to Redis nor written
        # to disk.
        signature, timestamp, token = (
            str(fields[name]).encode("utf-8", "replace").decode()
            for name in ("signature", "timestamp", "token")
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return Rejected(
            "malformed", "the body has no signature with timestamp, token and signature"
        )
    return [signature], timestamp, [(timestamp + token).encode()], token
