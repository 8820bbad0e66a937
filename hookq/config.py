"""The settings: one table, read once, every mistake reported at once.

Precedence: flags > environment > .env > webhooks.toml > default. A secret is never a flag (process
lists show those) and never stands in webhooks.toml; it may also come from a file, as NAME_FILE.
Nothing reads the settings later: HUP makes a process start anew, with the settings of then.

Promises: load() returns a Config that can be run with, or raises Invalid with one sentence per
mistake.
"""

import argparse
import dataclasses
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from hookq.redis_url import parse as parse_redis_url
from hookq.schemes import ALGORITHMS, ENCODINGS, PART, SCHEMES, Scheme
from hookq.signing import Verifier, keys_of

VERSION: Final = "0.1.0"
EX_USAGE, EX_GONE, EX_DECLINED, EX_UNREACHABLE, EX_SETTINGS = 2, 3, 4, 69, 78

# NIST SP 800-107 asks for an HMAC key no shorter than half the hash; 16 characters is also where a
# guess at line speed stops being thinkable. An empty secret would let anybody sign.
MIN_SECRET: Final = 16

# Half of what Redis takes as one value by default: an entry holds the header lines too.
MAX_MAX_BODY: Final = 256 << 20

# A unix socket's path ends at 107 bytes; this leaves room for "/supervisor.sock" and a temporary
# suffix.
MAX_STATE_DIR: Final = 80


