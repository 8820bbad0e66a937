"""The settings: defaults, precedence, and for every mistake the sentence it gets, all of them at
once.
"""

import argparse

import pytest

from hookq.config import SETTINGS, Invalid, add_flags, load, read_dotenv

GOOD = "a-good-secret-of-some-length"
HMAC = '[sources.p]\nscheme = "hmac"\nsecrets = ["env:S"]\n'


def read(folder, toml=None, dotenv=None, flags=None, **environ):
    if toml is not None:
        (folder / "webhooks.toml").write_text(toml)
    if dotenv is not None:
        (folder / ".env").write_text(dotenv)
    return load(flags, {"WEBHOOK_SECRET": GOOD, "S": GOOD, **environ}, folder)


def problems(folder, **settings):
    with pytest.raises(Invalid) as refused:
        read(folder, **settings)
    return refused.value.problems


def test_nothing_set_gives_the_defaults_and_one_source(tmp_path):
    found = read(tmp_path)
    assert (
        found.host,
        found.port,
        found.dashboard_port,
        found.workers,
        found.ingest_processes,
    ) == ("127.0.0.1", 7000, 7001, 2, 2)
    assert (found.max_body, found.max_held, found.max_connections, found.redis_maxmemory) == (
        25 << 20,
        256 << 20,
        2000,
        1 << 30,
    )
    assert found.redis_embedded and found.redis_url == f"unix://{tmp_path}/var/redis.sock"
    assert list(found.sources) == ["github"] and found.sources["github"].max_attempts == 8


def test_every_setting_has_a_meaning_and_a_default_that_it_accepts():
    for row in SETTINGS:
        assert row.meaning
        if row.default:
            row.parse(row.default)


def test_flags_beat_environment_beats_dotenv_beats_webhooks_toml(tmp_path):
    toml = "port = 1\nworkers = 1\nhost = 'toml'\n"
    toml += "MAX_CONNECTIONS = 10\n"
    found = read(
        tmp_path,
        toml,
        "PORT=2\nWORKERS=2\nHOST=dotenv\n",
        {"PORT": "4", "WORKERS": None},
        PORT="3",
        WORKERS="3",
    )
    assert (found.port, found.workers, found.host, found.max_connections) == (4, 3, "dotenv", 10)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PORT", "0", "PORT is '0': it must be a whole number from 1 to 65535."),
        ("PORT", "65536", "PORT is '65536': it must be a whole number from 1 to 65535."),
        ("PORT", "٣", "PORT is '٣': it must be a whole number from 1 to 65535."),
        (
            "DASHBOARD_PORT",
            "1_0",
            "DASHBOARD_PORT is '1_0': it must be a whole number from 1 to 65535.",
        ),
        (
            "HOST",
            "a b",
            "HOST is 'a b': it must be an IPv4 address or a host name, such as 127.0.0.1.",
        ),
        (
            "DASHBOARD_HOST",
            "::1",
            "DASHBOARD_HOST is '::1': it must be an IPv4 address or a host name, such as 127.0.0.1.",
        ),
        ("WORKERS", "-1", "WORKERS is '-1': it must be a whole number from 0 to 256."),
        (
            "INGEST_PROCESSES",
            "65",
            "INGEST_PROCESSES is '65': it must be a whole number from 0 to 64.",
        ),
        ("MAX_CONNECTIONS", "", None),
        (
            "MAX_CONNECTIONS",
            "x",
            "MAX_CONNECTIONS is 'x': it must be a whole number from 1 to 100000.",
        ),
        (
            "MAX_BODY",
            "25 apples",
            "MAX_BODY is '25 apples': it must be a size such as 512kb, 25mb or 1gb.",
        ),
        ("MAX_HELD", "0", "MAX_HELD is '0': it must be a size such as 512kb, 25mb or 1gb."),
        ("MAX_SPOOL", "-1mb", "MAX_SPOOL is '-1mb': it must be a size such as 512kb, 25mb or 1gb."),
        (
            "REDIS_MAXMEMORY",
            "1tb",
            "REDIS_MAXMEMORY is '1tb': it must be a size such as 512kb, 25mb or 1gb.",
        ),
        (
            "STATE_DIR",
            "/" + "x" * 80,
            f"STATE_DIR is '/{'x' * 80}': it must be a path of at most 80 bytes, since unix sockets are made in it.",
        ),
        (
            "WEBHOOK_SECRET",
            "short",
            "WEBHOOK_SECRET is not acceptable: it must be at least 16 characters; `openssl rand -hex 32` makes a good one.",
        ),
        (
            "DASHBOARD_PASSWORD",
            "short",
            "DASHBOARD_PASSWORD is not acceptable: it must be at least 8 printable characters.",
        ),
        (
            "REDIS_URL",
            "http://x",
            "REDIS_URL is not acceptable: it must be a URL that begins with redis://, rediss://, unix://, redis+sentinel:// or "
            "redis+cluster:// (rediss+… with TLS), or nothing for the embedded Redis.",
        ),
        ("WEBHOOKS_FILE", "nosuch.toml", "nosuch.toml', and there is no such file."),
    ],
)
def test_bad_value_gets_its_sentence(tmp_path, name, value, sentence):
    if sentence is None:
        assert read(tmp_path, **{name: value})
    else:
        found = problems(tmp_path, **{name: value})
        assert any(
            line == sentence or (name == "WEBHOOKS_FILE" and line.endswith(sentence))
            for line in found
        ), found


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10", 10),
        ("512kb", 512 << 10),
        ("25MB", 25 << 20),
        ("1 gb", 1 << 30),
        ("1073741824", 1 << 30),
    ],
)
def test_sizes_are_powers_of_1024(tmp_path, text, size):
    assert read(tmp_path, MAX_HELD=text).max_held == size


