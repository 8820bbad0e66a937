"""Who sent it: published vectors, every parameter, every malformed header; any bytes give a
Delivery or a Rejected.
"""

import base64
import hmac
import json
import time
from dataclasses import replace

import pytest
from conftest import GITHUB, NOW, SECRET
from hypothesis import given, settings
from hypothesis import strategies as st

from hookq import selftest, signing
from hookq.arrival import Arrival, Rejected
from hookq.job import Delivery
from hookq.schemes import ALGORITHMS, ENCODINGS, SCHEMES, Scheme
from hookq.signing import Verifier, sign, verify

BODY = b'{"ref":"refs/heads/main"}\xff\x00'
TIMED = Scheme(
    prefix="v1=",
    signed="{timestamp}.{id}.{body}",
    timestamp_header="X-Time",
    id_header="X-Id",
    event_header="X-Event",
    header="X-Sign",
)


def check(verifier, headers, body=BODY, now=NOW, query=""):
    fields = {name.lower(): value for name, value in headers.items()}
    return verify(verifier, Arrival("p", b"", fields, query, body, now), "job")


def test_verify_accepts_the_vector_that_github_publishes():
    # docs.github.com, "Validating webhook deliveries"
    verifier = Verifier(SCHEMES["github"], (b"It's a Secret to Everybody",))
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert isinstance(
        check(verifier, {"X-Hub-Signature-256": signature}, b"Hello, World!"), Delivery
    )
    assert (
        check(verifier, {"X-Hub-Signature-256": signature}, b"Hello, World").reason == "signature"
    )


@pytest.mark.parametrize(
    "signed",
    [
        "{body}",
        "{timestamp}.{body}",
        "{id}|{timestamp}|{body}",
        "v0:{timestamp}:{body}",
        "{url}{body}",
        "{header:X-Event}{body}",
    ],
)
@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_verify_accepts_what_sign_makes_with_any_parameters(algorithm, encoding, unit, signed):
    scheme = replace(
        TIMED, algorithm=algorithm, encoding=encoding, timestamp_unit=unit, signed=signed
    )
    verifier = Verifier(scheme, (b"k" * 16,), "https://example.com/hook")
    verdict = check(verifier, sign(verifier, BODY, NOW, "id-1", "paid"))
    assert (
        verdict.delivery_id,
        verdict.event_type,
        verdict.body,
        verdict.id,
        verdict.received_at,
    ) == (
        "id-1",
        "paid",
        BODY,
        "job",
        NOW,
    )
    other = replace(verifier, public_url="https://example.com/other", secrets=(b"x" * 16,))
    assert check(other, sign(verifier, BODY, NOW, "id-1", "paid")).reason == "signature"


def test_verify_rejects_every_flipped_byte_of_body_and_signature():
    headers = sign(GITHUB, BODY, NOW, "id", "push")
    for at in range(len(BODY)):
        changed = BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :]
        assert check(GITHUB, headers, changed).reason == "signature"
    good = headers["X-Hub-Signature-256"]
    for at in range(7, len(good)):
        changed = good[:at] + ("0" if good[at] != "0" else "1") + good[at + 1 :]
        assert check(GITHUB, {**headers, "X-Hub-Signature-256": changed}).reason == "signature"


def test_verify_accepts_hex_in_upper_case_and_base64_only_as_it_is():
    headers = sign(GITHUB, BODY, NOW, "id", "push")
    assert isinstance(
        check(
            GITHUB,
            {
                **headers,
                "X-Hub-Signature-256": "sha256=" + headers["X-Hub-Signature-256"][7:].upper(),
            },
        ),
        Delivery,
    )
    verifier = Verifier(replace(TIMED, encoding="base64", prefix=""), (b"k" * 16,))
    headers = sign(verifier, BODY, NOW, "id", "push")
    assert (
        check(verifier, {**headers, "X-Sign": headers["X-Sign"].swapcase()}).reason == "signature"
    )


