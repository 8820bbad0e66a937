"""The settings: one table, read once, every mistake reported at once.

Precedence: flags > environment > .env > webhooks.toml > default. A secret is never a flag, since
process lists show those, and never stands in webhooks.toml; it may also come from a file, as
NAME_FILE. Nothing reads the settings later: on HUP a process restarts with the current ones.

Promises: load() returns Settings that can be run with, or raises Invalid with one sentence per
mistake.
"""

import argparse
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hookq.redis_url import parse as parse_redis_url
from hookq.sources import MIN_SECRET, Source, read_secret, read_sources, why

VERSION: Final = "0.1.0"
EX_USAGE, EX_GONE, EX_DECLINED, EX_UNREACHABLE, EX_SETTINGS = 2, 3, 4, 69, 78

# Half of what Redis takes as one value by default: an entry holds the header lines too.
MAX_MAX_BODY: Final = 256 << 20

# A unix socket's path ends at 107 bytes; this leaves room for "/supervisor.sock" and a temporary
# suffix.
MAX_STATE_DIR: Final = 80

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Invalid(Exception):
    """The settings cannot be run with; `problems` has one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


# ---------------- parsers: the value of a text, or ValueError with the words after "it must be"


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _size(text: str) -> int:
    """Return bytes; units are powers of 1024, as Redis reads "1gb"."""
    match = re.fullmatch(r"([0-9]{1,12})\s*(kb|mb|gb|b|)", text.strip().lower())
    if not match or not int(match[1]):
        raise ValueError("a size such as 512kb, 25mb or 1gb")
    return int(match[1]) * {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}[match[2]]


def _body_size(text: str) -> int:
    size = _size(text)
    if size > MAX_MAX_BODY:
        raise ValueError(
            "a size of at most 256mb: Redis takes no value over 512 MB (proto-max-bulk-len)"
        )
    return size


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", text):
        raise ValueError("an IPv4 address or a host name, such as 127.0.0.1")
    return text


def _names(text: str) -> tuple[str, ...]:
    return tuple(_host(name.strip()).lower() for name in text.split(",") if name.strip())


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            "addresses or networks with a comma between, such as 127.0.0.1, 10.0.0.0/8"
        ) from None


def _secret(text: str) -> str:
    if len(text) < MIN_SECRET:
        raise ValueError(
            f"at least {MIN_SECRET} characters; `openssl rand -hex 32` makes a good one"
        )
    return text


def _password(text: str) -> str:
    if len(text) < 8 or not text.isprintable():
        raise ValueError("at least 8 printable characters")
    return text


def redis_url(text: str) -> str:
    options = parse_redis_url(text).options if text else {}
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        value = options.get(name)
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"a URL whose {name} can be read; {value} cannot")
    return text


def _durability(text: str) -> int:
    """Return the number of replicas, 0 for none."""
    match = re.fullmatch(r"fsync|replicas:([1-9])", text)
    if not match:
        raise ValueError("fsync, or replicas:N with N from 1 to 9")
    return int(match[1] or 0)


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~nosuchuser
        raise ValueError(f"a path ({error})") from None


def _state_dir(text: str) -> Path:
    path = _path(text).absolute()
    if path.exists() and not path.is_dir():
        raise ValueError("a folder")
    if len(os.fsencode(path)) > MAX_STATE_DIR:
        raise ValueError(
            f"a path of at most {MAX_STATE_DIR} bytes, since unix sockets are made in it"
        )
    return path


# ---------------- the table


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: its name, how it is read, and its default."""

    name: str
    parse: Callable[[str], Any]
    default: str
    meaning: str
    secret: bool = False