def test_all_mistakes_are_reported_at_once(tmp_path):
    toml = '[sources.a]\nscheme = "nosuch"\nsecrets = []\nretry_base_s = -1\nfoo = 1\n[sources.B]\nscheme = "github"\n'
    found = problems(tmp_path, toml=toml, PORT="x", WORKERS="y")
    assert len(found) == 8 and all(line.endswith(".") for line in found)


def test_secret_comes_from_a_file_and_a_missing_one_is_told(tmp_path):
    (tmp_path / "s").write_text(GOOD + "-of-a-file\n")
    assert (
        read(tmp_path, WEBHOOK_SECRET="", WEBHOOK_SECRET_FILE="s").webhook_secret
        == GOOD + "-of-a-file"
    )
    found = problems(tmp_path, WEBHOOK_SECRET="", WEBHOOK_SECRET_FILE="gone")
    assert any("WEBHOOK_SECRET_FILE" in line and "No such file" in line for line in found)


def test_no_secret_at_all_is_told_once_and_only_to_whom_it_concerns(tmp_path):
    assert [line[:29] for line in problems(tmp_path, WEBHOOK_SECRET="")] == [
        "WEBHOOK_SECRET is not set: wri"[:29]
    ]
    assert load({}, {}, tmp_path, sources=False).webhook_secret == ""
    with pytest.raises(Invalid, match="DASHBOARD_PASSWORD is not set"):
        load({}, {}, tmp_path, sources=False, need=("DASHBOARD_PASSWORD",))


def test_dotenv_takes_every_character_of_a_value_as_it_is(tmp_path):
    lines = [
        "# a comment",
        "",
        "A=50%;x#y",
        "B='in quotes '",
        'C="$HOME"',
        "export D = spaced ",
        "E=a=b",
        "F=",
    ]
    (tmp_path / ".env").write_text("\n".join(lines))
    found, told = {}, []
    found = read_dotenv(tmp_path / ".env", told)
    assert (
        found
        == {"A": "50%;x#y", "B": "in quotes ", "C": "$HOME", "D": "spaced", "E": "a=b", "F": ""}
        and told == []
    )