@pytest.mark.parametrize(
    ("header", "value", "reason"),
    [
        ("X-Sign", None, "missing"),
        ("X-Sign", "", "missing"),
        ("X-Sign", "v1", "malformed"),
        ("X-Sign", "v0=abc", "malformed"),
        ("X-Sign", "v1=", "signature"),
        ("X-Sign", "v1=zz", "signature"),
        ("X-Sign", "v1=\xff\xfe", "signature"),
        ("X-Sign", "v1=" + "0" * 64 + ", v1=" + "0" * 64, "signature"),
        ("X-Sign", "v1=" + "0" * 10_000, "signature"),
        ("X-Time", None, "missing"),
        ("X-Time", "1.5", "signature"),
        ("X-Id", None, "missing"),
        ("X-Id", "x" * 257, "signature"),
        ("X-Event", "x" * 257, "malformed"),
    ],
)
def test_verify_of_a_malformed_header_gives_its_reason(header, value, reason):
    verifier = Verifier(TIMED, (b"k" * 16,))
    headers = {**sign(verifier, BODY, NOW, "id", "push"), header: value}
    verdict = check(verifier, {k: v for k, v in headers.items() if v is not None})
    assert isinstance(verdict, Rejected) and verdict.reason == reason


@pytest.mark.parametrize("value", ["", "x", "-1", "+5", "1_0", "٣", "²", "1" * 16, " 1", "1e9"])
def test_signed_timestamp_that_is_no_number_is_malformed_R10(value):
    # A sender with the right secret and a broken clock: the signature holds, the timestamp does
    # not.
    verifier = Verifier(TIMED, (b"k" * 16,))
    message = f"{value}.id.".encode("latin-1", "replace") + BODY
    digest = hmac.digest(b"k" * 16, message, "sha256").hex()
    verdict = check(verifier, {"X-Sign": "v1=" + digest, "X-Time": value, "X-Id": "id"})
    assert verdict.reason in ("malformed", "missing")


@pytest.mark.parametrize(
    ("away_s", "reason"),
    [
        (0, None),
        (300, None),
        (-300, None),
        (301, "timestamp"),
        (-301, "timestamp"),
        (10**9, "timestamp"),
    ],
)
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_verify_judges_the_timestamp_against_the_arrival_R10(away_s, reason, unit):
    verifier = Verifier(replace(TIMED, timestamp_unit=unit), (b"k" * 16,))
    verdict = check(verifier, sign(verifier, BODY, NOW, "id", "push"), now=NOW + away_s)
    assert getattr(verdict, "reason", None) == reason


def test_verify_accepts_each_of_several_secrets_and_no_other():
    old, new = replace(GITHUB, secrets=(b"old" * 6,)), replace(GITHUB, secrets=(b"new" * 6,))
    both = replace(GITHUB, secrets=(*new.secrets, *old.secrets))
    for signer in (old, new):
        assert isinstance(check(both, sign(signer, BODY, NOW, "id", "push")), Delivery)
    assert check(both, sign(GITHUB, BODY, NOW, "id", "push")).reason == "signature"


def test_no_secret_and_no_expected_signature_is_ever_told():
    verdict = check(GITHUB, {"X-Hub-Signature-256": "sha256=00"})
    expected = sign(GITHUB, BODY, NOW, "id", "push")["X-Hub-Signature-256"][7:]
    assert SECRET not in repr(GITHUB) + repr(verdict) and expected not in repr(verdict)


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "mailgun"])
def test_signatures_are_compared_in_constant_time(name, equal, monkeypatch):
    verifier = Verifier(SCHEMES[name], (b"k" * 24,), "https://example.com/hook?bodySHA256=0")
    body = b'{"webhookTimestamp":%d}' % (NOW * 1000)
    headers = sign(replace(verifier, public_url="https://example.com/hook"), body, NOW, "", "")
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair) or equal)
    # Nothing but compare_digest decides: what it calls equal holds, and nothing else does.
    reason = getattr(check(verifier, headers, body), "reason", None)
    assert reason == (None if equal else "signature")
    assert compared and all(type(text) is bytes for pair in compared for text in pair)


