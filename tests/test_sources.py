"""The sources: every key is a row whose default is right, every mistake gets its sentence, and what
was set reaches the Source.
"""

from dataclasses import fields

import pytest

from hookq.settings import Invalid, load
from hookq.sources import HMAC_KEYS, KEYS, Source

GOOD = "a-good-secret-of-some-length"
ANY = '[sources.p]\nscheme = "%s"\nsecrets = ["env:S"]\n'
GITHUB, HMAC, STRIPE, TWILIO = (ANY % name for name in ("github", "hmac", "stripe", "twilio"))


def read(folder, toml):
    (folder / "webhooks.toml").write_text(toml)
    return load({}, {"S": GOOD, "W": "short"}, folder).sources


def problems(folder, toml):
    with pytest.raises(Invalid) as refused:
        read(folder, toml)
    return refused.value.problems


@pytest.mark.parametrize("row", [*KEYS.values(), *HMAC_KEYS.values()], ids=lambda row: row.name)
def test_row_has_a_meaning_and_a_default_that_fits(row):
    assert row.meaning and row.check.right
    # "" and () stand for a key that is not there, None for a default that something else decides.
    assert row.required or row.default in (None, "", ()) or row.check.fits(row.default)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("sources = 1\n", "sources must be tables"),
        ("[sources]\na = 1\n", "sources must be tables"),
        ("[sources.a]\n", "[sources.a] scheme is missing"),
        ("[sources.A_b]\nscheme = 'github'\nsecrets = ['env:S']\n", "is no name for a source"),
        (ANY % "x", "must be one of github, stripe, slack, shopify,"),
        ('[sources.a]\nscheme = ["github"]\n', "scheme is ['github']: must be one of"),
        ('[sources.a]\nscheme = "github"\n', "secrets is missing: it must be a list of texts."),
        ('[sources.a]\nscheme = "github"\nsecrets = "env:S"\n', "secrets must be a list of texts."),
        (GITHUB.replace("env:S", "env:NOSUCH"), "env:NOSUCH is not set; `openssl"),
        (GITHUB.replace("env:S", "env:W"), "env:W is shorter than 16 characters"),
        (GITHUB.replace("env:S", "file:nosuch"), "nosuch cannot be read: No such file"),
        (GITHUB + 'header = "X"\n', "header is no setting of a source with this scheme."),
        (STRIPE + 'header = "X"\n', "header is no setting of a source with this scheme."),
        (HMAC + "max_attempts = 0\n", "max_attempts is 0: must be a whole number from 1 to 1000."),
        (HMAC + "max_attempts = true\n", "max_attempts is True: must be"),
        (HMAC + "timeout_s = 0\n", "timeout_s is 0: must be a number of seconds above 0."),
        (STRIPE + "tolerance_s = 0\n", "tolerance_s is 0: must be a number of seconds above 0."),
        (HMAC + "dedupe_s = 1.5\n", "dedupe_s is 1.5: must be"),
        (HMAC + "retry_max_s = 1\n", "retry_base_s is more than retry_max_s: no delay could be both."),
        (HMAC + 'answers = {404 = "x"}\n', "must be a table of statuses, each done, retry or dead."),
        (HMAC + 'allow_private = "no"\n', "allow_private is 'no': must be true or false."),
        (HMAC + "concurrency = 501\n", "concurrency is 501: must be a whole number from 1 to 500."),
        (HMAC + 'algorithm = "md5"\n', "algorithm is 'md5': must be one of sha1, sha256, sha512."),
        (HMAC + 'header = "X Y"\n', "header is 'X Y': must be the name of a header."),
        (HMAC + 'signed = "{bod}"\n', "must be a template with {body}"),
        (HMAC + 'signed = "{body}{x}"\n', "must be a template with {body}"),
        (HMAC + 'signed = "{timestamp}.{body}"\n', "signed has {timestamp}, so timestamp_header must say which header that is."),
        (HMAC + 'signed = "{id}.{body}"\n', "signed has {id}, so id_header must say which header that is."),
        (HMAC + 'signed = "{url}{body}"\n', "the URL is signed, so public_url must say what the sender calls"),
        (HMAC + 'timestamp_header = "X-Time"\n', "timestamp_header is not part of signed"),
        (ANY % "square", "public_url must say what the sender calls"),
        (TWILIO, "public_url must say what the sender calls"),
        (TWILIO + 'public_url = "https://a:PORT/x"\n', "public_url is 'https://a:PORT/x': must be a http(s) URL."),
        (TWILIO + 'public_url = "https://[bad/x"\n', "must be a http(s) URL."),
        (HMAC + 'public_url = "x"\n', "public_url is 'x': must be a http(s) URL."),
        (HMAC + "public_url = 1\n", "public_url is 1: must be a http(s) URL."),
        (ANY % "standard-webhooks", "is not base64 of 16 bytes or more, after whsec_"),
        (ANY % "meta" + 'dedupe = "no"\n', "dedupe is 'no': must be one of id, body."),
        (ANY % "mailgun" + 'dedupe = "body"\n', "each forged body would be a new delivery"),
        (HMAC + 'handler = "nosuch"\n', 'it must be "file.py:function" or "package.module:function".'),
        (HMAC + 'handler = "https://u:p@h/"\n', "it must be a whole http(s) URL, without user and password"),
        (HMAC + '[[sources.p.on]]\nhandler = "ignore"\n', 'on: event must be a pattern of event types, such as "pull_request*".'),
        (HMAC + '[[sources.p.on]]\nevent = "a"\n', "on 'a': handler must be a text such as"),
        (HMAC + '[[sources.p.on]]\nx = 1\n', "on: x is no setting of a rule: it has event and handler."),
    ],
)  # fmt: skip
def test_mistake_gets_its_sentence(tmp_path, toml, sentence):
    lines = problems(tmp_path, toml)
    assert any(sentence in line for line in lines), lines


