"""The markup of the page: templates and escaping. Pure but for reading the templates.

Rules: `page` and `part` escape every value unless it is Markup that they made; children are
rendered first and passed as values, never rendered twice, so that `$name` in a body stays what it
is; attributes are always quoted; script and style stand in static files only. Whatever is not
printable is shown as an escape.
"""

import functools
import html
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from hookq import log
from hookq.operate import phrases
from hookq.settings import VERSION

TEMPLATES: Final = Path(__file__).parents[2] / "templates"


class Markup(str):
    """Text that this module has made: it is not escaped again."""


class Frame(NamedTuple):
    """What every page needs: the token of its forms, the notice of the last act, and the time by
    Redis' clock.
    """

    token: str
    notice: str
    now: float


@functools.cache
def _template(name: str) -> string.Template:
    return string.Template((TEMPLATES / name).read_text())


@functools.cache
def _parts() -> dict[str, string.Template]:
    rows = re.findall(r"<!-- ([a-z]+) -->(.*)\n", (TEMPLATES / "parts.html").read_text())
    return {name: string.Template(text) for name, text in rows}


def _filled(template: string.Template, values: Mapping[str, object]) -> Markup:
    return Markup(template.substitute({key: escaped(value) for key, value in values.items()}))


def escaped(value: object) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(log.printable(str(value))))


def part(name: str, /, **values: object) -> Markup:
    """Return one part of templates/parts.html with its values."""
    return _filled(_parts()[name], values)


def page(name: str, /, *, title: str, notice: str = "", **values: object) -> bytes:
    """Return a whole page: templates/<name>.html with its values, within the frame that all
    have.
    """
    content = _filled(_template(f"{name}.html"), values)
    frame = {"title": title, "notice": notice, "version": VERSION, "content": content}
    return _filled(_template("base.html"), frame).encode()


def joined(parts: Iterable[Markup], empty: str = "", columns: int = 0) -> Markup:
    """Return parts one after the other; `empty` is what a table without rows says."""
    markup = Markup("".join(parts))
    return part("empty", text=empty, columns=columns) if empty and not markup else markup


def lines(text: str) -> Markup:
    """Return text of several lines, for <pre>."""
    return Markup("\n".join(escaped(line) for line in text.split("\n")))


def link(href: str, text: str) -> Markup:
    return part("link", href=href, text=text)


def moment(at: float, now: float) -> Markup:
    """Return how long ago, with the time itself for machines and whoever hovers."""
    return part("time", iso=phrases.iso(at, "milliseconds"), text=phrases.ago(at, now))


def hidden(values: Mapping[str, str], names: Iterable[str]) -> Markup:
    """Return hidden fields of a form, for those of `names` that have a value."""
    return joined(part("hidden", name=name, value=values[name]) for name in names if values[name])
