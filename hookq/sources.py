"""The sources: the keys of a [sources.NAME] in webhooks.toml, and the Source that they make.

A key is one row: name, check with what would be right, default, meaning. A key that a Source has as
it stands is a field of Source, and that line is its row; KEYS has these and the others, HMAC_KEYS
the parameters of scheme "hmac". Add a row, and the key is checked, reported and at hand.

Rules: the form of a handler is checked, and never its code loaded: ingestion reads the sources too.
A secret stands elsewhere, and here is a reference to it; no sentence shows one.
Promises: one sentence in `problems` for every mistake, and only sources without one are returned.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from hookq.schemes import ALGORITHMS, ENCODINGS, PART, SCHEMES, Scheme
from hookq.signing import Verifier, keys_of

# NIST SP 800-107 asks for an HMAC key of at least half the hash; from 16 characters on, guessing at
# line speed is hopeless. An empty secret would let anybody sign.
MIN_SECRET: Final = 16
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
YEAR_S: Final = 31_536_000

# A handler in the settings: "file.py:function", "package.module:function", a URL, the words of a
# command, "ignore".
Spec = str | tuple[str, ...]


def kind_of(spec: Spec) -> str:
    """Return python, http, command or ignore, or parse where there is no handler."""
    if isinstance(spec, tuple):
        return "command"
    if "://" in spec:
        return "http"
    return spec if spec == "ignore" else "python" if spec else "parse"


# ---------------- checks


class Check(NamedTuple):
    """What a TOML value must be: the test, and the words after "must be". `convert` turns a good
    value into the one that a Source has; a wrong one is not `shown` where it may be a secret.
    """

    fits: Callable[[Any], bool]
    right: str
    convert: Callable[[Any], Any] = lambda value: value
    shown: bool = True


def _one_of(*values: str) -> Check:
    return Check(lambda v: v in values, "one of " + ", ".join(values))


def _whole(low: int, high: int) -> Check:
    return Check(
        lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_url(value: Any) -> bool:
    """Whether this is a whole http(s) URL, whose parts can be taken without an error later."""
    if not isinstance(value, str) or not re.fullmatch(r"https?://[!-~]+", value):
        return False
    try:
        url = urlsplit(value)
        return bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _is_command(value: Any) -> bool:
    words = value if isinstance(value, list) else []
    return bool(words) and all(isinstance(word, str) and "\0" not in word for word in words)


def _is_template(value: Any) -> bool:
    text = value if isinstance(value, str) else ""
    return "{body}" in text and not re.search(r"[{}]", PART.sub("", text))


def _are_answers(value: Any) -> bool:
    return isinstance(value, dict) and all(
        re.fullmatch("[1-5][0-9][0-9]", status) and outcome in ("done", "retry", "dead")
        for status, outcome in value.items()
    )


_TEXT: Final = Check(_is_text, "text")
_BOOLEAN: Final = Check(lambda v: type(v) is bool, "true or false")
_SECONDS: Final = Check(
    lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v <= YEAR_S,
    "a number of seconds above 0",
)
_WHOLE_SECONDS: Final = Check(
    lambda v: type(v) is int and 1 <= v <= YEAR_S, "a whole number of seconds above 0"
)
_URL: Final = Check(_is_url, "a http(s) URL")
_REFERENCES: Final = Check(
    lambda v: isinstance(v, list) and bool(v) and all(isinstance(s, str) for s in v),
    "a list of texts",
    shown=False,
)
_HEADER: Final = Check(
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^`|~-]{1,100}", v)),
    "the name of a header",
)
_HANDLER: Final = Check(
    lambda v: _is_text(v) or _is_command(v),
    'a text such as "file.py:function", a URL or "ignore", or the words of a command in a list',
    convert=lambda v: tuple(v) if isinstance(v, list) else v,
)
_RULES: Final = Check(
    lambda v: isinstance(v, list) and all(isinstance(rule, dict) for rule in v),
    "tables, [[sources.NAME.on]]",
)
_TEMPLATE: Final = Check(
    _is_template,
    "a template with {body}, and of {timestamp} {id} {url} {header:Name} what is signed too",
)
_ANSWERS: Final = Check(_are_answers, "a table of statuses, each done, retry or dead")


# ---------------- the table


class Key(NamedTuple):
    """One key of a table in webhooks.toml. None for a default: something else decides."""

    name: str
    check: Check
    default: Any
    meaning: str
    required: bool = False


def _key(check: Check, default: Any, meaning: str) -> Any:
    """Return a field of Source that is also the row of its key."""
    return field(default_factory=lambda: default, metadata={"row": (check, default, meaning)})


@dataclass(frozen=True, slots=True)
class Source:
    """A configured sender, and what its deliveries are due."""

    name: str
    verifier: Verifier
    handler: Spec = ""
    handler_dir: Path = Path()
    # Patterns of event types and their handlers: the first that fits wins.
    rules: tuple[tuple[str, Spec], ...] = ()
    target_secret: bytes = field(default=b"", repr=False)
    concurrency: int = _key(_whole(1, 500), 1, "runs of a URL or command at once, per worker")
    answers: Mapping[str, str] = _key(_ANSWERS, {}, "what becomes of a job by a URL's status")
    allow_private: bool = _key(_BOOLEAN, False, "whether a URL may have a private address")
    # Half of the usual timeout_s: a target that has not begun by then rarely ends in time, and
    # holds a connection.
    first_byte_s: float = _key(_SECONDS, 15.0, "until the first byte of a URL's answer")
    max_attempts: int = _key(_whole(1, 1000), 8, "attempts before a job is a dead letter")
    retry_base_s: float = _key(_SECONDS, 5.0, "the first delay before a retry; it doubles")
    retry_max_s: float = _key(_SECONDS, 3600.0, "the longest delay before a retry")
    timeout_s: float = _key(_SECONDS, 30.0, "of one attempt")
    # Longer than any sender's automatic retries (Stripe: three days).
    dedupe_s: int = _key(_WHOLE_SECONDS, 604_800, "how long a delivery id is known")


def _hmac(name: str, check: Check, meaning: str) -> Key:
    """Return the row of a key that is a field of Scheme, with that one's default."""
    return Key(name, check, getattr(SCHEMES["hmac"], name), meaning)