def test_dotenv_line_that_is_none_is_told_with_its_number(tmp_path):
    assert any(
        "line 2 is no NAME=value" in line for line in problems(tmp_path, dotenv="A=1\nnonsense\n")
    )


def test_secrets_show_in_no_repr(tmp_path):
    found = read(
        tmp_path, toml=HMAC, DASHBOARD_PASSWORD="pass-word-1", REDIS_URL="redis://:redis-pass@h/0"
    )
    for secret in (GOOD, "pass-word-1", "redis-pass"):
        assert secret not in repr(found)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("x = ", "cannot be read: "),
        ("nosuch = 1\n", "nosuch is no setting."),
        ("webhook_secret = 'x'\n", "webhook_secret is a secret: keep it in .env."),
        ("sources = 1\n", "sources must be tables"),
        ("[sources]\na = 1\n", "sources must be tables"),
        ("[sources.a]\n", "[sources.a] scheme is missing"),
        (
            '[sources.a]\nscheme = "x"\nsecrets = ["env:S"]\n',
            "must be one of github, stripe, slack, shopify,",
        ),
        ('[sources.a]\nscheme = "github"\nsecrets = "env:S"\n', "secrets must be a list of texts."),
        (
            '[sources.a]\nscheme = "github"\nsecrets = ["env:NOSUCH"]\n',
            "env:NOSUCH is not set; `openssl",
        ),
        (
            '[sources.a]\nscheme = "github"\nsecrets = ["env:W"]\n',
            "env:W is shorter than 16 characters",
        ),
        (
            '[sources.a]\nscheme = "github"\nsecrets = ["file:nosuch"]\n',
            "nosuch cannot be read: No such file",
        ),
        (
            '[sources.a]\nscheme = "github"\nsecrets = ["env:S"]\nheader = "X"\n',
            "header is no setting of a source with this scheme.",
        ),
        ("[sources.A_b]\nscheme = 'github'\nsecrets = ['env:S']\n", "is no name for a source"),
        (HMAC + "max_attempts = 0\n", "max_attempts is 0: must be a whole number from 1 to 1000."),
        (HMAC + "max_attempts = true\n", "max_attempts is True: must be"),
        (HMAC + "timeout_s = 0\n", "timeout_s is 0: must be a number of seconds above 0."),
        (HMAC + "dedupe_s = 1.5\n", "dedupe_s is 1.5: must be"),
        (HMAC + 'algorithm = "md5"\n', "algorithm is 'md5': must be one of sha1, sha256, sha512."),
        (HMAC + 'signed = "{bod}"\n', "must be a template with {body}"),
        (HMAC + 'signed = "{body}{x}"\n', "must be a template with {body}"),
        (
            HMAC + 'signed = "{timestamp}.{body}"\n',
            "signed has {timestamp}, so timestamp_header must say which header that is.",
        ),
        (
            HMAC + 'signed = "{id}.{body}"\n',
            "signed has {id}, so id_header must say which header that is.",
        ),
        (
            HMAC + 'signed = "{url}{body}"\n',
            "the URL is signed, so public_url must say what the sender calls",
        ),
        (
            '[sources.s]\nscheme = "square"\nsecrets = ["env:S"]\n',
            "public_url must say what the sender calls",
        ),
        (
            '[sources.s]\nscheme = "twilio"\nsecrets = ["env:S"]\n',
            "public_url must say what the sender calls",
        ),
        (
            '[sources.s]\nscheme = "standard-webhooks"\nsecrets = ["env:S"]\n',
            "is not base64 of 16 bytes or more, after whsec_",
        ),
        (
            '[sources.s]\nscheme = "stripe"\nsecrets = ["env:S"]\ntolerance_s = 0\n',
            "tolerance_s is 0: must be a number of seconds above 0.",
        ),
        (
            '[sources.s]\nscheme = "meta"\nsecrets = ["env:S"]\ndedupe = "no"\n',
            "dedupe is 'no': must be one of id, body.",
        ),
        (
            '[sources.s]\nscheme = "stripe"\nsecrets = ["env:S"]\nheader = "X"\n',
            "header is no setting of a source with this scheme.",
        ),
        (
            '[sources.s]\nscheme = "twilio"\nsecrets = ["env:S"]\npublic_url = "https://a:PORT/x"\n',
            "public_url is 'https://a:PORT/x': must be a http(s) URL.",
        ),
        (
            '[sources.s]\nscheme = "twilio"\nsecrets = ["env:S"]\npublic_url = "https://[bad/x"\n',
            "must be a http(s) URL.",
        ),
        (
            '[sources.s]\nscheme = "mailgun"\nsecrets = ["env:S"]\ndedupe = "body"\n',
            "each forged body would be a new delivery",
        ),
        (
            '[sources.s]\nscheme = ["github"]\nsecrets = ["env:S"]\n',
            "scheme is ['github']: must be one of",
        ),
        (HMAC + 'timestamp_header = "X-Time"\n', "timestamp_header is not part of signed"),
        (HMAC + 'public_url = "x"\n', "public_url is 'x': must be a http(s) URL."),
        (HMAC + 'header = "X Y"\n', "header is 'X Y': must be the name of a header."),
        (
            HMAC + 'handler = "nosuch"\n',
            'it must be "file.py:function" or "package.module:function".',
        ),
    ],
)
def test_mistake_in_webhooks_toml_gets_its_sentence(tmp_path, toml, said):
    assert any(said in line for line in problems(tmp_path, toml=toml, W="short")), problems(
        tmp_path, toml=toml
    )