# If you change this table, also change .env.example and README's table (tests/test_readme.py
# compares them).
SETTINGS: Final = (
    Setting("WEBHOOK_SECRET", _secret, "", "the secret of source github", secret=True),
    Setting("HOST", _host, "127.0.0.1", "where ingestion listens"),
    Setting("PORT", _whole(1, 65535), "7000", "where ingestion listens"),
    Setting("DASHBOARD_HOST", _host, "127.0.0.1", "where the dashboard listens"),
    Setting("DASHBOARD_PORT", _whole(1, 65535), "7001", "where the dashboard and /metrics listen"),
    Setting("DASHBOARD_PASSWORD", _password, "", "HTTP Basic, user operator", secret=True),
    Setting(
        "DASHBOARD_NAMES",
        _names,
        "",
        "further host names the dashboard is opened by, such as a proxy's",
    ),
    Setting(
        "TRUSTED_PROXIES", _networks, "", "proxies whose X-Forwarded-For is believed; comma between"
    ),
    Setting("REDIS_URL", redis_url, "", "nothing: the embedded Redis", secret=True),
    Setting(
        "DURABILITY",
        _durability,
        "fsync",
        "fsync: on Redis' disk before the 202; replicas:N: with N replicas, too",
    ),
    Setting("REDIS_MAXMEMORY", _size, "1gb", "of the embedded Redis"),
    Setting("INGEST_PROCESSES", _whole(0, 64), "2", "ingestion processes"),
    Setting("WORKERS", _whole(0, 256), "2", "worker processes"),
    # At this limit a handler that leaks gets MemoryError, and its worker restarts; without one the
    # kernel picks a process to kill.
    Setting("WORKER_MEMORY", _size, "1gb", "of one worker process"),
    # GitHub sends up to 25 MB (docs.github.com, "Webhook events and payloads"); no known sender
    # sends more.
    Setting("MAX_BODY", _body_size, "25mb", "longest body that is read"),
    Setting(
        "MAX_CONNECTIONS", _whole(1, 100_000), "2000", "open connections of one ingestion process"
    ),
    Setting("MAX_HELD", _size, "256mb", "bytes of bodies one ingestion process holds at once"),
    Setting("MAX_SPOOL", _size, "1gb", "bytes the local spool may keep"),
    Setting("STATE_DIR", _state_dir, "var", "sockets, logs, Redis data"),
    Setting("WEBHOOKS_FILE", _path, "webhooks.toml", "the sources"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; a secret never shows in repr()."""

    host: str
    port: int
    dashboard_host: str
    dashboard_port: int
    dashboard_names: tuple[str, ...]
    trusted_proxies: tuple[Network, ...]
    # Replicas that must have a delivery before it is answered.
    durability: int
    redis_maxmemory: int
    ingest_processes: int
    workers: int
    worker_memory: int
    max_body: int
    max_connections: int
    max_held: int
    max_spool: int
    state_dir: Path
    webhooks_file: Path
    webhook_secret: str = field(repr=False)
    dashboard_password: str = field(repr=False)
    # The embedded Redis' URL when the setting is empty.
    redis_url: str = field(repr=False)
    redis_embedded: bool
    sources: Mapping[str, Source]


# ---------------- reading


def load(
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path(),
    need: Sequence[str] = (),
    sources: bool = True,
) -> Settings:
    """Return the settings. `need` names secrets without which the caller cannot run;
    `sources=False` skips the sources and their secrets.

    Raises Invalid with a sentence for every mistake: the setting, its value and what would be
    right.
    """
    problems: list[str] = []
    dotenv = read_dotenv(root / ".env", problems)
    texts = [{k: v for k, v in (flags or {}).items() if v is not None}, environ, dotenv]
    toml_path, toml = _read_toml(texts, root, problems)
    tables = toml.pop("sources", None)
    values = _values([*texts, _top_level(toml, problems)], root, problems)
    problems += [_unset(name) for name in need if not values.get(name.lower(), True)]
    _check_together(values, problems)
    configured: dict[str, Source] = {}
    if sources:
        secret = values.get("webhook_secret", "")
        tables = _default_tables(secret, problems) if tables is None else tables
        lookup = {**dotenv, **environ, "WEBHOOK_SECRET": secret}
        configured = read_sources(tables, toml_path.absolute().parent, lookup, problems)
    if problems:
        raise Invalid(problems)
    values["redis_embedded"] = not values["redis_url"]
    values["redis_url"] = values["redis_url"] or f"unix://{values['state_dir']}/redis.sock"
    values["webhooks_file"] = toml_path
    return Settings(**values, sources=configured)


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Give `parser` a flag for each setting named; secrets have none, since process lists show
    flags.
    """
    for row in SETTINGS:
        if row.name in names and not row.secret:
            flag = "--" + row.name.lower().replace("_", "-")
            parser.add_argument(
                flag, dest=row.name, metavar="VALUE", help=f"{row.meaning} (default {row.default})"
            )


def read_dotenv(path: Path, problems: list[str]) -> dict[str, str]:
    """Return the NAME=value lines of `path`; a value may be quoted, and no character in it is
    special.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {why(error)}.")
        return {}
    values = {}
    for number, line in enumerate(lines, 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            problems.append(f"{path} line {number} is no NAME=value.")
            continue
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        values[name.strip()] = value
    return values


def _read_toml(
    texts: Sequence[Mapping[str, str]], root: Path, problems: list[str]
) -> tuple[Path, dict[str, Any]]:
    """Return the path of webhooks.toml and what is in it. A file that was named must exist."""
    named = next((place["WEBHOOKS_FILE"] for place in texts if place.get("WEBHOOKS_FILE")), "")
    try:
        path = root / _path(named or "webhooks.toml")
    except ValueError:  # reported by its row
        path = root / "webhooks.toml"
    try:
        return path, tomllib.loads(path.read_text())
    except FileNotFoundError:
        if named:
            problems.append(f"WEBHOOKS_FILE is {str(path)!r}, and there is no such file.")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {why(error)}.")
    return path, {}


def _top_level(toml: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """Return the settings at the head of webhooks.toml as texts; report secrets and unknown
    names.
    """
    rows = {row.name: row for row in SETTINGS}
    for name in toml:
        row = rows.get(name.upper())
        if not row:
            problems.append(f"webhooks.toml: {name} is no setting.")
        elif row.secret:
            problems.append(f"webhooks.toml: {name} is a secret: keep it in .env.")
    return {name.upper(): str(value) for name, value in toml.items()}


def _values(texts: Sequence[Mapping[str, str]], root: Path, problems: list[str]) -> dict[str, Any]:
    """Return the value of each setting by lower-case name, except those that are wrong."""
    values: dict[str, Any] = {}
    for row in SETTINGS:
        text = _text(row, texts, root, problems)
        if row.name == "STATE_DIR" and not text.startswith(("/", "~")):
            # The same folder from wherever a command is typed.
            text = str(root.absolute() / text)
        try:
            values[row.name.lower()] = row.parse(text) if text or not row.secret else ""
        except ValueError as error:
            shown = "is not acceptable" if row.secret else f"is {text!r}"
            problems.append(f"{row.name} {shown}: it must be {error}.")
    return values


def _text(row: Setting, texts: Sequence[Mapping[str, str]], root: Path, problems: list[str]) -> str:
    """Return a setting's text from the first place that has it, or its default."""
    for place in texts:
        if place.get(row.name):
            return place[row.name]
        if row.secret and place.get(row.name + "_FILE"):
            try:
                return read_secret(root / place[row.name + "_FILE"])
            except ValueError as error:
                problems.append(f"{row.name}_FILE: {error}.")
                return ""
    return row.default


def _check_together(values: Mapping[str, Any], problems: list[str]) -> None:
    """Report settings that are right each by itself, but not together."""
    if "port" in values and (values["port"], values.get("host")) == (
        values.get("dashboard_port"),
        values.get("dashboard_host"),
    ):
        problems.append(
            f"DASHBOARD_PORT is {values['port']}, as PORT is: set one of them to another port."
        )


def _default_tables(secret: str, problems: list[str]) -> dict[str, Any]:
    """Return the sources of settings that name none: github alone."""
    if secret:
        return {"github": {"scheme": "github", "secrets": ["env:WEBHOOK_SECRET"]}}
    if not any(line.startswith("WEBHOOK_SECRET") for line in problems):
        problems.append(_unset("WEBHOOK_SECRET"))
    return {}


def _unset(name: str) -> str:
    return (
        f"{name} is not set: write {name}=… into .env, or start with `make run`, which makes one."
    )