def _table(*rows: Key) -> dict[str, Key]:
    return {row.name: row for row in rows}


_OPTIONS: Final = _table(
    *(Key(f.name, *f.metadata["row"]) for f in dataclasses.fields(Source) if f.metadata)
)
KEYS: Final = _OPTIONS | _table(
    Key("scheme", _one_of(*SCHEMES), "hmac", "a preset, or hmac with its keys", required=True),
    Key("secrets", _REFERENCES, (), "references, the newest first", required=True),
    Key("handler", _HANDLER, "", "what runs a job"),
    Key("on", _RULES, (), "handlers by event type"),
    Key("target_secret", _TEXT, None, "signs what a URL is sent; else the newest of secrets"),
    Key("dedupe", _one_of("id", "body"), "id", "what makes two deliveries the same"),
    Key("tolerance_s", _SECONDS, None, "between signing and arrival; else the scheme's"),
    Key("public_url", _URL, "", "what the sender calls, where the URL is signed"),
)
HMAC_KEYS: Final = _table(
    _hmac("algorithm", _one_of(*ALGORITHMS), "the hash"),
    _hmac("encoding", _one_of(*ENCODINGS), "how the signature is written"),
    _hmac("header", _HEADER, "what carries the signature"),
    _hmac("prefix", _TEXT, "what stands before the signature"),
    _hmac("signed", _TEMPLATE, "what is signed"),
    _hmac("timestamp_header", _HEADER, "when it was signed"),
    _hmac("timestamp_unit", _one_of("s", "ms"), "seconds or milliseconds"),
    _hmac("id_header", _HEADER, "the delivery id"),
    _hmac("event_header", _HEADER, "the event type"),
)


