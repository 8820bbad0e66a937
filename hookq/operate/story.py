"""One delivery's story: what is known of it, and each of its events as text.

Only here does an event become text: `line` for `make run` and `webhookd.py --send`, `record` with
all its facts for `dlqctl --show`, `columns` for the page. Lines are printable, whatever the event
holds; columns are not yet, since the page escapes them itself.

Promises: headers that carry credentials are masked. Does not promise events for ever: those of a
finished delivery stay until 10,000 newer ones displace them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from hookq import log
from hookq.job import Delivery, Headers, arrived_at, header_lines
from hookq.operate import phrases
from hookq.operate.dlq import NoSuch
from hookq.store import reading
from hookq.store.client import Client
from hookq.store.records import Event, Parked

# Headers that carry credentials.
HIDDEN: Final = re.compile(
    r"auth|cookie|signature|hmac|digest|token|secret|password|jwt|assertion|-key$"
)
OUTCOMES: Final = {"job.complete": "done", "job.reschedule": "retry", "job.bury": "dead"}
WORDS: Final = {
    "job.complete": "done",
    "job.reschedule": "failed, will retry",
    "job.bury": "dead",
    "job.reclaim": "reclaimed from a dead worker",
    "job.redrive": "put back",
    "job.discard": "discarded",
    "job.restore": "restored",
    "delivery.duplicate": "sent again: duplicate",
}
MAX_ERROR: Final = 120  # characters of an error in a line


class Facts(NamedTuple):
    """What identifies a delivery. None is not known any more."""

    id: str
    state: str
    source: str | None = None
    event_type: str | None = None
    delivery_id: str | None = None
    received_at: float | None = None
    size: int | None = None


class Failure(NamedTuple):
    """Why a parked job is where it is."""

    attempt: int
    max_attempts: int | None
    cause: str
    error: str


@dataclass(frozen=True, slots=True)
class Story:
    """All that is known of one delivery. `delivery` is None once its body is gone (done, or
    discarded for 24 h).
    """

    id: str
    state: str
    delivery: Delivery | None
    parked: Parked | None
    trace: str
    events: list[Event]

    @property
    def facts(self) -> Facts:
        delivery = self.delivery
        if delivery:
            about = delivery.source, delivery.event_type, delivery.delivery_id
            size = len(delivery.body)
            return Facts(self.id, self.state, *about, delivery.received_at, size)
        if not self.events:
            return Facts(self.id, self.state)
        last = self.events[-1]
        about = last.source, last.facts.get("event_type", ""), last.facts.get("delivery_id", "")
        return Facts(self.id, self.state, *about, arrived_at(self.id))

    @property
    def failure(self) -> Failure | None:
        job = self.parked
        if job is None:
            return None
        error = phrases.why(job).removeprefix(": ")
        return Failure(job.attempt, job.facts.get("of"), job.cause, error)

    @property
    def output(self) -> str:
        """What the target answered, or the command printed, in the last attempt that is known; ""
        if nothing.
        """
        last = self.parked.facts if self.parked else {}
        for facts in [*(event.facts for event in reversed(self.events)), last]:
            if "answer" in facts:
                return str(facts["answer"]["body"])
            if "output" in facts:
                return str(facts["output"])
        return ""


def find(store: Client, text: str) -> Story:
    """Return the story of the one delivery whose job id begins with `text`, or whose delivery id it
    is. Raises NoSuch.
    """
    states = reading.locate(store, text) if text else {}
    if text in states:  # a whole id, which may also begin others
        states = {text: states[text]}
    if not states:
        raise NoSuch(
            f"No delivery is known by {log.printable(text) or 'nothing'}: its id may be wrong, "
            "or it was done too long ago."
        )
    if len(states) > 1:
        some = ", ".join(sorted(states)[:5])
        raise NoSuch(
            f"{len(states)} deliveries are known by {log.printable(text)}: {some}, …; give "
            "more of the id."
        )
    id, state = next(iter(states.items()))
    events = reading.events(store, id)
    parked = next(iter(reading.parked(store, [id])), None)
    return Story(id, state, reading.delivery(store, id), parked, reading.trace(store, id), events)


def shown_headers(delivery: Delivery | None) -> Headers:
    """Return the sender's headers; those that carry credentials are masked."""
    shown = Headers()
    for name, value in header_lines(delivery.head) if delivery else ():
        name = name.lower()
        value = "(hidden)" if HIDDEN.search(name) else value
        shown[name] = f"{shown[name]}, {value}" if name in shown else value
    return shown


