"""Who sent it: published vectors, every parameter, every malformed header; any bytes give a Delivery or a Rejected."""

import inspect
from dataclasses import replace

import pytest
from conftest import GITHUB, NOW, SECRET
from hypothesis import given
from hypothesis import strategies as st

from hookq import signing
from hookq.job import Delivery
from hookq.schemes import ALGORITHMS, ENCODINGS, SCHEMES, Scheme
from hookq.signing import Rejected, Signer, sign, verify

BODY = b'{"ref":"refs/heads/main"}\xff\x00'
TIMED = Scheme(
    prefix="v1=", signed="{timestamp}.{id}.{body}", timestamp_header="X-Time", id_header="X-Id", event_header="X-Event", header="X-Sign"
)


def check(source, headers, body=BODY, now=NOW):
    return verify(source, {k.lower(): v for k, v in headers.items()}, b"", body, now, "job")


def test_verify_accepts_the_vector_that_github_publishes():
    # docs.github.com, "Validating webhook deliveries"
    source = Signer("github", SCHEMES["github"], (b"It's a Secret to Everybody",))
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert isinstance(check(source, {"X-Hub-Signature-256": signature}, b"Hello, World!"), Delivery)
    assert check(source, {"X-Hub-Signature-256": signature}, b"Hello, World").reason == "signature"


@pytest.mark.parametrize(
    "signed", ["{body}", "{timestamp}.{body}", "{id}|{timestamp}|{body}", "v0:{timestamp}:{body}", "{url}{body}", "{header:X-Event}{body}"]
)
@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_verify_accepts_what_sign_makes_with_any_parameters(algorithm, encoding, unit, signed):
    scheme = replace(TIMED, algorithm=algorithm, encoding=encoding, timestamp_unit=unit, signed=signed)
    source = Signer("p", scheme, (b"k" * 16,), "https://example.com/hook")
    found = check(source, sign(source, BODY, NOW, "id-1", "paid"))
    assert (found.delivery_id, found.event_type, found.body, found.id, found.received_at) == ("id-1", "paid", BODY, "job", NOW)
    other = replace(source, public_url="https://example.com/other", secrets=(b"x" * 16,))
    assert check(other, sign(source, BODY, NOW, "id-1", "paid")).reason == "signature"


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
    assert isinstance(check(GITHUB, {**headers, "X-Hub-Signature-256": "sha256=" + headers["X-Hub-Signature-256"][7:].upper()}), Delivery)
    source = Signer("p", replace(TIMED, encoding="base64", prefix=""), (b"k" * 16,))
    headers = sign(source, BODY, NOW, "id", "push")
    assert check(source, {**headers, "X-Sign": headers["X-Sign"].swapcase()}).reason == "signature"


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
        ("X-Id", "x" * 257, "malformed"),
        ("X-Event", "x" * 257, "malformed"),
    ],
)
def test_verify_of_a_malformed_header_gives_its_reason(header, value, reason):
    source = Signer("p", TIMED, (b"k" * 16,))
    headers = {**sign(source, BODY, NOW, "id", "push"), header: value}
    found = check(source, {k: v for k, v in headers.items() if v is not None})
    assert isinstance(found, Rejected) and found.reason == reason


@pytest.mark.parametrize("value", ["", "x", "-1", "+5", "1_0", "٣", "²", "1" * 16, " 1", "1e9"])
def test_verify_of_a_signed_timestamp_that_is_no_number_is_malformed_R10(value):
    # A sender with the right secret and a broken clock: the signature holds, the timestamp does not.
    source = Signer("p", TIMED, (b"k" * 16,))
    digest = signing._encode(TIMED, signing.hmac.digest(b"k" * 16, f"{value}.id.".encode("latin-1", "replace") + BODY, "sha256")).decode()
    found = check(source, {"X-Sign": "v1=" + digest, "X-Time": value, "X-Id": "id"})
    assert found.reason in ("malformed", "missing")


@pytest.mark.parametrize(
    ("away_s", "reason"), [(0, None), (300, None), (-300, None), (301, "timestamp"), (-301, "timestamp"), (10**9, "timestamp")]
)
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_verify_judges_the_timestamp_against_the_arrival_R10(away_s, reason, unit):
    source = Signer("p", replace(TIMED, timestamp_unit=unit), (b"k" * 16,))
    found = check(source, sign(source, BODY, NOW, "id", "push"), now=NOW + away_s)
    assert getattr(found, "reason", None) == reason


def test_verify_accepts_each_of_several_secrets_and_no_other():
    old, new = replace(GITHUB, secrets=(b"old" * 6,)), replace(GITHUB, secrets=(b"new" * 6,))
    both = replace(GITHUB, secrets=(*new.secrets, *old.secrets))
    for signer in (old, new):
        assert isinstance(check(both, sign(signer, BODY, NOW, "id", "push")), Delivery)
    assert check(both, sign(GITHUB, BODY, NOW, "id", "push")).reason == "signature"


def test_no_secret_and_no_expected_signature_is_ever_told():
    found = check(GITHUB, {"X-Hub-Signature-256": "sha256=00"})
    expected = sign(GITHUB, BODY, NOW, "id", "push")["X-Hub-Signature-256"][7:]
    assert SECRET not in repr(GITHUB) + repr(found) and expected not in repr(found)


def test_signatures_are_compared_in_constant_time():
    source = inspect.getsource(signing.verify)
    assert "hmac.compare_digest" in source and " == claimed" not in source


@given(
    headers=st.dictionaries(st.sampled_from(["x-sign", "x-time", "x-id", "x-event"]), st.binary(max_size=80)),
    body=st.binary(max_size=200),
    prefixed=st.booleans(),
)
def test_any_bytes_give_a_delivery_or_a_rejected(headers, body, prefixed):
    fields = {name: value.decode("latin-1") for name, value in headers.items()}
    if prefixed and "x-sign" in fields:
        fields["x-sign"] = "v1=" + fields["x-sign"]
    found = verify(Signer("p", TIMED, (b"k" * 16,)), fields, b"", body, NOW, "job")
    assert isinstance(found, Rejected) and found.reason in ("missing", "malformed", "signature", "timestamp")