# ---------------- reading


@dataclass(frozen=True, slots=True)
class _Section:
    """One [sources.NAME] while it is read, and what is wrong with it."""

    name: str
    table: Mapping[str, Any]
    # What its paths are relative to, and what "env:NAME" refers to.
    base: Path
    environ: Mapping[str, str]
    problems: list[str] = field(default_factory=list)

    def wrong(self, sentence: str) -> None:
        self.problems.append(f"webhooks.toml: [sources.{self.name}] {sentence}")


def read_sources(
    tables: Any, base: Path, environ: Mapping[str, str], problems: list[str]
) -> dict[str, Source]:
    """Return the sources without a mistake, and add a sentence for every mistake to `problems`."""
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        problems.append("webhooks.toml: sources must be tables, such as [sources.github].")
        return {}
    sources = {}
    for name, table in tables.items():
        section = _Section(name, table, base, environ)
        source = _source(section)
        if not section.problems:
            sources[name] = source
        problems += section.problems
    return sources


def _source(section: _Section) -> Source:
    """Return a source, to be used if it left no problems in `section`."""
    if not NAME.fullmatch(section.name):
        section.wrong("is no name for a source: use a-z, 0-9 and -, at most 64.")
    values = _values(section, _keys_with(section.table.get("scheme")))
    secrets = tuple(_secret(section, reference) for reference in values["secrets"])
    rules = tuple(_rule(section, rule) for rule in values["on"])
    _check_handler(section, "handler", values["handler"])
    target_secret = next(iter(secrets), b"")
    if values["target_secret"] is not None:
        target_secret = _secret(section, values["target_secret"])
    scheme = _scheme(values)
    _check_scheme(section, scheme)
    _check_protection(section, scheme, values, secrets)
    if values["retry_base_s"] > values["retry_max_s"]:
        section.wrong("retry_base_s is more than retry_max_s: no delay could be both.")
    return Source(
        section.name,
        Verifier(scheme, secrets, values["public_url"], values["dedupe"]),
        values["handler"],
        section.base,
        rules,
        target_secret,
        **{name: values[name] for name in _OPTIONS},
    )


def _keys_with(scheme: Any) -> Mapping[str, Key]:
    """Return the keys of a source with this scheme. An unknown one may be meant for hmac."""
    preset = isinstance(scheme, str) and scheme in SCHEMES and scheme != "hmac"
    return KEYS if preset else KEYS | HMAC_KEYS


def _values(section: _Section, keys: Mapping[str, Key]) -> dict[str, Any]:
    """Return the value of each key: the table's where it fits, else the default."""
    values = {row.name: row.default for row in keys.values()}
    for name, value in section.table.items():
        if name not in keys:
            section.wrong(f"{name} is no setting of a source with this scheme.")
        elif keys[name].check.fits(value):
            values[name] = keys[name].check.convert(value)
        else:
            shown = f" is {value!r}:" if keys[name].check.shown else ""
            section.wrong(f"{name}{shown} must be {keys[name].check.right}.")
    for row in keys.values():
        if row.required and row.name not in section.table:
            section.wrong(f"{row.name} is missing: it must be {row.check.right}.")
    return values


def _rule(section: _Section, rule: dict[str, Any]) -> tuple[str, Spec]:
    """Return (pattern, handler) of one [[sources.NAME.on]]."""
    event, handler = rule.get("event"), rule.get("handler")
    for key in sorted(rule.keys() - {"event", "handler"}):
        section.wrong(f"on: {key} is no setting of a rule: it has event and handler.")
    if not isinstance(event, str) or not event:
        section.wrong('on: event must be a pattern of event types, such as "pull_request*".')
    if not handler or not _HANDLER.fits(handler):
        section.wrong(f"on {event!r}: handler must be {_HANDLER.right}.")
        return "", ""
    spec = _HANDLER.convert(handler)
    _check_handler(section, f"on {event!r}: handler", spec)
    return str(event), spec