# ---------------- one event


class Columns(NamedTuple):
    """One event in words."""

    what: str
    attempt: str = ""
    wait: str = ""
    run: str = ""
    by: str = ""
    details: str = ""


def columns(event: Event) -> Columns:
    facts = event.facts
    by = facts.get("worker") or (f"{facts['who']} ({facts['by']})" if "who" in facts else "")
    answer = f"answered {facts['answer']['status']}" if "answer" in facts else ""
    details = [str(facts.get("error") or answer)]
    if "delay_s" in facts:
        details.append(f"({_again(event)})")
    if facts.get("deaths"):
        details.append(f"{facts['deaths']} workers ended while running it")
    wait, run = (
        phrases.millis(float(facts[key])) if key in facts else "" for key in ("wait_ms", "run_ms")
    )
    attempt = _attempt(event) if "attempt" in facts else ""
    return Columns(
        WORDS.get(event.event, event.event), attempt, wait, run, by, " ".join(details).strip()
    )


def outcome(event: Event) -> str:
    """Return how an attempt ended (done, retry, dead), or "" for an event that ends none."""
    return OUTCOMES.get(event.event, "")


def line(event: Event) -> str:
    """Return the end of an attempt as a line."""
    parts = [
        named(event),
        f"{outcome(event):5}",
        _attempt(event),
        f"{event.facts.get('run_ms', 0):g} ms",
        _again(event) if outcome(event) == "retry" else "",
        log.printable(event.facts.get("error") or "")[:MAX_ERROR],
    ]
    return "  ".join(["<--", *filter(None, parts)])


def named(event: Event) -> str:
    return f"{event.source}  {log.printable(event.facts.get('event_type', ''))}  {event.id}"


def record(event: Event) -> str:
    """Return an event whole, as a line of its facts."""
    facts = dict(event.facts)
    if "answer" in facts:
        facts["answer"] = facts["answer"]["status"]
    pairs = (f"{key}={value}" for key, value in facts.items() if key != "output")
    about = log.printable("  ".join(pairs))
    return f"{phrases.stamp(event.at)}  {event.event:18} {about}"


def _attempt(event: Event) -> str:
    return f"{event.facts.get('attempt', 0)}/{event.facts.get('of', '?')}"


def _again(event: Event) -> str:
    return f"again within {phrases.seconds(float(event.facts.get('delay_s', 0)))}"


# ---------------- the whole story, for a terminal or a program


def text(story: Story) -> Iterator[str]:
    """Yield the lines of a story: its facts, events, traceback, output, headers and body."""
    for name, value in shown_facts(story).items():
        shown = phrases.stamp(value) if name == "received_at" else log.printable(str(value))
        yield f"{name:12} {shown}"
    yield from map(record, story.events)
    for block in filter(None, (story.trace, story.output)):
        yield from ("", *_printable_lines(block))
    if story.delivery:
        headers = shown_headers(story.delivery).items()
        yield from ("", *(f"{name}: {log.printable(value)}" for name, value in headers))
        body = story.delivery.body.decode("utf-8", "backslashreplace")
        yield from ("", *_printable_lines(body))


def as_json(story: Story) -> dict[str, Any]:
    body = story.delivery.body.decode("utf-8", "backslashreplace") if story.delivery else None
    return {
        **shown_facts(story),
        "headers": shown_headers(story.delivery),
        "events": [event.as_json() for event in story.events],
        "trace": story.trace,
        "body": body,
    }


def shown_facts(story: Story) -> dict[str, Any]:
    """Return what is known of the delivery, by name."""
    facts = {name: value for name, value in story.facts._asdict().items() if value is not None}
    return facts | (story.failure._asdict() if story.failure else {})


def _printable_lines(block: str) -> list[str]:
    return [log.printable(row) for row in block.splitlines()]
