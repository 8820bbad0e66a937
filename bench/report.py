"""The results of the bench as one Markdown table and one SVG chart."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rig import PEERS

HEAD = "| measured | webhookd | beside it | | ratio | target | |\n|---|--:|---|--:|--:|---|---|"


@dataclass(frozen=True)
class Line:
    """One row: our number, perhaps a peer's and the median ratio of ours to it, and the limit of
    the target.

    `limit` is for the ratio where there is one, else for our number; `above` says on which side of
    it is good.
    """

    what: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    ratio: float | None = None
    limit: float | None = None
    above: bool = False
    target: str = ""

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        value = self.ours if self.ratio is None else self.ratio
        return value > self.limit if self.above else value < self.limit

    def markdown(self) -> str:
        cells = [
            self.what,
            number(self.ours),
            self.peer,
            number(self.theirs),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self.target,
        ]
        return (
            f"| {' | '.join(cells)} | {({None: '', True: 'met', False: '**not met**'})[self.met]} |"
        )


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def versions() -> str:
    """Return what was measured, with its version, in one line."""

    def told(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    found = {
        "Python": platform.python_version(),
        "Redis": told("redis-server", "--version").partition("v=")[2].split(" ")[0],
    }
    found["Node.js"] = told("node", "--version").strip().removeprefix("v")
    found["wrk"] = [*told("wrk", "-v").split(), "", "?"][1].rpartition("/")[2]
    ours = {name: importlib.metadata.version(name) for name in ("webhookd", "redis", "hiredis")}
    listed = (
        told(
            str(PEERS / "venv/bin/python"),
            "-m",
            "pip",
            "list",
            "--format",
            "json",
            "--disable-pip-version-check",
        )
        or "[]"
    )
    theirs = {row["name"]: row["version"] for row in json.loads(listed)}
    packages = ("uvicorn", "uvloop", "httptools", "starlette", "rq", "celery", "dramatiq", "huey")
    for name in ("fastify", "express", "ioredis", "bullmq"):
        manifest = PEERS / "node_modules" / name / "package.json"
        theirs[name] = json.loads(manifest.read_text())["version"] if manifest.exists() else "-"
    found |= ours | {
        name: theirs.get(name, "-")
        for name in (*packages, "fastify", "express", "ioredis", "bullmq")
    }
    return ", ".join(f"{name} {version}" for name, version in found.items())


def machine() -> str:
    return f"{os.cpu_count()} cores, shared by server, Redis and load client"


def markdown(lines: Sequence[Line], notes: Sequence[str], how: str) -> str:
    """Return the page: the table, then how it came about, then what the peers do not do."""
    met = [line.met for line in lines if line.met is not None]
    today = datetime.datetime.now(datetime.UTC).date()
    parts = [
        f"# The bench, {today}",
        f"{how} {machine()}. Targets met: {sum(met)} of {len(met)}. A ratio is webhookd's "
        "number to the other one, the median over the "
        "rounds of runs that stood next to each other: read the ratios, the other figures are "
        "the machine's.",
        "![CPU per request and jobs/s](bench.svg)",
        "\n".join([HEAD, *(line.markdown() for line in lines)]),
        "What the others do not do, and webhookd does:",
        "\n".join(f"- {note}" for note in notes),
        f"Versions: {versions()}.",
    ]
    return "\n\n".join(parts) + "\n"


def chart(panels: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Return an SVG with one panel of horizontal bars for each (title, rows); the first row of each
    is ours.
    """
    bars, y = [], 10
    for title, rows in panels:
        longest = max((value for _, value in rows), default=1.0)
        y += 26
        bars.append(f'<text x="12" y="{y}" class="title">{escape(title)}</text>')
        for place, (name, value) in enumerate(rows):
            y += 26
            width = max(1.0, 380 * value / longest)
            kind = "other" if place else "ours"
            bars.append(f'<text x="172" y="{y}" class="name">{escape(name)}</text>')
            bars.append(
                f'<rect x="182" y="{y - 14}" width="{width:.1f}" height="18" rx="2" '
                f'class="{kind}"/>'
            )
            bars.append(f'<text x="{190 + width:.1f}" y="{y}">{number(value)}</text>')
        y += 14
    style = (
        "text{font:13px "
        "system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.name{text-anchor:end}"
        ".ours{fill:#0b6e4f}.other{fill:#9aa4ad}.back{fill:#fff}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 {y + 10}" width="660" '
        f'height="{y + 10}" role="img">'
    )
    told = "; ".join(
        f"{title}: " + ", ".join(f"{name} {number(value)}" for name, value in rows)
        for title, rows in panels
    )
    body = "\n".join(bars)
    return (
        f'{head}\n<title>{escape(told)}</title>\n<style>{style}</style>\n<rect class="back" '
        f'width="100%" height="100%"/>\n{body}\n</svg>\n'
    )
