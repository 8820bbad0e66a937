"""The markup of the page: templates, escaping, and what each page is made of. Pure but for reading
the templates.

Rules: `page` and `part` escape every value unless it is Markup that they made; children are
rendered first and passed as values, never rendered twice, so that `$name` in a body stays what it
is; attributes are always quoted; script and style stand in static files only. Whatever is not
printable is shown as an escape.
"""

import functools
import html
import json
import re
import string
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlencode

from hookq import log
from hookq.job import Delivery, arrived_at
from hookq.operate import dlq
from hookq.operate.status import (
    LIVE_S,
    Status,
    by_source,
    millis,
    numbers,
    plural,
    seconds,
    times,
    verdict,
)
from hookq.operate.supervisord import Program
from hookq.settings import VERSION
from hookq.store.keys import host_of
from hookq.store.records import NEVER, Beat, Event, Facts, IngestionBeat, Ledger, Parked, Search

TEMPLATES: Final = Path(__file__).parents[2] / "templates"
ROWS: Final = 25
# What a list of dead letters is narrowed by: in its URL, its forms, and the question before an act
# on all that match.
FILTER: Final = ("q", "source", "cause", "since", "until", "error", "type")
SHOWN_FILTER: Final = FILTER[:4]
MAX_CAUSES: Final = 50
SHOWN_BODY: Final = 64 * 1024  # bytes; the rest by download
SHOWN_HEX: Final = 4 * 1024
MAX_PRETTY: Final = 1 << 20  # to indent JSON takes 20 times its size, and a page must not


class Markup(str):
    """Text that this module has made: it is not escaped again."""


class Frame(NamedTuple):
    """What every page needs: the token of its forms, what the last act said, and the time by Redis'
    clock.
    """

    token: str
    notice: str
    now: float


EMPTY_DEAD: Final = (
    "None. A job lands here after its last attempt failed, or at once when no retry can help."
)
EMPTY_RECENT: Final = "Nothing received yet. Send one: .venv/bin/python webhookd.py --send"
EMPTY_WORKERS: Final = (
    "Nothing is taking jobs. Start: .venv/bin/supervisorctl -c supervisord.conf start worker:*"
)


@functools.cache
def _template(name: str) -> string.Template:
    return string.Template((TEMPLATES / name).read_text())


@functools.cache
def _parts() -> dict[str, string.Template]:
    found = re.findall(r"<!-- ([a-z]+) -->(.*)\n", (TEMPLATES / "parts.html").read_text())
    return {name: string.Template(text) for name, text in found}


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
    return _filled(
        _template("base.html"),
        {"title": title, "notice": notice, "version": VERSION, "content": content},
    ).encode()


def joined(parts: Iterable[Markup], empty: str = "", columns: int = 0) -> Markup:
    """Return parts in a row; `empty` is what a table without rows teaches."""
    return Markup("".join(parts)) or (
        part("empty", text=empty, columns=columns) if empty else Markup("")
    )


def lines(text: str) -> Markup:
    """Return text of several lines, for <pre>."""
    return Markup("\n".join(escaped(line) for line in text.split("\n")))


def moment(at: float, now: float) -> Markup:
    """Return how long ago, with the time itself for machines and whoever hovers."""
    iso = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
    return part("time", iso=iso, text=f"{seconds(max(0.0, now - at))} ago")


# ---------------- the overview