def test_rejected_arrival_verifies_later_as_of_its_time_R10():
    # Kept while the secret was wrong, and verified again after it was mended, however much later.
    headers = {
        k.lower(): v
        for k, v in sign(Verifier(TIMED, (b"k" * 16,)), BODY, NOW, "id", "push").items()
    }
    kept = Arrival("partner", b"X-Id: id", headers, "", BODY, NOW)
    assert verify(Verifier(TIMED, (b"wrong" * 4,)), kept, "job").reason == "signature"
    delivery = verify(Verifier(TIMED, (b"k" * 16,)), kept, "job", ahead_s=0.25)
    assert delivery == Delivery(
        "job", "partner", "id", "push", NOW + 0.25, b"X-Id: id", BODY, secret=1
    )


@pytest.mark.parametrize(
    "vector", json.loads(selftest.VECTORS.read_text())["vectors"], ids=lambda vector: vector["id"]
)
def test_vector_holds(vector):
    assert selftest.answer(vector) == vector["expect"] or (
        vector["expect"] == "reject" and selftest.answer(vector) != "accept"
    )


def test_every_scheme_has_an_accepted_vector_and_a_signer():
    vectors = json.loads(selftest.VECTORS.read_text())["vectors"]
    assert {v["scheme"] for v in vectors if v["expect"] == "accept"} == set(SCHEMES)
    for name, scheme in SCHEMES.items():
        verifier = Verifier(
            scheme,
            (b"whsec_" + base64.b64encode(b"k" * 24), b"old" * 8),
            "https://example.com/hook?a=1",
        )
        if name == "mailgun":
            with pytest.raises(ValueError, match="within the body"):
                sign(verifier, BODY, NOW, "id-1", "paid")
            continue
        body = (
            b"a=1&b=2"
            if name == "twilio"
            else b'{"id":"id-1","event_id":"id-1","type":"paid","webhookTimestamp":%d}'
            % (NOW * 1000)
        )
        verdict = check(verifier, sign(verifier, body, NOW, "id-1", "paid"), body)
        assert isinstance(verdict, Delivery), (name, verdict)
        assert (
            verdict.delivery_id == "id-1" or name in ("zoom", "meta", "hmac")
        ) and verdict.secret == 1, name


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "mailgun"])
def test_every_signed_byte_that_is_flipped_rejects(name):
    verifier = Verifier(
        SCHEMES[name],
        (b"whsec_" + base64.b64encode(b"k" * 24),),
        "https://example.com/hook?a=1",
    )
    body = b"a=1&b=2" if name == "twilio" else b'{"webhookTimestamp":%d}' % (NOW * 1000)
    headers = sign(verifier, body, NOW, "id-1", "paid")
    covered = SCHEMES[name].algorithm != "token"
    for at in range(len(body)):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert isinstance(check(verifier, headers, changed), Rejected) is covered
    scheme = SCHEMES[name]
    signed = [scheme.header] + [
        n
        for n, part in ((scheme.timestamp_header, "{timestamp}"), (scheme.id_header, "{id}"))
        if part in scheme.signed and n
    ]
    for header in signed:
        for at in range(len(headers[header])):
            changed = (
                headers[header][:at] + chr(ord(headers[header][at]) ^ 1) + headers[header][at + 1 :]
            )
            verdict = check(verifier, {**headers, header: changed}, body)
            # The last character of base64 can hold bits that are no part of the value; hex may be
            # written in either case.
            assert isinstance(verdict, Rejected) or at >= len(headers[header]) - 2, (header, at)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", ""),
        ("é".encode("utf-16"), "text/plain"),
        (bytes(range(256)), "application/octet-stream"),
        (b"x" * (25 << 20), ""),
        (b"a=1&a=2", "application/x-www-form-urlencoded"),
    ],
    ids=["empty", "utf-16", "binary", "25 MB", "form"],
)
@pytest.mark.parametrize("name", ["github", "stripe", "standard-webhooks", "slack", "square"])
def test_any_body_verifies_like_any_other(name, body, kind):
    verifier = Verifier(
        SCHEMES[name], (b"whsec_" + base64.b64encode(b"k" * 24),), "https://example.com/hook"
    )
    verdict = check(
        verifier, {"Content-Type": kind, **sign(verifier, body, NOW, "id-1", "paid")}, body
    )
    assert isinstance(verdict, Delivery) and verdict.body is body


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize(
    "value",
    [
        "," * 1_000_000,
        " " * 8000,
        "t=1," * 100_000,
        "v1=" * 3000,
        "\xff\xfe",
        "==",
        "v1,v1,v1",
        "sha256=" + "é" * 64,
        "v0=0 ",
        "t=1;t=2,t=3",
        "ts=1;h1=",
    ],
)
def test_nonsense_in_the_signature_is_rejected_quickly(name, value):
    scheme = SCHEMES[name]
    verifier = Verifier(
        scheme, (b"whsec_" + base64.b64encode(b"k" * 24),) * 3, "https://example.com/hook"
    )
    fields = dict.fromkeys(
        (
            scheme.header,
            scheme.or_else.header if scheme.or_else else "x",
            scheme.timestamp_header or "y",
        ),
        value,
    )
    started = time.process_time()
    verdict = check(
        verifier, fields, b'{"signature":{"timestamp":"x","token":[],"signature":1e999}}'
    )
    assert isinstance(verdict, Rejected) and time.process_time() - started < 0.5


