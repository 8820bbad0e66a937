"""How senders sign: one row per scheme. Pure data.

A scheme says which header carries the signature, what string is signed, with which algorithm and encoding, and
where the delivery id and the event type stand. `signing.verify` reads these rows; nothing else does.

`signed` is a template over {body} {timestamp} {id} {url} {header:Name}; everything in it comes from the request as
bytes, and {url} from the settings. A new provider is a row here, and its published vector in tests/test_signing.py.
"""

import re
from dataclasses import dataclass
from typing import Final

ALGORITHMS: Final = ("sha1", "sha256", "sha512")
ENCODINGS: Final = ("hex", "base64", "base64url")
PART: Final = re.compile(r"\{(body|timestamp|id|url|header:[A-Za-z0-9-]+)\}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to sign. Header names may be written in any case; they are compared in lower case."""

    header: str = "X-Webhook-Signature"
    prefix: str = ""
    algorithm: str = "sha256"
    encoding: str = "hex"
    signed: str = "{body}"
    timestamp_header: str = ""
    timestamp_unit: str = "s"  # "ms" otherwise
    tolerance_s: int = 300  # what Stripe, Slack and Standard Webhooks advise
    id_header: str = ""
    event_header: str = ""

    def parts(self) -> list[str]:
        """Return `signed` cut into literals (even places) and names of parts (odd places)."""
        return PART.split(self.signed)


# docs.github.com, "Validating webhook deliveries": HMAC-SHA256 of the raw body in X-Hub-Signature-256.
# It signs neither id nor time, so deduplication is the only defence against a request that is recorded and sent again.
SCHEMES: Final = {
    "github": Scheme(header="X-Hub-Signature-256", prefix="sha256=", id_header="X-GitHub-Delivery", event_header="X-GitHub-Event"),
    "hmac": Scheme(),
}