def overview(status: Status, frame: Frame) -> bytes:
    level, clauses = verdict(status)
    counts = (
        part("count", key=key, name=name, number=number, note=note)
        for key, (name, number, note) in numbers(status).items()
    )
    return page(
        "overview",
        title="Overview",
        notice=frame.notice,
        token=frame.token,
        level=level,
        verdict=joined(part("clause", text=text, href=href) for text, href in clauses),
        counts=joined(counts),
        causes=joined(cause_rows(status), EMPTY_DEAD, 7),
        sparks=joined(
            spark(name, [counts_of(row, name) for _, row in status.minutes])
            for name in ("accepted", "done", "dead")
        ),
        times=times(status.attempts),
        minutes=joined(minute_rows(status), "No data for this hour.", 4),
        sources=joined(source_rows(status), EMPTY_RECENT, 8),
        programs_why=status.programs_why,
        workers=joined(process_rows(status), EMPTY_WORKERS, 6),
        recent=joined(recent_rows(status), EMPTY_RECENT, 5),
        acts=joined(
            act_rows(status),
            "None yet. What is put back, discarded or restored stands here, with who did it.",
            6,
        ),
    )


def cause_rows(status: Status) -> Iterable[Markup]:
    for c in status.causes[:MAX_CAUSES]:
        ends = {"first": moment(c.first_at, status.now), "last": moment(c.last_at, status.now)}
        yield part(
            "cause",
            id=c.id,
            cause=c.cause,
            source=c.source,
            total=f"{c.total:,}",
            **ends,
            sample=c.sample,
        )
    if len(status.causes) > MAX_CAUSES:
        yield part(
            "empty",
            text=f"and {len(status.causes) - MAX_CAUSES:,} more: dlqctl --view --by-cause",
            columns=7,
        )


def recent_rows(status: Status) -> Iterable[Markup]:
    for id, state, source, event_type in status.recent:
        received = moment(arrived_at(id) or 0.0, status.now)
        yield part(
            "delivery", id=id, state=state, source=source, event_type=event_type, received=received
        )


def counts_of(row: Mapping[str, int], name: str) -> int:
    return sum(n for field, n in row.items() if field.split(":")[0] == name)


def spark(name: str, values: list[int]) -> Markup:
    """Return a line of the last 60 minutes; who cannot see it hears the figures."""
    top = max([*values, 1])
    points = " ".join(
        f"{4 * place:d},{38 - 36 * value / top:.1f}" for place, value in enumerate(values)
    )
    label = (
        f"{name} per minute: {sum(values)} in 60 minutes, at most {max(values, default=0)}, "
        f"{values[-1] if values else 0} in this one"
    )
    return part(
        "spark", name=f"{name}, 60 min", total=f"{sum(values):,}", label=label, points=points
    )


def minute_rows(status: Status) -> Iterable[Markup]:
    for minute, row in reversed(status.minutes):
        figures = {name: counts_of(row, name) for name in ("accepted", "done", "dead")}
        if any(figures.values()):
            yield part(
                "minute", minute=f"{datetime.fromtimestamp(60 * minute, UTC):%H:%M} UTC", **figures
            )


def source_rows(status: Status) -> Iterable[Markup]:
    for name, row in by_source(status).items():
        counts, last = row["counts"], status.last.get(f"accepted:{name}")
        ended = counts["done"] + counts["dead"]
        rejected = ", ".join(
            f"{n:,} {key.removeprefix('rejected ')}"
            for key, n in sorted(counts.items())
            if key.startswith("rejected ")
        )
        yield part(
            "source",
            name=name,
            accepted=f"{counts['accepted']:,}",
            ready=f"{row['ready']:,}",
            dead=f"{row['dead']:,}",
            done=f"{counts['done']:,} ({100 * counts['done'] // ended}%)" if ended else "none",
            last=moment(last, status.now) if last else "never",
            rejected=rejected or "none",
            secrets=joined(secret_uses(status, name)) or "none",
        )


def secret_uses(status: Status, source: str) -> Iterable[Markup]:
    """Yield when each secret was last used: one that is no longer need not be kept."""
    for field, at in sorted(status.last.items()):
        if field.startswith(f"secret:{source}:"):
            yield Markup(f"{escaped(field.rpartition(':')[2])}: {moment(at, status.now)} ")