def test_rotation_tells_which_secret_matched_and_both_are_tried():
    old, new = (Verifier(SCHEMES["stripe"], (key,)) for key in (b"old" * 8, b"new" * 8))
    both = Verifier(SCHEMES["stripe"], (b"new" * 8, b"old" * 8))
    assert [check(both, sign(one, b"{}", NOW, "", ""), b"{}").secret for one in (new, old)] == [
        1,
        2,
    ]


def test_dedupe_by_body_ignores_what_the_sender_did_not_sign():
    verifier = Verifier(SCHEMES["github"], (SECRET.encode(),), dedupe="body")
    headers = sign(verifier, BODY, NOW, "id-1", "push")
    ids = {
        check(verifier, {**headers, "X-GitHub-Delivery": id}).delivery_id
        for id in ("id-1", "id-2", "")
    }
    assert len(ids) == 1 and len(next(iter(ids))) == 64


def test_twilio_signs_the_called_query_and_the_configured_host():
    verifier = Verifier(SCHEMES["twilio"], (b"12345" * 4,), "https://example.com/hook")
    signed = sign(
        Verifier(SCHEMES["twilio"], verifier.secrets, "https://example.com/hook?a=1&b=2"),
        b"x=1",
        NOW,
        "",
        "",
    )
    fields = {name.lower(): value for name, value in signed.items()}
    assert isinstance(check(verifier, fields, b"x=1", query="a=1&b=2"), Delivery)
    assert check(verifier, fields, b"x=1", query="a=1&b=3").reason == "signature"
    assert check(verifier, {**fields, "host": "example.com"}, b"x=1").reason == "signature"


def test_body_is_not_trusted_before_its_signature_R2():
    verifier = Verifier(SCHEMES["stripe"], (b"k" * 24,))
    for body, id, event in [
        (b'{"id":"evt_1","type":"a.b"}', "evt_1", "a.b"), (b'{"id":7}', "7", ""), (b'{"id":true,"type":[]}', "", ""), (b"[]", "", ""), (b"no json", "", ""),
        (b'{"id":"\\ud800"}', "?", ""), (b"[" * 100_000, "", ""), (b'{"id":"' + b"x" * 300 + b'"}', None, None), (b'{"id":1' + b"0" * 30 + b"}", "", ""),
    ]:  # fmt: skip
        verdict = check(verifier, sign(verifier, body, NOW, "", ""), body)
        assert (
            isinstance(verdict, Rejected)
            if id is None
            else (verdict.delivery_id, verdict.event_type) == (id, event)
        ), body