# How a handler stands in the settings: "file.py:function", "package.module:function", a URL, a
# command's words, "ignore".
Spec = str | tuple[str, ...]


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Invalid(Exception):
    """The settings cannot be run with; `problems` has one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


def _size(text: str) -> int:
    """Return bytes; units are powers of 1024, as Redis reads "1gb"."""
    found = re.fullmatch(r"([0-9]{1,12})\s*(kb|mb|gb|b|)", text.strip().lower())
    if not found or not int(found[1]):
        raise ValueError("a size such as 512kb, 25mb or 1gb")
    return int(found[1]) * {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}[found[2]]


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


def _is_url(value: Any) -> bool:
    """Tell whether this is a whole http(s) URL, whose parts can be taken later without an error."""
    try:
        url = urlsplit(value)
        return url.port != 0 and bool(url.hostname and re.fullmatch(r"https?://[!-~]+", value))
    except (TypeError, ValueError):
        return False


def redis_url(text: str) -> str:
    options = parse_redis_url(text).options if text else {}
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        value = options.get(name)
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"a URL whose {name} can be read; {value} cannot")
    return text


def _durability(text: str) -> int:
    """Return the number of replicas, 0 for none."""
    found = re.fullmatch(r"fsync|replicas:([1-9])", text)
    if not found:
        raise ValueError("fsync, or replicas:N with N from 1 to 9")
    return int(found[1] or 0)


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


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: its name, how it is read, and what it is when nobody says."""

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
    # GitHub sends up to 25 MB (docs.github.com, "Webhook events and payloads"); nobody known sends
    # more. A handler that eats memory gets MemoryError here, and its worker starts anew; without a
    # limit the kernel kills somebody.
    Setting("WORKER_MEMORY", _size, "1gb", "of one worker process"),
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
class Source:
    """A configured sender and what is owed to its deliveries."""

    name: str
    verifier: Verifier
    handler: Spec = ""
    handler_dir: Path = Path()
    rules: tuple[
        tuple[str, Spec], ...
    ] = ()  # patterns of event types and their handlers; the first that fits wins
    concurrency: int = 1
    target_secret: bytes = field(default=b"", repr=False)
    answers: Mapping[str, str] = field(default_factory=dict)
    allow_private: bool = False
    # Half of the usual timeout_s: who has not begun by then will hardly end in time, and holds a
    # connection.
    first_byte_s: float = 15.0
    max_attempts: int = 8
    retry_base_s: float = 5.0
    retry_max_s: float = 3600.0
    timeout_s: float = 30.0
    # Longer than any sender's automatic retries (Stripe: three days).
    dedupe_s: int = 604_800


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; a secret never shows in repr()."""

    host: str
    port: int
    dashboard_host: str
    dashboard_port: int
    dashboard_names: tuple[str, ...]
    trusted_proxies: tuple[Network, ...]
    durability: int  # replicas that must have a delivery before it is answered
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
    redis_url: str = field(repr=False)  # the embedded Redis' own URL when the setting is empty
    redis_embedded: bool
    sources: Mapping[str, Source]


# Keys of a source in webhooks.toml: parser of the TOML value, and what would be right.
Check = tuple[Callable[[Any], bool], str]
_TEXT: Final[Check] = (lambda v: isinstance(v, str) and v.isprintable(), "text")
_SECONDS: Final[Check] = (
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= 31_536_000,
    "a number of seconds above 0",
)
_HANDLER: Final[Check] = (
    lambda v: (
        _TEXT[0](v)
        or (
            isinstance(v, list)
            and bool(v)
            and all(isinstance(word, str) and "\0" not in word for word in v)
        )
    ),
    'a text such as "file.py:function", a URL or "ignore", or the words of a command in a list',
)
_HEADER: Final[Check] = (
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^`|~-]{1,100}", v)),
    "the name of a header",
)


def _one_of(*values: str) -> Check:
    return lambda v: v in values, "one of " + ", ".join(values)


_COMMON: Final[dict[str, Check]] = {
    "scheme": _one_of(*SCHEMES),
    "secrets": (
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(s, str) for s in v),
        "a list of texts",
    ),
    "handler": _HANDLER,
    "on": (
        lambda v: isinstance(v, list) and all(isinstance(rule, dict) for rule in v),
        "tables, [[sources.NAME.on]]",
    ),
    "concurrency": (lambda v: type(v) is int and 1 <= v <= 500, "a whole number from 1 to 500"),
    "target_secret": _TEXT,
    "answers": (
        lambda v: (
            isinstance(v, dict)
            and all(
                re.fullmatch("[1-5][0-9][0-9]", k) and w in ("done", "retry", "dead")
                for k, w in v.items()
            )
        ),
        "a table of statuses, each done, retry or dead",
    ),
    "allow_private": (lambda v: type(v) is bool, "true or false"),
    "first_byte_s": _SECONDS,
    "max_attempts": (lambda v: type(v) is int and 1 <= v <= 1000, "a whole number from 1 to 1000"),
    "retry_base_s": _SECONDS,
    "retry_max_s": _SECONDS,
    "timeout_s": _SECONDS,
    "dedupe_s": (
        lambda v: type(v) is int and 1 <= v <= 31_536_000,
        "a whole number of seconds above 0",
    ),
    "dedupe": _one_of("id", "body"),
    "tolerance_s": _SECONDS,
    "public_url": (_is_url, "a http(s) URL"),
}
_HMAC: Final[dict[str, Check]] = {
    "algorithm": _one_of(*ALGORITHMS),
    "encoding": _one_of(*ENCODINGS),
    "header": _HEADER,
    "prefix": _TEXT,
    "signed": (
        lambda v: isinstance(v, str) and "{body}" in v and not re.search(r"[{}]", PART.sub("", v)),
        "a template with {body}, and of {timestamp} {id} {url} {header:Name} what is signed too",
    ),
    "timestamp_header": _HEADER,
    "timestamp_unit": _one_of("s", "ms"),
    "id_header": _HEADER,
    "event_header": _HEADER,
}


# What of a table is a field of Source as it stands.
_OPTIONS: Final = (
    "max_attempts",
    "retry_base_s",
    "retry_max_s",
    "timeout_s",
    "dedupe_s",
    "concurrency",
    "answers",
    "allow_private",
    "first_byte_s",
)


def load(
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] = os.environ,
    root: Path = Path(),
    need: Sequence[str] = (),
    sources: bool = True,
) -> Config:
    """Return the settings. `need` names secrets without which the caller cannot run; who has no use
    for the sources (and their secrets) says so.

    Raises Invalid with every mistake found, each a sentence with the setting, its value and what
    would be right.
    """
    problems: list[str] = []
    dotenv = read_dotenv(root / ".env", problems)
    texts = [{k: v for k, v in (flags or {}).items() if v is not None}, environ, dotenv]
    where = next((t["WEBHOOKS_FILE"] for t in texts if t.get("WEBHOOKS_FILE")), None)
    try:
        toml_path = root / _path(where or "webhooks.toml")
    except ValueError:  # told by its row below
        toml_path = root / "webhooks.toml"
    toml = _read_toml(toml_path, bool(where), problems)
    tables = toml.pop("sources", None)
    texts.append(_top_level(toml, problems))
    values: dict[str, Any] = {}
    for row in SETTINGS:
        text = _look_up(row, texts, root, problems)
        if row.name == "STATE_DIR" and not text.startswith(("/", "~")):
            text = str(
                root.absolute() / text
            )  # the same from whatever folder a command is typed in
        try:
            values[row.name.lower()] = row.parse(text) if text or not row.secret else ""
        except ValueError as error:
            shown = "is not acceptable" if row.secret else f"is {text!r}"
            problems.append(f"{row.name} {shown}: it must be {error}.")
    for name in need:
        if not values.get(name.lower(), True):
            problems.append(_unset(name))
    _together(values, problems)
    lookup = {**dotenv, **environ, "WEBHOOK_SECRET": values.get("webhook_secret", "")}
    made = _sources(tables, toml_path.absolute().parent, lookup, problems) if sources else {}
    if problems:
        raise Invalid(problems)
    values["redis_embedded"] = not values["redis_url"]
    values["redis_url"] = values["redis_url"] or f"unix://{values['state_dir']}/redis.sock"
    values["webhooks_file"] = toml_path
    return Config(**values, sources=made)


def _together(values: Mapping[str, Any], problems: list[str]) -> None:
    """Add to `problems` what is wrong with settings that are right each by itself."""
    if "port" in values and (values["port"], values.get("host")) == (
        values.get("dashboard_port"),
        values.get("dashboard_host"),
    ):
        problems.append(
            f"DASHBOARD_PORT is {values['port']}, as PORT is: set one of them to another port."
        )


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
    """Return the NAME=value lines of `path`; a value may stand in quotes, and no character in it is
    special.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path} cannot be read: {_why(error)}.")
        return {}
    found = {}
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
        found[name.strip()] = value
    return found