def process_rows(status: Status) -> Iterable[Markup]:
    """Yield supervisord's processes with what their heartbeats say, then those of other hosts, of
    which it does not know.
    """
    known: dict[tuple[str, int], tuple[str, Beat | IngestionBeat]] = {
        (host_of(name), beat.pid): ("worker", beat) for name, beat in status.workers.items()
    }
    known |= {(beat.host, beat.pid): ("webhookd", beat) for beat in status.ingestion.values()}
    for program in status.programs:
        _, beat = known.pop((status.host, program.pid), ("", None))
        state, up = state_of(program), up_of(program)
        yield part(
            "process",
            name=program.name,
            host=status.host,
            state=state,
            pid=program.pid or "none",
            up=up,
            hand=hand(beat),
        )
    for (host, pid), (kind, beat) in sorted(known.items()):
        silent_s = status.now - beat.at
        state = "heartbeat" if silent_s < LIVE_S else f"silent for {seconds(silent_s)}"
        yield part(
            "process",
            name=kind,
            host=host,
            state=state,
            pid=pid,
            up=seconds(beat.up_s),
            hand=hand(beat),
        )


def state_of(program: Program) -> str:
    return f"{program.state}: {program.spawn_error}" if program.spawn_error else program.state


def up_of(program: Program) -> str:
    return seconds(max(0, program.now - program.since)) if program.state == "RUNNING" else "not up"


def hand(beat: Beat | IngestionBeat | None) -> Markup | str:
    if isinstance(beat, IngestionBeat):
        return f"{plural(beat.connections, 'connection')}, {beat.spooled:,} spooled"
    if beat is None:
        return ""
    job = beat.job
    return part("hand", id=job.id, age=seconds(job.for_s)) if job else "nothing"


def act_rows(status: Status) -> Iterable[Markup]:
    for deed in status.acts:
        act = deed.act
        yield part(
            "act",
            when=moment(deed.at, status.now),
            what=deed.name,
            count=f"{deed.total:,}",
            selected=act.what,
            who=f"{act.who} ({act.by})",
            restore=part("restore", batch=act.act) if deed.restorable else "",
        )


# ---------------- the dead letters


def dead_list(
    chosen: list[tuple[int, Parked]],
    selected: dlq.Selected,
    audit: Ledger,
    texts: Mapping[str, str],
    number: int,
    frame: Frame,
) -> bytes:
    """Return page `number` (from 1) of the dead letters that match; `chosen` has one more than a
    page if there is another.
    """
    more, everything = len(chosen) > ROWS, audit.dead
    seen = (number - 1) * ROWS + len(chosen[:ROWS])
    looked = (
        f" {selected.left:,} were not looked at."
        if selected.left and selected.total is None
        else ""
    )
    match = (
        f"{selected.total:,}"
        if selected.total is not None
        else f"{'More than ' if more else ''}{seen:,}"
    )
    if selected.total is None and number > 1 and not chosen:
        match = "No more"
    query = {name: texts.get(name, "") for name in FILTER}
    links = [("Newer", {"page": str(number - 1)})] if number > 1 else []
    links += [("Older", {"page": str(number + 1)})] if more else []
    links += (
        [("Search through all", {"deep": "1"})]
        if selected.total is None and selected.left and not more
        else []
    )
    empty = f"None match ({everything:,} in all)." if everything else EMPTY_DEAD
    sources = [part("option", value="", text="any", selected="")]
    for name in sorted(audit.sources):
        sources.append(
            part(
                "option",
                value=name,
                text=name,
                selected=Markup(" selected") if name == query["source"] else "",
            )
        )
    return page(
        "dead",
        title="Dead letters",
        notice=frame.notice,
        token=frame.token,
        sources=joined(sources),
        hidden=hidden(query, FILTER),
        more=hidden(query, FILTER[4:]),
        **{name: query[name] for name in SHOWN_FILTER if name != "source"},
        summary=f"{match} match, of {dlq.counted(everything)}.{looked}",
        caption=f"Page {number}, the newest first; N is the number for dlqctl --retry N",
        rows=joined((dead_row(n, job, frame.now) for n, job in chosen[:ROWS]), empty, 9),
        pages=joined(
            Markup(f"{part('link', text=text, href=where(query, **to))} ") for text, to in links
        ),
    )