FIELDS = [
    "x-sign",
    "x-time",
    "x-id",
    *{
        n.lower()
        for s in SCHEMES.values()
        for n in (s.header, s.timestamp_header, s.id_header)
        if n
    },
    "svix-signature",
    "x-gitlab-token",
]
BITS = [
    "t=",
    "v1=",
    "v1,",
    "v0=",
    "sha256=",
    "ts=",
    ";h1=",
    ",",
    " ",
    "1700000000",
    "a" * 64,
    "AAAA",
]


@settings(max_examples=10_000, deadline=None)
@given(
    name=st.sampled_from(sorted(SCHEMES)),
    headers=st.dictionaries(
        st.sampled_from(FIELDS),
        st.lists(
            st.sampled_from(BITS) | st.binary(max_size=9).map(lambda b: b.decode("latin-1")),
            max_size=6,
        ).map("".join),
    ),
    body=st.binary(max_size=60)
    | st.sampled_from(
        [
            b'{"signature":{}}',
            b'{"signature":{"timestamp":1,"token":2,"signature":null}}',
            b"{}",
            b"timestamp=1&token=2&signature=3",
        ]
    ),
    query=st.text("abS2=&%\xe9", max_size=20) | st.just("bodySHA256=00"),
)
def test_any_bytes_in_any_scheme_give_a_delivery_or_a_rejected(name, headers, body, query):
    verifier = Verifier(
        SCHEMES[name],
        (b"whsec_" + base64.b64encode(b"k" * 24), b"z" * 20),
        "https://example.com:8443/hook?x=y",
    )
    verdict = check(verifier, headers, body, query=query)
    assert isinstance(verdict, Rejected) and verdict.reason in (
        "missing",
        "malformed",
        "signature",
        "timestamp",
    )


@given(
    headers=st.dictionaries(
        st.sampled_from(["x-sign", "x-time", "x-id", "x-event"]), st.binary(max_size=80)
    ),
    body=st.binary(max_size=200),
    prefixed=st.booleans(),
)
def test_any_bytes_give_a_delivery_or_a_rejected(headers, body, prefixed):
    fields = {name: value.decode("latin-1") for name, value in headers.items()}
    if prefixed and "x-sign" in fields:
        fields["x-sign"] = "v1=" + fields["x-sign"]
    verdict = check(Verifier(TIMED, (b"k" * 16,)), fields, body)
    assert isinstance(verdict, Rejected) and verdict.reason in (
        "missing",
        "malformed",
        "signature",
        "timestamp",
    )


@pytest.mark.parametrize("name", ["twilio", "mailgun"])
def test_long_form_of_a_stranger_costs_next_to_nothing(name):
    verifier = Verifier(SCHEMES[name], (b"k" * 24,), "https://example.com/hook")
    fields = {"x-twilio-signature": "x", "content-type": "application/x-www-form-urlencoded"}
    started = time.process_time()
    verdict = check(verifier, fields, b"a=" + b"%41" * 2_000_000)
    assert verdict.reason == "malformed" and time.process_time() - started < 0.05


def test_token_of_mailgun_that_is_no_text_can_still_be_kept():
    token = "\\ud800" + "a" * 10
    digest = hmac.digest(b"k" * 24, b"1700000000?" + b"a" * 10, "sha256").hex()
    body = f'{{"signature": {{"timestamp": "1700000000", "token": "{token}", "signature": "{digest}"}}}}'.encode()
    verdict = check(Verifier(SCHEMES["mailgun"], (b"k" * 24,)), {}, body)
    assert isinstance(verdict, Delivery) and verdict.delivery_id.encode()


def test_duplicate_of_a_very_long_body_is_recognized():
    verifier = Verifier(SCHEMES["stripe"], (b"k" * 24,))
    body = b'{"id":"evt_1","x":"' + b"y" * signing.MAX_PARSED + b'"}'
    ids = {check(verifier, sign(verifier, body, NOW, "", ""), body).delivery_id for _ in range(2)}
    assert len(ids) == 1 and len(ids.pop()) == 64