def _read_toml(path: Path, wanted: bool, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        if wanted:
            problems.append(f"WEBHOOKS_FILE is {str(path)!r}, and there is no such file.")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path} cannot be read: {_why(error)}.")
    return {}


def _top_level(toml: dict[str, Any], problems: list[str]) -> dict[str, str]:
    """Return the settings at the head of webhooks.toml as texts; secrets and unknown names are
    refused.
    """
    known = {row.name: row for row in SETTINGS}
    for name in [n for n in toml if n.upper() not in known or known[n.upper()].secret]:
        secret = name.upper() in known
        problems.append(
            f"webhooks.toml: {name} "
            + ("is a secret: keep it in .env." if secret else "is no setting.")
        )
    return {name.upper(): str(value) for name, value in toml.items()}


def _look_up(
    row: Setting, texts: Sequence[Mapping[str, str]], root: Path, problems: list[str]
) -> str:
    for place in texts:
        if place.get(row.name):
            return place[row.name]
        if row.secret and place.get(row.name + "_FILE"):
            return _read_secret(root / place[row.name + "_FILE"], row.name + "_FILE", problems)
    return row.default


def _read_secret(path: Path, named: str, problems: list[str]) -> str:
    try:
        return path.expanduser().read_text().strip()
    except (OSError, ValueError, RuntimeError) as error:
        problems.append(f"{named}: {path} cannot be read: {_why(error)}.")
        return ""