def dead_row(number: int, job: Parked, now: float) -> Markup:
    attempts = f"{job.attempt}/{job.facts.get('of', '?')}"
    facts = {
        "id": job.id,
        "n": number,
        "source": job.source,
        "event_type": job.event_type,
        "attempts": attempts,
    }
    return part("dead", **facts, age=seconds(now - job.at), error=dlq.why(job)[:300])


def hidden(query: Mapping[str, str], names: Iterable[str]) -> Markup:
    return joined(part("hidden", name=name, value=query[name]) for name in names if query[name])


def where(query: Mapping[str, str], **more: str) -> str:
    return "/dashboard/dead?" + urlencode(
        {name: value for name, value in {**query, **more}.items() if value}
    )


def confirm(
    verb: str,
    ids: list[str],
    ends: list[Parked],
    search: Search,
    texts: Mapping[str, str],
    frame: Frame,
) -> bytes:
    """Return the page that asks before an act on all that match; `ends` are the oldest of them and
    the last few.
    """
    count = plural(len(ids), "dead letter")
    title, what, button = {
        "retry": (
            "Put back all that match?",
            "These go back to ready with fresh attempts",
            f"Put back {count}",
        ),
        "discard": (
            "Discard all that match?",
            "These are removed, restorable for 24 h",
            f"Discard {count}",
        ),
    }[verb]
    query = {name: texts.get(name, "") for name in FILTER}
    # As times, not as "2h": the person may think for a while.
    query |= {"since": iso(search.since) if search.since else "", "until": iso(search.until)}
    return page(
        "confirm",
        title=title,
        what=what,
        button=button,
        notice=frame.notice,
        act=verb,
        token=frame.token,
        count=count,
        words=dlq.words(search._replace(until=search.until if texts.get("until") else NEVER)),
        hidden=hidden(query, FILTER),
        note=f"Only the first {dlq.PAGE_LIMIT:,} are moved at once; do it again for the rest."
        if len(ids) == dlq.PAGE_LIMIT
        else "",
        oldest=moment(min(job.at for job in ends), frame.now),
        newest=moment(max(job.at for job in ends), frame.now),
        sample=joined(
            part(
                "sample", id=j.id, source=j.source, event_type=j.event_type, error=dlq.why(j)[:200]
            )
            for j in ends
        ),
    )


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


# ---------------- one delivery

WORDS: Final = {
    "job.complete": "done",
    "job.reschedule": "failed, retry",
    "job.bury": "dead",
    "job.reclaim": "taken over from a worker that was gone",
    "job.redrive": "put back",
    "job.discard": "discarded",
    "job.restore": "restored",
    "delivery.duplicate": "sent again: a duplicate",
}