def _check_handler(section: _Section, where: str, spec: Spec) -> None:
    """Report a handler of the wrong form. Whether it can be loaded is for work.routes."""
    kind = kind_of(spec)
    if kind == "python" and not re.fullmatch(r".+:[^\W\d]\w*", str(spec)):
        section.wrong(
            f'{where} is {spec!r}: it must be "file.py:function" or "package.module:function".'
        )
    if kind == "http" and (not _is_url(spec) or urlsplit(str(spec)).username is not None):
        section.wrong(
            f"{where} is {spec!r}: it must be a whole http(s) URL, without user and password: the "
            "target knows us by the signature."
        )


def _scheme(values: Mapping[str, Any]) -> Scheme:
    """Return the source's scheme: the preset, or hmac with its keys."""
    scheme = dataclasses.replace(
        SCHEMES[values["scheme"]], **{name: values[name] for name in HMAC_KEYS if name in values}
    )
    tolerance_s = values["tolerance_s"]
    if tolerance_s is None:
        return scheme
    other = scheme.or_else and dataclasses.replace(scheme.or_else, tolerance_s=tolerance_s)
    return dataclasses.replace(scheme, tolerance_s=tolerance_s, or_else=other)


def _check_scheme(section: _Section, scheme: Scheme) -> None:
    """Report a scheme whose parts do not fit together."""
    for part, key in (("{timestamp}", "timestamp_header"), ("{id}", "id_header")):
        if part in scheme.signed and not (getattr(scheme, key) or scheme.timestamp_name):
            section.wrong(f"signed has {part}, so {key} must say which header that is.")
    if scheme.timestamp_header and "{timestamp}" not in scheme.signed:
        section.wrong(
            "timestamp_header is not part of signed: anybody could send an old request "
            "with a new time."
        )
    if scheme.needs_url and "public_url" not in section.table:
        section.wrong(
            "the URL is signed, so public_url must say what the sender calls: it is "
            "never taken from Host."
        )


def _check_protection(
    section: _Section, scheme: Scheme, values: Mapping[str, Any], secrets: tuple[bytes, ...]
) -> None:
    """Report what would let forged deliveries in."""
    if scheme.special == "mailgun" and values["dedupe"] == "body":
        section.wrong(
            'dedupe is "body", which mailgun does not sign: each forged body would be a '
            'new delivery; use "id".'
        )
    if scheme.key != "base64":
        return
    for reference, secret in zip(values["secrets"], secrets, strict=True):
        strong = any(len(key) >= MIN_SECRET for key in keys_of(scheme, secret))
        if len(secret) >= MIN_SECRET and not strong:
            section.wrong(
                f"secrets: {reference} is not base64 of {MIN_SECRET} bytes or more, after whsec_: "
                "copy it whole."
            )


# ---------------- secrets


def _secret(section: _Section, reference: str) -> bytes:
    """Return the secret that "env:NAME" or "file:PATH" refers to, b"" after reporting that there is
    none.
    """
    kind, _, rest = reference.partition(":")
    if kind not in ("env", "file"):
        # The reference is not shown: it may be the secret itself, written into the wrong file.
        section.wrong('secrets must be "env:NAME" or "file:PATH", never the secret itself.')
        return b""
    try:
        text = section.environ.get(rest, "") if kind == "env" else read_secret(section.base / rest)
    except ValueError as error:
        section.wrong(f"secrets: {error}.")
        return b""
    if len(text) < MIN_SECRET:
        state = f"is shorter than {MIN_SECRET} characters" if text else "is not set"
        section.wrong(f"secrets: {reference} {state}; `openssl rand -hex 32` makes a good one.")
    return text.encode("utf-8", "surrogateescape")


def read_secret(path: Path) -> str:
    """Return the secret in a file, without the blanks around it. Raises ValueError with the reason
    why not.
    """
    try:
        return path.expanduser().read_text().strip()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {why(error)}") from None


def why(error: Exception) -> str:
    """Return what an error says, as the end of a sentence that has its own full stop."""
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text.rstrip(".")
