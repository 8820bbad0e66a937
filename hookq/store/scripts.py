"""The scripts in lua/: read once, at import, each with the prelude that they share.

Why scripts: each runs whole or not at all, also when memory is full: by its first line, "#!lua",
Redis refuses it before it starts. There stand its flags, too: allow-oom for those that settle or
free, so that a full Redis can still be drained; no-writes for those that only read.
"""

import hashlib
import re
from pathlib import Path
from typing import Final, NamedTuple

from hookq.job import ENTRY, FORMAT


class Script(NamedTuple):
    """A script as it is sent, and the SHA-1 by which Redis knows it."""

    sha: str
    text: str


def _fields() -> str:
    """Return the table of a job's fields in Lua: FIELDS are the names, ID, BODY … the places."""
    names = [field.name for field in ENTRY]
    places = ", ".join(str(place) for place in range(1, len(names) + 1))
    quoted = ", ".join(f"'{name}'" for name in names)
    return (
        f"local FORMAT, FIELDS = '{FORMAT}', {{{quoted}}}\n"
        f"local {', '.join(names).upper()} = {places}\n"
    )


def _read() -> dict[str, Script]:
    """Return every script by its name."""
    folder, scripts = Path(__file__).with_name("lua"), {}
    shared = _fields() + (folder / "prelude.lua").read_text()
    for path in folder.glob("*.lua"):
        flags, _, own = path.read_text().partition("\n")
        # Without comments and indents: accept is sent whole with each batch.
        text = f"{flags}\n" + re.sub(r"(?m)^\s*(--.*\n)?", "", shared + own)
        scripts[path.stem] = Script(
            hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text
        )
    del scripts["prelude"]
    return scripts


SCRIPTS: Final = _read()