def delivery(story: dlq.Story, view: str, frame: Frame) -> bytes:
    """Return the page of one delivery, whatever its state."""
    d, parked, now = story.delivery, story.parked, frame.now
    received = d.received_at if d else arrived_at(story.id) or 0.0
    last = story.events[-1] if story.events else None
    told: Facts = last.facts if last else {}
    facts: dict[str, object] = {
        "id": story.id,
        "state": story.state,
        "source": d.source if d else last.source if last else "",
    }
    facts["event type"] = d.event_type if d else told.get("event_type", "")
    facts["received"] = moment(received, now)
    facts["delivery id"] = d.delivery_id if d else told.get("delivery_id", "")
    facts |= {"size": f"{len(d.body):,} bytes"} if d else {}
    facts |= (
        {"cause": parked.cause, "error": dlq.why(parked)}
        if parked and story.state == "dead"
        else {}
    )
    acts = {
        "dead": [("retry", "Retry"), ("discard", "Discard")],
        "discarded": [("restore", "Restore")],
    }.get(story.state, [])
    note, body = shown_body(d, view, story)
    first = part(
        "event",
        when=moment(received, now),
        what="received",
        attempt="",
        wait="",
        run="",
        by="",
        told=f"its signature held (secret {d.secret})" if d and d.secret else "its signature held",
    )
    said = {"Traceback": story.trace, "Answer or output of the last attempt": dlq.said(story)}
    return page(
        "delivery",
        title=f"Delivery {story.id}",
        notice=frame.notice,
        token=frame.token,
        id=story.id,
        facts=joined(
            part("fact", name=name, value=value) for name, value in facts.items() if value
        ),
        acts=joined(part("button", act=act, text=text) for act, text in acts),
        events=joined([first, *(event_row(event, now) for event in story.events)]),
        trace=joined(
            part("trace", id=title.split()[0].lower(), title=title, text=lines(text))
            for title, text in said.items()
            if text
        ),
        body_note=note,
        body=body,
        headers=joined(
            (part("header", name=n, value=v) for n, v in dlq.shown_headers(d).items()),
            "They are not kept any more.",
            2,
        ),
        command=f" · .venv/bin/dlqctl --retry all --id {story.id}" if story.state == "dead" else "",
    )


def event_row(event: Event, now: float) -> Markup:
    name, facts = event.event, event.facts
    attempt = f"{facts['attempt']}/{facts.get('of', '?')}" if "attempt" in facts else ""
    by = facts.get("worker") or (f"{facts['who']} ({facts['by']})" if "who" in facts else "")
    told = str(
        facts.get("error") or (f"answered {facts['answer']['status']}" if "answer" in facts else "")
    )
    if "delay_s" in facts:
        told += f" (again within {seconds(float(facts['delay_s']))})"
    if facts.get("deaths"):
        told += f" {facts['deaths']} workers ended while running it"
    wait, run = (millis(float(facts[key])) if key in facts else "" for key in ("wait_ms", "run_ms"))
    return part(
        "event",
        when=moment(event.at, now),
        what=WORDS.get(name, name),
        attempt=attempt,
        wait=wait,
        run=run,
        by=by,
        told=told.strip(),
    )


def shown_body(d: Delivery | None, view: str, story: dlq.Story) -> tuple[Markup | str, Markup]:
    """Return a note and the body as text: indented JSON, or as it came, or in hexadecimal when it
    is not UTF-8.
    """
    if d is None:
        return f"It is not kept any more: the job is {story.state}.", Markup("")
    shown, cut = d.body[:SHOWN_BODY], len(d.body) > SHOWN_BODY
    here = f"/dashboard/deliveries/{story.id}"
    other = part(
        "link",
        href=f"{here}?view={'pretty' if view == 'raw' else 'raw'}",
        text="as it came" if view != "raw" else "indented",
    )
    note = Markup(
        f"{part('link', href=f'{here}/body', text='Download')} · "
        f"{other}{' · only the first 64 KiB are shown' if cut else ''}"
    )
    if view != "raw" and len(d.body) <= MAX_PRETTY:
        try:
            return note, lines(json.dumps(d.json(), indent=2, ensure_ascii=False)[:SHOWN_BODY])
        except (ValueError, RecursionError):
            pass
    try:
        return note, lines(
            shown.decode("utf-8", "strict" if not cut else "ignore")
            if _is_text(d.body)
            else _hex(d.body)
        )
    except UnicodeDecodeError:
        return note, lines(_hex(d.body))


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
        return True
    except UnicodeDecodeError:
        return False


def _hex(body: bytes) -> str:
    rows = [body[at : at + 16] for at in range(0, min(len(body), SHOWN_HEX), 16)]
    plain = ["".join(chr(byte) if 32 <= byte < 127 else "." for byte in row) for row in rows]
    return "\n".join(
        f"{16 * n:08x}  {row.hex(' '):47}  {text}"
        for n, (row, text) in enumerate(zip(rows, plain, strict=True))
    )