def _sources(
    tables: Any, base: Path, lookup: Mapping[str, str], problems: list[str]
) -> dict[str, Source]:
    if tables is None:  # no webhooks.toml, or one without sources: there is one, github
        tables = {"github": {"scheme": "github", "secrets": ["env:WEBHOOK_SECRET"]}}
        if not lookup["WEBHOOK_SECRET"]:
            if not any(line.startswith("WEBHOOK_SECRET") for line in problems):
                problems.append(_unset("WEBHOOK_SECRET"))
            return {}
    if not isinstance(tables, dict) or not all(
        isinstance(table, dict) for table in tables.values()
    ):
        problems.append("webhooks.toml: sources must be tables, such as [sources.github].")
        return {}
    made = (_source(name, table, base, lookup, problems) for name, table in tables.items())
    return {source.name: source for source in made if source}


def _source(
    name: str, table: dict[str, Any], base: Path, lookup: Mapping[str, str], problems: list[str]
) -> Source | None:
    """Return the source of one table of webhooks.toml, or None after adding to `problems`."""
    before = len(problems)
    say = f"webhooks.toml: [sources.{name}] "
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
        problems.append(f"{say}is no name for a source: use a-z, 0-9 and -, at most 64.")
    checks = {**_COMMON, **(_HMAC if table.get("scheme") == "hmac" else {})}
    if (
        not isinstance(table.get("scheme"), str) or table["scheme"] not in SCHEMES
    ):  # what its keys should be cannot be told then
        checks |= _HMAC
    for key, value in table.items():
        if key not in checks:
            problems.append(f"{say}{key} is no setting of a source with this scheme.")
        elif not checks[key][0](value):
            shown = "" if key == "secrets" else f" is {value!r}:"
            problems.append(f"{say}{key}{shown} must be {checks[key][1]}.")
    for key in ("scheme", "secrets"):
        if key not in table:
            problems.append(f"{say}{key} is missing: it must be {checks[key][1]}.")
    good = {key: value for key, value in table.items() if key in checks and checks[key][0](value)}
    secrets = tuple(_resolve(ref, say, base, lookup, problems) for ref in good.get("secrets", ()))
    rules = tuple(_rule(rule, say, problems) for rule in good.get("on", ()))
    handler = _handler(good.get("handler", ""), f"{say}handler", problems)
    target_secret = (
        _resolve(good["target_secret"], say, base, lookup, problems)
        if "target_secret" in good
        else secrets[:1] and secrets[0]
    )
    scheme = dataclasses.replace(
        SCHEMES[good.get("scheme", "hmac")],
        **{k: v for k, v in good.items() if k in _HMAC or k == "tolerance_s"},
    )
    if scheme.or_else and "tolerance_s" in good:
        scheme = dataclasses.replace(
            scheme, or_else=dataclasses.replace(scheme.or_else, tolerance_s=good["tolerance_s"])
        )
    _check_scheme(scheme, say, "public_url" in table, problems)
    if scheme.special == "mailgun" and good.get("dedupe") == "body":
        problems.append(
            f'{say}dedupe is "body", which mailgun does not sign: each forged body would be a '
            'new delivery; use "id".'
        )
    problems += [
        f"{say}secrets: {reference} is not base64 of {MIN_SECRET} bytes or more, after whsec_: "
        "copy it whole."
        for reference, secret in zip(good.get("secrets", ()), secrets, strict=False)
        if scheme.key == "base64"
        and len(secret) >= MIN_SECRET
        and not any(len(key) >= MIN_SECRET for key in keys_of(scheme, secret))
    ]
    options = {k: good[k] for k in _OPTIONS if k in good}
    verifier = Verifier(scheme, secrets, good.get("public_url", ""), good.get("dedupe", "id"))
    source = Source(
        name, verifier, handler, base, rules, target_secret=target_secret or b"", **options
    )
    if source.retry_base_s > source.retry_max_s:
        problems.append(f"{say}retry_base_s is more than retry_max_s: no delay could be both.")
    return source if len(problems) == before else None


