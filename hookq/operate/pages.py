"""The pages of many: the overview, the list of dead letters, and the question before an act on all
that match. The page of one delivery is in delivery_page.py.

Pure: what was gathered and selected in, a page out. How values are escaped is in markup.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlencode

from hookq.job import arrived_at
from hookq.operate import dlq, phrases
from hookq.operate.markup import Frame, Markup, escaped, hidden, joined, link, moment, page, part
from hookq.operate.status import ProcessRow, SourceRow, Status, processes, sources, summed
from hookq.operate.verdict import numbers, times, verdict
from hookq.store.records import NEVER, Ledger, Parked, Search

ROWS: Final = 25
# What a list of dead letters is narrowed by: in its URL, its forms, and the question before an act
# on all that match.
FILTER: Final = ("q", "source", "cause", "since", "until", "error", "type")
SHOWN_FILTER: Final = FILTER[:4]
MAX_CAUSES: Final = 50
SERIES: Final = ("accepted", "done", "dead")

EMPTY_DEAD: Final = (
    "None. A job lands here after its last attempt failed, or at once when no retry can help."
)
EMPTY_RECENT: Final = "Nothing received yet. Send one: .venv/bin/python webhookd.py --send"
EMPTY_WORKERS: Final = (
    "Nothing is taking jobs. Start: .venv/bin/supervisorctl -c supervisord.conf start worker:*"
)
EMPTY_ACTS: Final = (
    "None yet. Whatever is put back, discarded or restored is listed here, with who did it."
)


# ---------------- the overview


def overview(status: Status, frame: Frame) -> bytes:
    level, clauses = verdict(status)
    return page(
        "overview",
        title="Overview",
        notice=frame.notice,
        token=frame.token,
        level=level,
        verdict=joined(part("clause", **clause._asdict()) for clause in clauses),
        counts=joined(part("count", **number._asdict()) for number in numbers(status)),
        causes=joined(cause_rows(status), EMPTY_DEAD, 7),
        sparks=joined(
            spark(name, [summed(row, name) for _, row in status.minutes]) for name in SERIES
        ),
        times=times(status.attempts),
        minutes=joined(minute_rows(status), "No data for this hour.", 4),
        sources=joined((source_row(status, row) for row in sources(status)), EMPTY_RECENT, 8),
        programs_why=status.programs_why,
        workers=joined((process_row(row) for row in processes(status)), EMPTY_WORKERS, 6),
        recent=joined(recent_rows(status), EMPTY_RECENT, 5),
        acts=joined(act_rows(status), EMPTY_ACTS, 6),
    )


def cause_rows(status: Status) -> Iterator[Markup]:
    for cause in status.causes[:MAX_CAUSES]:
        facts = cause._asdict() | {"total": f"{cause.total:,}"}
        facts["first"] = moment(facts.pop("first_at"), status.now)
        facts["last"] = moment(facts.pop("last_at"), status.now)
        yield part("cause", **facts)
    if len(status.causes) > MAX_CAUSES:
        more = f"and {len(status.causes) - MAX_CAUSES:,} more: dlqctl --view --by-cause"
        yield part("empty", text=more, columns=7)


def recent_rows(status: Status) -> Iterator[Markup]:
    for row in status.recent:
        received = moment(arrived_at(row.id) or 0.0, status.now)
        yield part("delivery", **row._asdict(), received=received)


def spark(name: str, values: Sequence[int]) -> Markup:
    """Return a line of the last 60 minutes, with its figures for whoever cannot see it."""
    top = max([*values, 1])
    points = " ".join(f"{4 * n:d},{38 - 36 * value / top:.1f}" for n, value in enumerate(values))
    label = (
        f"{name} per minute: {sum(values)} in 60 minutes, at most {max(values, default=0)}, "
        f"{values[-1] if values else 0} in this one"
    )
    total = f"{sum(values):,}"
    return part("spark", name=f"{name}, 60 min", total=total, label=label, points=points)


def minute_rows(status: Status) -> Iterator[Markup]:
    for minute, counts in reversed(status.minutes):
        figures = {name: summed(counts, name) for name in SERIES}
        if any(figures.values()):
            clock = f"{datetime.fromtimestamp(60 * minute, UTC):%H:%M} UTC"
            yield part("minute", minute=clock, **figures)


def source_row(status: Status, row: SourceRow) -> Markup:
    last = status.last.get(f"accepted:{row.name}")
    done, ended = row.hour["done"], row.hour["done"] + row.hour["dead"]
    rejected = ", ".join(f"{n:,} {reason}" for reason, n in sorted(row.rejected.items()))
    return part(
        "source",
        name=row.name,
        accepted=f"{row.hour['accepted']:,}",
        ready=f"{row.jobs.ready:,}",
        dead=f"{row.jobs.dead:,}",
        done=f"{done:,} ({100 * done // ended}%)" if ended else "none",
        last=moment(last, status.now) if last else "never",
        rejected=rejected or "none",
        secrets=joined(secret_uses(status, row.name)) or "none",
    )


def secret_uses(status: Status, source: str) -> Iterator[Markup]:
    """Yield when each secret was last used: one that is no longer used can be removed."""
    for field, at in sorted(status.last.items()):
        if field.startswith(f"secret:{source}:"):
            yield Markup(f"{escaped(field.rpartition(':')[2])}: {moment(at, status.now)} ")


def process_row(row: ProcessRow) -> Markup:
    doing: str = row.doing
    if row.job:
        id, for_s = row.job
        doing = part("doing", id=id, age=phrases.seconds(for_s))
    return part(
        "process",
        name=row.name,
        host=row.host,
        state=row.state,
        pid=row.pid or "none",
        up=row.up,
        doing=doing,
    )


def act_rows(status: Status) -> Iterator[Markup]:
    for at, name, count, act, restorable in status.acts:
        yield part(
            "act",
            when=moment(at, status.now),
            what=name,
            count=f"{count:,}",
            selected=act.what,
            who=f"{act.who} ({act.by})",
            restore=part("restore", batch=act.act) if restorable else "",
        )


# ---------------- the dead letters


class DeadPage(NamedTuple):
    """Page `number` (from 1) of the dead letters that match; `rows` has one more than a page if
    there is another. `texts` are the filter's.
    """

    rows: list[tuple[int, Parked]]
    selected: dlq.Selected
    texts: Mapping[str, str]
    number: int

    @property
    def more(self) -> bool:
        return len(self.rows) > ROWS


def dead_list(dead: DeadPage, audit: Ledger, frame: Frame) -> bytes:
    everything = audit.dead
    query = {name: dead.texts.get(name, "") for name in FILTER}
    empty = f"None match ({everything:,} in all)." if everything else EMPTY_DEAD
    return page(
        "dead",
        title="Dead letters",
        notice=frame.notice,
        token=frame.token,
        sources=joined(options(["", *sorted(audit.sources)], query["source"])),
        hidden=hidden(query, FILTER),
        more=hidden(query, FILTER[4:]),
        **{name: query[name] for name in SHOWN_FILTER if name != "source"},
        summary=summary(dead, everything),
        caption=f"Page {dead.number}, newest first; N is the number for dlqctl --retry N",
        rows=joined((dead_row(n, job, frame.now) for n, job in dead.rows[:ROWS]), empty, 9),
        pages=joined(page_links(dead, query)),
    )


def options(values: Sequence[str], chosen: str) -> Iterator[Markup]:
    for value in values:
        selected = Markup(" selected") if value and value == chosen else ""
        yield part("option", value=value, text=value or "any", selected=selected)


def summary(dead: DeadPage, everything: int) -> str:
    """Return how many match, as far as that is known."""
    seen = (dead.number - 1) * ROWS + len(dead.rows[:ROWS])
    _, total, left = dead.selected
    if total is not None:
        return f"{total:,} match, of {phrases.counted(everything)}."
    match = f"{'More than ' if dead.more else ''}{seen:,}"
    if dead.number > 1 and not dead.rows:
        match = "No more"
    unseen = f" {left:,} were not searched." if left else ""
    return f"{match} match, of {phrases.counted(everything)}.{unseen}"


def page_links(dead: DeadPage, query: Mapping[str, str]) -> Iterator[Markup]:
    links = [("Newer", {"page": str(dead.number - 1)})] if dead.number > 1 else []
    if dead.more:
        links.append(("Older", {"page": str(dead.number + 1)}))
    elif dead.selected.total is None and dead.selected.left:
        links.append(("Search all", {"deep": "1"}))
    for text, to in links:
        yield Markup(f"{link(where({**query, **to}), text)} ")


def dead_row(number: int, job: Parked, now: float) -> Markup:
    return part(
        "dead",
        id=job.id,
        n=number,
        source=job.source,
        event_type=job.event_type,
        attempts=phrases.attempts(job),
        age=phrases.seconds(now - job.at),
        error=phrases.why(job)[:300],
    )


def where(query: Mapping[str, str]) -> str:
    return "/dashboard/dead?" + urlencode({name: value for name, value in query.items() if value})


# ---------------- the question


class Question(NamedTuple):
    """What is asked before an act on all that match; `path` is that of its form."""

    path: str
    title: str
    what: str
    button: str


QUESTIONS: Final = {
    "redrive": Question(
        "retry",
        "Put back all that match?",
        "These go back to ready with fresh attempts",
        "Put back",
    ),
    "discard": Question(
        "discard", "Discard all that match?", "These are removed, restorable for 24 h", "Discard"
    ),
}


def confirm(
    verb: str,
    ids: Sequence[str],
    ends: Sequence[Parked],
    search: Search,
    texts: Mapping[str, str],
    frame: Frame,
) -> bytes:
    """Return the page that asks before an act on all that match; `ends` are the oldest of them and
    the last few.
    """
    question = QUESTIONS[verb]
    query = {name: texts.get(name, "") for name in FILTER}
    # As times, not as "2h": the person may think for a while.
    query["since"] = phrases.iso(search.since) if search.since else ""
    query["until"] = phrases.iso(search.until)
    asked = search._replace(until=search.until if texts.get("until") else NEVER)
    limited = f"Only the first {dlq.PAGE_LIMIT:,} are moved at once; repeat for the rest."
    return page(
        "confirm",
        title=question.title,
        what=question.what,
        button=f"{question.button} {phrases.counted(len(ids))}",
        notice=frame.notice,
        path=question.path,
        token=frame.token,
        count=phrases.counted(len(ids)),
        words=phrases.words(asked),
        hidden=hidden(query, FILTER),
        note=limited if len(ids) == dlq.PAGE_LIMIT else "",
        oldest=moment(min(job.at for job in ends), frame.now),
        newest=moment(max(job.at for job in ends), frame.now),
        sample=joined(sample_row(job) for job in ends),
    )


def sample_row(job: Parked) -> Markup:
    error = phrases.why(job)[:200]
    return part("sample", id=job.id, source=job.source, event_type=job.event_type, error=error)
