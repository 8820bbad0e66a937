"""The settings: defaults, precedence, and for every mistake the sentence it gets, all of them at
once.
"""

import argparse

import pytest

from hookq.settings import SETTINGS, Invalid, add_flags, load, read_dotenv

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
    settings = read(tmp_path)
    assert (
        settings.host,
        settings.port,
        settings.dashboard_port,
        settings.workers,
        settings.ingest_processes,
    ) == ("127.0.0.1", 7000, 7001, 2, 2)
    assert (
        settings.max_body,
        settings.max_held,
        settings.max_connections,
        settings.redis_maxmemory,
    ) == (
        25 << 20,
        256 << 20,
        2000,
        1 << 30,
    )
    assert settings.redis_embedded and settings.redis_url == f"unix://{tmp_path}/var/redis.sock"
    assert list(settings.sources) == ["github"] and settings.sources["github"].max_attempts == 8


def test_every_setting_has_a_meaning_and_a_default_that_it_accepts():
    for row in SETTINGS:
        assert row.meaning
        if row.default:
            row.parse(row.default)


def test_flags_beat_environment_beats_dotenv_beats_webhooks_toml(tmp_path):
    toml = "port = 1\nworkers = 1\nhost = 'toml'\n"
    toml += "MAX_CONNECTIONS = 10\n"
    settings = read(
        tmp_path,
        toml,
        "PORT=2\nWORKERS=2\nHOST=dotenv\n",
        {"PORT": "4", "WORKERS": None},
        PORT="3",
        WORKERS="3",
    )
    assert (settings.port, settings.workers, settings.host, settings.max_connections) == (
        4,
        3,
        "dotenv",
        10,
    )


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
        lines = problems(tmp_path, **{name: value})
        assert any(
            line == sentence or (name == "WEBHOOKS_FILE" and line.endswith(sentence))
            for line in lines
        ), lines


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
    lines = problems(tmp_path, toml=toml, PORT="x", WORKERS="y")
    assert len(lines) == 8 and all(line.endswith(".") for line in lines)


def test_secret_comes_from_a_file_and_a_missing_one_is_reported(tmp_path):
    (tmp_path / "s").write_text(GOOD + "-of-a-file\n")
    assert (
        read(tmp_path, WEBHOOK_SECRET="", WEBHOOK_SECRET_FILE="s").webhook_secret
        == GOOD + "-of-a-file"
    )
    found = problems(tmp_path, WEBHOOK_SECRET="", WEBHOOK_SECRET_FILE="gone")
    assert any("WEBHOOK_SECRET_FILE" in line and "No such file" in line for line in found)


def test_no_secret_is_reported_once_and_only_where_it_is_needed(tmp_path):
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
    mistakes = []
    values = read_dotenv(tmp_path / ".env", mistakes)
    assert (
        values
        == {"A": "50%;x#y", "B": "in quotes ", "C": "$HOME", "D": "spaced", "E": "a=b", "F": ""}
        and mistakes == []
    )


def test_dotenv_line_that_is_malformed_is_reported_with_its_number(tmp_path):
    assert any(
        "line 2 is no NAME=value" in line for line in problems(tmp_path, dotenv="A=1\nnonsense\n")
    )


def test_secrets_show_in_no_repr(tmp_path):
    settings = read(
        tmp_path, toml=HMAC, DASHBOARD_PASSWORD="pass-word-1", REDIS_URL="redis://:redis-pass@h/0"
    )
    for secret in (GOOD, "pass-word-1", "redis-pass"):
        assert secret not in repr(settings)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("x = ", "cannot be read: "),
        ("nosuch = 1\n", "nosuch is no setting."),
        ("webhook_secret = 'x'\n", "webhook_secret is a secret: keep it in .env."),
    ],
)
def test_mistake_at_the_head_of_webhooks_toml_gets_its_sentence(tmp_path, toml, sentence):
    lines = problems(tmp_path, toml=toml)
    assert any(sentence in line for line in lines), lines


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
def test_nonsense_redis_url_is_refused_without_its_password(tmp_path, url):
    (line,) = problems(tmp_path, REDIS_URL=url)
    assert "REDIS_URL is not acceptable" in line and "p4ss" not in line and "w0rd" not in line
