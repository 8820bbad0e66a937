"""Signature vectors: does our verification agree with the senders' own libraries?

A vector is a request with a known answer: `scheme`, `secret` or `secrets`, `headers`, `body` (or
`form`), and where needed `url` (public), `config` (the keys of webhooks.toml), `now`, `expect`
(accept, reject, or reject:<reason>). Without `now` no timestamp is judged. Those in vectors.json
were published by the senders unless they say otherwise.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from hookq.arrival import Arrival, Rejected
from hookq.schemes import SCHEMES, Scheme
from hookq.signing import Verifier, verify

VECTORS: Final = Path(__file__).with_name("vectors.json")


def answer(vector: Mapping[str, Any]) -> str:
    """Return "accept", or "reject:<reason>"."""
    secrets = vector.get("secrets") or [vector["secret"]]
    verifier = Verifier(
        _scheme(vector), tuple(secret.encode() for secret in secrets), vector.get("url", "")
    )
    fields = {name.lower(): value for name, value in vector.get("headers", {}).items()}
    if "form" in vector:
        body = urlencode(vector["form"])
        fields.setdefault("content-type", "application/x-www-form-urlencoded")
    else:
        body = vector["body"]
    at = float(vector.get("now", 0))
    arrival = Arrival(vector["scheme"], b"", fields, "", body.encode(), at)
    verdict = verify(verifier, arrival, "selftest")
    return f"reject:{verdict.reason}" if isinstance(verdict, Rejected) else "accept"


def _scheme(vector: Mapping[str, Any]) -> Scheme:
    config = {
        key: value for key, value in vector.get("config", {}).items() if key in Scheme.__slots__
    }
    scheme = replace(SCHEMES[vector["scheme"]], **config)
    if "now" in vector:
        return scheme
    other = scheme.or_else and replace(scheme.or_else, tolerance_s=float("inf"))
    return replace(scheme, tolerance_s=float("inf"), or_else=other)


def run(file: str) -> int:
    """Print the vectors that fail, then "n/n". Return the exit code: 0 all hold, 1 some do not, 2
    the file cannot be read.
    """
    try:
        content = json.loads((Path(file) if file else VECTORS).read_text())
        vectors = content["vectors"] if isinstance(content, dict) else content
        rows = [(str(vector["id"]), str(vector["expect"]), answer(vector)) for vector in vectors]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(
            f"{file or VECTORS} has no vectors that can be read: {type(error).__name__}: {error}."
        )
        return 2
    failed = [
        (id, expect, actual)
        for id, expect, actual in rows
        if actual != expect and not (expect == "reject" and actual != "accept")
    ]
    for id, expect, actual in failed:
        print(f"{id}: expected {expect}, got {actual}")
    print(f"{len(rows) - len(failed)}/{len(rows)}")
    return 1 if failed else 0