def test_secret_written_into_webhooks_toml_is_refused_and_not_shown(tmp_path):
    lines = problems(tmp_path, GITHUB.replace("env:S", "hunter2-hunter2-hunter2"))
    assert any('"env:NAME" or "file:PATH", never the secret itself' in line for line in lines)
    assert "hunter2" not in " ".join(lines)


def test_secrets_are_read_newest_first_from_environment_and_file(tmp_path):
    (tmp_path / "old").write_text("the-old-secret-of-it\n")
    sources = read(tmp_path, GITHUB.replace('"env:S"', '"env:S", "file:old"'))
    assert sources["p"].verifier.secrets == (GOOD.encode(), b"the-old-secret-of-it")


def test_keys_of_hmac_reach_the_scheme(tmp_path):
    toml = HMAC + 'prefix = "v1="\nencoding = "base64"\nheader = "X-Sig"\ntolerance_s = 60\n'
    scheme = read(tmp_path, toml)["p"].verifier.scheme
    assert (scheme.prefix, scheme.encoding, scheme.header) == ("v1=", "base64", "X-Sig")
    assert scheme.tolerance_s == 60


def test_tolerance_reaches_both_forms_of_a_preset(tmp_path):
    key = tmp_path / "key"
    key.write_text("whsec_" + "A" * 32)
    toml = ANY % "standard-webhooks" + "tolerance_s = 60\n"
    scheme = read(tmp_path, toml.replace("env:S", "file:key"))["p"].verifier.scheme
    assert (scheme.tolerance_s, scheme.or_else.tolerance_s) == (60, 60)


def test_every_key_that_is_a_field_of_a_source_reaches_it(tmp_path):
    given = {"concurrency": 3, "answers": {"404": "done"}, "allow_private": True, "max_attempts": 2}
    given |= {f.name: 7 for f in fields(Source) if f.name in KEYS and f.name.endswith("_s")}
    texts = {True: "true", "{'404': 'done'}": '{404 = "done"}'}
    lines = [f"{key} = {texts.get(v if v is True else str(v), v)}\n" for key, v in given.items()]
    source = read(tmp_path, HMAC + "".join(lines))["p"]
    assert {key: getattr(source, key) for key in given} == given
    fields_as_they_stand = {f.name for f in fields(Source) if f.metadata}
    assert given.keys() == fields_as_they_stand and source.name == "p"
