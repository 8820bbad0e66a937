"""How senders sign: one row per scheme.

A scheme names the header that carries the signature and how it is written there, the bytes that are
signed, the algorithm and encoding, how the secret becomes a key, and where the delivery id and the
event type stand. `signing.verify` reads these rows; `special` has the two that no row can express.

`signed` is a template over {body} {timestamp} {id} {url} {header:Name}. All of it comes from the
request as bytes, except {url}, which comes from the settings. A new provider is a row here, with
the document it follows, and its published vector in hookq/vectors.json.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

ALGORITHMS: Final = ("sha1", "sha256", "sha512")
ENCODINGS: Final = ("hex", "base64", "base64url")
PART: Final = re.compile(r"\{(body|timestamp|id|url|header:[A-Za-z0-9-]+)\}")


class Lower(NamedTuple):
    """The names of a scheme's headers in lower case, as a request's fields are keyed."""

    header: str
    timestamp_header: str
    id_header: str
    event_header: str


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to sign. Header names are compared in lower case."""

    header: str = "X-Webhook-Signature"
    prefix: str = ""
    # "token": the header is the secret itself.
    algorithm: str = "sha256"
    encoding: str = "hex"
    signed: str = "{body}"
    timestamp_header: str = ""
    # "s" or "ms".
    timestamp_unit: str = "s"
    # Stripe, Slack and Standard Webhooks recommend five minutes.
    tolerance_s: float = 300
    id_header: str = ""
    event_header: str = ""
    # A header that is a list, such as "t=1,v1=a,v1=b": what separates its items, what separates
    # name and value, and the two names that matter. Any of several signatures will do: senders send
    # two while they rotate their secret.
    separator: str = ""
    pair: str = "="
    signature_name: str = ""
    timestamp_name: str = ""
    # Fields of a JSON body, by dotted path, read once the signature is verified.
    id_field: str = ""
    event_field: str = ""
    timestamp_field: str = ""
    # How a secret becomes a key: "text", its bytes; "base64", decoded after whsec_; "either".
    key: str = "text"
    # The scheme's function in special.py.
    special: str = ""
    # Used when this scheme's header is missing and that one's is there.
    or_else: "Scheme | None" = None
    # Derived from the rest once, since verify runs for every request.
    lower: Lower = field(init=False, repr=False)
    parts: tuple[str, ...] = field(init=False, repr=False)
    timed: bool = field(init=False, repr=False)
    reads_body: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        timed = self.timestamp_header or self.timestamp_name or self.timestamp_field
        derived = {
            "lower": Lower(*(getattr(self, name).lower() for name in Lower._fields)),
            # Literals at even places, names of parts at odd ones.
            "parts": tuple(PART.split(self.signed)),
            "timed": bool(timed) or self.special == "mailgun",
            "reads_body": bool(self.id_field or self.event_field or self.timestamp_field),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def needs_url(self) -> bool:
        return "{url}" in self.signed or self.special == "twilio"


_STANDARD: Final = Scheme(
    header="webhook-signature", signed="{id}.{timestamp}.{body}", encoding="base64",
    separator=" ", pair=",", signature_name="v1", timestamp_header="webhook-timestamp",
    id_header="webhook-id", event_field="type", key="base64",
)  # fmt: skip

SCHEMES: Final = {
    # docs.github.com, "Validating webhook deliveries". It signs neither id nor time: deduplication
    # is the only defence against a request that is recorded and sent again (the same is true of
    # shopify, gitlab's token, square, twilio, meta).
    "github": Scheme(
        header="X-Hub-Signature-256", prefix="sha256=", id_header="X-GitHub-Delivery",
        event_header="X-GitHub-Event",
    ),
    # docs.stripe.com, "Verify webhook signatures manually": the whole secret, whsec_ included, is
    # the key.
    "stripe": Scheme(
        header="Stripe-Signature", signed="{timestamp}.{body}", separator=",",
        signature_name="v1", timestamp_name="t", id_field="id", event_field="type",
    ),
    # api.slack.com, "Verifying requests from Slack".
    "slack": Scheme(
        header="X-Slack-Signature", prefix="v0=", signed="v0:{timestamp}:{body}",
        timestamp_header="X-Slack-Request-Timestamp", id_field="event_id", event_field="event.type",
    ),
    # shopify.dev, "Verify webhooks".
    "shopify": Scheme(
        header="X-Shopify-Hmac-SHA256", encoding="base64", id_header="X-Shopify-Webhook-Id",
        event_header="X-Shopify-Topic",
    ),
    # The Standard Webhooks specification, "Signature scheme"; Svix sends the same under names of
    # its own.
    "standard-webhooks": replace(
        _STANDARD,
        or_else=replace(
            _STANDARD, header="svix-signature", timestamp_header="svix-timestamp",
            id_header="svix-id",
        ),
    ),
    # docs.gitlab.com, "Webhooks": a signing token (Standard Webhooks), or the older secret token,
    # which is no signature: whoever sees one request can make others.
    "gitlab": replace(
        _STANDARD, key="either", event_header="X-Gitlab-Event", event_field="",
        or_else=Scheme(
            header="X-Gitlab-Token", algorithm="token", id_header="Idempotency-Key",
            event_header="X-Gitlab-Event",
        ),
    ),
    # www.twilio.com, "Webhooks Security": the URL and the form's fields, or the URL with the hash
    # of a JSON body.
    "twilio": Scheme(
        header="X-Twilio-Signature", algorithm="sha1", encoding="base64", special="twilio",
        id_header="I-Twilio-Idempotency-Token",
    ),
    # linear.app/developers, "Webhooks": the time is in the body, in milliseconds, and a minute is
    # advised.
    "linear": Scheme(
        header="Linear-Signature", id_header="Linear-Delivery", event_header="Linear-Event",
        timestamp_field="webhookTimestamp", timestamp_unit="ms", tolerance_s=60,
    ),
    # developer.squareup.com, "Validate Square notifications".
    "square": Scheme(
        header="x-square-hmacsha256-signature", signed="{url}{body}", encoding="base64",
        id_field="event_id", event_field="type",
    ),
    # developer.paddle.com, "Signature verification"; their own libraries allow 5 s, which a retry
    # of ours would not survive.
    "paddle": Scheme(
        header="Paddle-Signature", signed="{timestamp}:{body}", separator=";",
        signature_name="h1", timestamp_name="ts", id_field="event_id", event_field="event_type",
    ),
    # developers.zoom.us, "Using webhooks".
    "zoom": Scheme(
        header="x-zm-signature", prefix="v0=", signed="v0:{timestamp}:{body}",
        timestamp_header="x-zm-request-timestamp", event_field="event",
    ),
    # documentation.mailgun.com, "Securing webhooks": time, token and signature stand in the body
    # and do not cover the rest of it. It tries again for 8 h with the same ones.
    "mailgun": Scheme(special="mailgun", tolerance_s=43_200, event_field="event-data.event"),
    # developers.facebook.com, "Webhooks": the app secret.
    "meta": Scheme(header="X-Hub-Signature-256", prefix="sha256=", event_field="object"),
    "hmac": Scheme(),
}  # fmt: skip