def _rule(rule: dict[str, Any], say: str, problems: list[str]) -> tuple[str, Spec]:
    """Return (pattern, handler) of one [[sources.NAME.on]]."""
    event, handler = rule.get("event"), rule.get("handler")
    for key in sorted(rule.keys() - {"event", "handler"}):
        problems.append(f"{say}on: {key} is no setting of a rule: it has event and handler.")
    if not isinstance(event, str) or not event:
        problems.append(
            f'{say}on: event must be a pattern of event types, such as "pull_request*".'
        )
    if not handler or not _HANDLER[0](handler):
        problems.append(f"{say}on {event!r}: handler must be {_HANDLER[1]}.")
        return "", ""
    return str(event), _handler(handler, f"{say}on {event!r}: handler", problems)


def _handler(given: Any, say: str, problems: list[str]) -> Spec:
    """Return a handler as it is written in the settings, after a look at its form.

    Whether it can be loaded is for routes.py: that runs its module, and ingestion must not.
    """
    spec: Spec = tuple(given) if isinstance(given, list) else given
    kind = kind_of(spec)
    if kind == "python" and not re.fullmatch(r".+:[^\W\d]\w*", str(spec)):
        right = '"file.py:function" or "package.module:function"'
        problems.append(f"{say} is {given!r}: it must be {right}.")
    if kind == "http" and (not _is_url(spec) or urlsplit(str(spec)).username is not None):
        problems.append(
            f"{say} is {given!r}: it must be a whole http(s) URL, without user and password: the "
            "target knows us by the signature."
        )
    return spec


def _check_scheme(scheme: Scheme, say: str, has_url: bool, problems: list[str]) -> None:
    for part, key in (("{timestamp}", "timestamp_header"), ("{id}", "id_header")):
        if part in scheme.signed and not (getattr(scheme, key) or scheme.timestamp_name):
            problems.append(f"{say}signed has {part}, so {key} must say which header that is.")
    if scheme.timestamp_header and "{timestamp}" not in scheme.signed:
        problems.append(
            f"{say}timestamp_header is not part of signed: anybody could send an old request "
            "with a new time."
        )
    if scheme.needs_url and not has_url:
        problems.append(
            f"{say}the URL is signed, so public_url must say what the sender calls: it is "
            "never taken from Host."
        )


def _resolve(
    reference: str, say: str, base: Path, lookup: Mapping[str, str], problems: list[str]
) -> bytes:
    """Return the secret that "env:NAME" or "file:PATH" refers to."""
    kind, _, rest = reference.partition(":")
    if kind == "env":
        value = lookup.get(rest, "")
    elif kind == "file":
        before = len(problems)
        value = _read_secret(base / rest, f"{say}secrets", problems)
        if len(problems) > before:
            return b""
    else:
        # The reference is not shown: it may be the secret itself, written into the wrong file.
        problems.append(f'{say}secrets must be "env:NAME" or "file:PATH", never the secret itself.')
        return b""
    if len(value) < MIN_SECRET:
        state = "is not set" if not value else f"is shorter than {MIN_SECRET} characters"
        problems.append(
            f"{say}secrets: {reference} {state}; `openssl rand -hex 32` makes a good one."
        )
    return value.encode("utf-8", "surrogateescape")


def _unset(name: str) -> str:
    return (
        f"{name} is not set: write {name}=… into .env, or start with `make run`, which makes one."
    )


def _why(error: Exception) -> str:
    return ((error.strerror or str(error)) if isinstance(error, OSError) else str(error)).rstrip(
        "."
    )


def kind_of(spec: Spec) -> str:
    """Return python, http, command, ignore, or parse where none is named."""
    if isinstance(spec, tuple):
        return "command"
    if "://" in spec:
        return "http"
    return spec if spec == "ignore" else "python" if spec else "parse"
