"""What a request is for, judged by its head alone: a delivery, a page, or neither.

Pure: settings and pages are arguments. A request ends in one of three values; whoever asked answers
and counts it, in one place each.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from hookq.sources import Source
from hookq.wire import BadRequest, Request

PREFIX: Final = "/api/webhooks/"
UNKNOWN: Final = "_unknown"  # counts requests of no source: the path is anybody's invention

# Why a request is no delivery, and the code that its sender gets. A parser's own codes are its own.
STATUS: Final = {
    "missing": 401,
    "malformed": 401,
    "signature": 401,
    "timestamp": 401,
    "unknown_source": 404,
    "too_large": 413,
    "overloaded": 503,  # the sender must come again: never a 4xx, which it would take for final
}


class Deliver(NamedTuple):
    """It is a delivery to this source, once its body is here and verified."""

    source: Source


class Page(NamedTuple):
    """It is answered here and now, with text. `last`: what follows cannot be told from its body."""

    status: int
    text: bytes
    extra: str = ""
    last: bool = False


class Refusal(NamedTuple):
    """It is no delivery. `reason` is the word for the sender, `why` a sentence for the log."""

    reason: str
    why: str
    status: int
    source: str = UNKNOWN
    extra: str = ""


Pages = Mapping[str, Callable[[], tuple[int, bytes]]]


def refusal(reason: str, why: str, source: str = UNKNOWN) -> Refusal:
    return Refusal(reason, why, STATUS[reason], source)


def of_parser(bad: BadRequest, source: str = UNKNOWN) -> Refusal:
    """Return the refusal of a request that cannot be read."""
    return Refusal(
        "too_large" if bad.status == 413 else "bad_request", str(bad), bad.status, source
    )


def route(
    deliveries: Mapping[str, Deliver], pages: Pages, max_body: int, request: Request
) -> Deliver | Page | Refusal:
    """Judge everything that can be judged before the body is read. `deliveries` has a value for
    each source, by name.
    """
    if not request.path.startswith(PREFIX):
        return _page(request, pages)
    name = request.path[len(PREFIX) :]
    delivery = deliveries.get(name)
    if delivery is None:
        return refusal("unknown_source", "there is no such source")
    if request.method != "POST":
        why = f"{request.method} is no way to deliver"
        return Refusal("bad_request", why, 405, name, "Allow: POST\r\n")
    if request.length is None:
        return Refusal("bad_request", "a webhook needs a body with Content-Length", 411, name)
    if request.length > max_body:
        return refusal("too_large", f"the body is longer than {max_body} bytes", name)
    return delivery


def _page(request: Request, pages: Pages) -> Page:
    # A body that nobody reads would be taken for the next request.
    last = not request.keep_alive or bool(request.length) or request.expects
    page = pages.get(request.path)
    if page is None:
        return Page(404, b"There is nothing here.\n", last=last)
    if request.method not in ("GET", "HEAD"):
        return Page(405, b"Only GET is possible here.\n", "Allow: GET, HEAD\r\n", last)
    return Page(*page(), last=last)
