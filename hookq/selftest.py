"""Signature vectors: do our eyes see what the senders' own libraries see?

A vector is a request with a known answer: `scheme`, `secret` or `secrets`, `headers`, `body` (or
`form`), and where needed `url` (public), `config` (the keys of webhooks.toml), `now`, `expect`
(accept, reject, or reject:<reason>). Without `now` no time is judged. Those in vectors.json were
published by the senders unless they say otherwise.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from hookq.schemes import SCHEMES, Scheme
from hookq.signing import Rejected, Signer, verify

VECTORS: Final = Path(__file__).with_name("vectors.json")


def answer(vector: Mapping[str, Any]) -> str:
    """Return "accept", or "reject:<reason>"."""
    config = {
        key: value for key, value in vector.get("config", {}).items() if key in Scheme.__slots__
    }
    scheme = dataclasses.replace(SCHEMES[vector["scheme"]], **config)
    if "now" not in vector:
        other = (
            dataclasses.replace(scheme.or_else, tolerance_s=float("inf"))
            if scheme.or_else
            else None
        )
        scheme = dataclasses.replace(scheme, tolerance_s=float("inf"), or_else=other)
    secrets = vector.get("secrets") or [vector["secret"]]
    signer = Signer(
        vector["scheme"],
        scheme,
        tuple(secret.encode() for secret in secrets),
        vector.get("url", ""),
    )
    fields = {name.lower(): value for name, value in vector.get("headers", {}).items()}
    body = urlencode(vector["form"]) if "form" in vector else vector["body"]
    if "form" in vector:
        fields.setdefault("content-type", "application/x-www-form-urlencoded")
    found = verify(signer, fields, b"", body.encode(), float(vector.get("now", 0)), "selftest")
    return f"reject:{found.reason}" if isinstance(found, Rejected) else "accept"


def run(file: str) -> int:
    """Print the vectors that fail and "n/n"; return the exit code: 0 all hold, 1 some do not, 2 the
    file is no such file.
    """
    try:
        content = json.loads((Path(file) if file else VECTORS).read_text())
        vectors = content["vectors"] if isinstance(content, dict) else content
        wanted = [(str(vector["id"]), str(vector["expect"]), answer(vector)) for vector in vectors]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(
            f"{file or VECTORS} has no vectors that can be read: {type(error).__name__}: {error}."
        )
        return 2
    failed = [
        (id, expect, found)
        for id, expect, found in wanted
        if found != expect and not (expect == "reject" and found != "accept")
    ]
    for id, expect, found in failed:
        print(f"{id}: expected {expect}, got {found}")
    print(f"{len(wanted) - len(failed)}/{len(wanted)}")
    return 1 if failed else 0