def test_secret_written_into_webhooks_toml_is_refused_and_not_shown(tmp_path):
    found = problems(
        tmp_path, toml='[sources.a]\nscheme = "github"\nsecrets = ["hunter2-hunter2-hunter2"]\n'
    )
    assert any('"env:NAME" or "file:PATH", never the secret itself' in line for line in found)
    assert "hunter2" not in " ".join(found)


def test_secrets_are_read_newest_first_from_environment_and_file(tmp_path):
    (tmp_path / "old").write_text("the-old-secret-of-it\n")
    found = read(tmp_path, toml='[sources.a]\nscheme = "github"\nsecrets = ["env:S", "file:old"]\n')
    assert found.sources["a"].verifier.secrets == (GOOD.encode(), b"the-old-secret-of-it")


def test_hmac_parameters_reach_the_scheme(tmp_path):
    found = read(
        tmp_path,
        toml=HMAC + 'prefix = "v1="\nencoding = "base64"\nheader = "X-Sig"\ntolerance_s = 60\n',
    ).sources["p"]
    assert (
        found.verifier.scheme.prefix,
        found.verifier.scheme.encoding,
        found.verifier.scheme.header,
        found.verifier.scheme.tolerance_s,
    ) == (
        "v1=",
        "base64",
        "X-Sig",
        60,
    )


def test_flags_are_whole_words_and_never_secrets():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser, "PORT", "MAX_BODY", "WEBHOOK_SECRET", "REDIS_URL")
    assert [a.option_strings for a in parser._actions[1:]] == [["--port"], ["--max-body"]]


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:p4ss/w0rd@h/0",
        "redis://u:p4ss#w0rd@h",
        "redis://u:p4ss?w0rd=1@h",
        "redis://h/?foo=p4ssw0rd",
        "redis://h:p4ssw0rd",
    ],
)
def test_redis_url_that_is_nonsense_is_refused_without_a_part_of_its_password(tmp_path, url):
    (found,) = problems(tmp_path, REDIS_URL=url)
    assert "REDIS_URL is not acceptable" in found and "p4ss" not in found and "w0rd" not in found
