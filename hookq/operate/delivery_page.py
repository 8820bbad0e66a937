"""The page of one delivery, whatever its state: facts, acts, story, body and headers.

Pure: a story in, a page out. Promises: a body is shown as text only, bounded, and never changed; as
it came it is a download.
"""

import json
from collections.abc import Iterator
from typing import Final

from hookq.job import Delivery, arrived_at
from hookq.operate.markup import Frame, Markup, joined, lines, link, moment, page, part
from hookq.operate.story import Columns, Story, columns, shown_headers

SHOWN_BODY: Final = 64 * 1024  # bytes; the rest by download
SHOWN_HEX: Final = 4 * 1024
MAX_PRETTY: Final = 1 << 20  # indenting JSON takes 20 times its size, which a page must not use
# The buttons by state: the path of the act below /dashboard/, and the text.
BUTTONS: Final = {
    "dead": (("retry", "Retry"), ("discard", "Discard")),
    "discarded": (("restore", "Restore"),),
}


def delivery_page(story: Story, view: str, frame: Frame) -> bytes:
    """Return the page; `view` is raw for the body as it came, anything else for indented JSON."""
    note, body = shown_body(story.delivery, view, story)
    blocks = {"Traceback": story.trace, "Answer or output of the last attempt": story.output}
    headers = shown_headers(story.delivery).items()
    dead = story.state == "dead"
    return page(
        "delivery",
        title=f"Delivery {story.id}",
        notice=frame.notice,
        token=frame.token,
        id=story.id,
        facts=joined(facts(story, frame.now)),
        acts=joined(
            part("button", act=act, text=text) for act, text in BUTTONS.get(story.state, ())
        ),
        events=joined(event_rows(story, frame.now)),
        trace=joined(
            part("trace", id=title.split()[0].lower(), title=title, text=lines(text))
            for title, text in blocks.items()
            if text
        ),
        body_note=note,
        body=body,
        headers=joined(
            (part("header", name=name, value=value) for name, value in headers),
            "They are no longer kept.",
            2,
        ),
        command=f" · .venv/bin/dlqctl --retry all --id {story.id}" if dead else "",
    )


def facts(story: Story, now: float) -> Iterator[Markup]:
    about, failure = story.facts, story.failure if story.state == "dead" else None
    rows: dict[str, object] = {
        "id": about.id,
        "state": about.state,
        "source": about.source,
        "event type": about.event_type,
        "received": moment(received_at(story), now),
        "delivery id": about.delivery_id,
        "size": "" if about.size is None else f"{about.size:,} bytes",
        "cause": failure and failure.cause,
        "error": failure and failure.error,
    }
    yield from (part("fact", name=name, value=value) for name, value in rows.items() if value)


def received_at(story: Story) -> float:
    return story.facts.received_at or arrived_at(story.id) or 0.0


def event_rows(story: Story, now: float) -> Iterator[Markup]:
    secret = story.delivery.secret if story.delivery else 0
    which = f" (secret {secret})" if secret else ""
    arrival = Columns("received", details=f"signature verified{which}")
    yield part("event", when=moment(received_at(story), now), **arrival._asdict())
    for event in story.events:
        yield part("event", when=moment(event.at, now), **columns(event)._asdict())


def shown_body(delivery: Delivery | None, view: str, story: Story) -> tuple[Markup | str, Markup]:
    """Return a note and the body as text: indented JSON, or as it came, or in hexadecimal when it
    is not UTF-8.
    """
    if delivery is None:
        return f"It is no longer kept: the job is {story.state}.", Markup("")
    here = f"/dashboard/deliveries/{story.id}"
    view_of = ("pretty", "indented") if view == "raw" else ("raw", "as it came")
    other = link(f"{here}?view={view_of[0]}", view_of[1])
    cut = " · only the first 64 KiB are shown" if len(delivery.body) > SHOWN_BODY else ""
    note = Markup(f"{link(f'{here}/body', 'Download')} · {other}{cut}")
    return note, lines(_indented(delivery) if view != "raw" else _as_it_came(delivery.body))


def _indented(delivery: Delivery) -> str:
    if len(delivery.body) <= MAX_PRETTY:
        try:
            return json.dumps(delivery.json(), indent=2, ensure_ascii=False)[:SHOWN_BODY]
        except (ValueError, RecursionError):
            pass
    return _as_it_came(delivery.body)


def _as_it_came(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError:
        return _hex(body)
    return body[:SHOWN_BODY].decode("utf-8", "ignore")  # the cut may be within a character


def _hex(body: bytes) -> str:
    rows = [body[at : at + 16] for at in range(0, min(len(body), SHOWN_HEX), 16)]
    plain = ["".join(chr(byte) if 32 <= byte < 127 else "." for byte in row) for row in rows]
    return "\n".join(
        f"{16 * n:08x}  {row.hex(' '):47}  {text}"
        for n, (row, text) in enumerate(zip(rows, plain, strict=True))
    )
