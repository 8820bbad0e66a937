"""Which handler runs a job: from a source and an event type to what is called. The one room where
code of a user is loaded.

Only workers come here, and `--check` in a process of its own: ingestion must take a delivery
whatever a handler's module does when it is imported. The settings know a handler's form alone.

Promises: `load` returns routes that can be run, or raises BadHandler with a sentence; `problems`
has a sentence for every handler that cannot be loaded. Does not promise that an import ends.
"""

import errno
import fnmatch
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from hookq.settings import Settings
from hookq.sources import Source, Spec, kind_of
from hookq.work import command
from hookq.work.python import BadHandler, Runner, find_handler, in_process, parse_body
from hookq.work.url import Target

WAITING = {"http", "command"}  # kinds of handlers that wait for somebody else


class Route(NamedTuple):
    """A way to run a job: what runs it, and whether that waits for somebody else."""

    run: Runner
    waits: bool


class Routes:
    """The routes of one source: the first rule whose pattern fits the event type, else the
    default.
    """

    def __init__(self, source: Source) -> None:
        """Load the handlers of a source. Raises BadHandler."""
        self.rules = [
            (re.compile(fnmatch.translate(event)).match, _route(spec, source))
            for event, spec in source.rules
        ]
        self.default = _route(source.handler, source)

    def of(self, event_type: str) -> Route:
        if not self.rules:
            return self.default
        return next((route for fits, route in self.rules if fits(event_type)), self.default)


def kinds(source: Source) -> set[str]:
    """Return the kinds of a source's handlers, told by their form."""
    return {kind_of(spec) for spec in (source.handler, *(spec for _, spec in source.rules))}


def problems(settings: Settings) -> list[str]:
    """Load every handler; return a sentence for each that cannot be.

    For a process that does nothing else: it takes `os._exit` away from the modules that it imports,
    so that one that ends its process is told with the line where it does.
    """
    os._exit = sys.exit  # type: ignore[assignment]
    return [problem for source in settings.sources.values() for problem in _problems(source)]


def _problems(source: Source) -> Iterator[str]:
    say = f"webhooks.toml: [sources.{source.name}] "
    rules = [(f"on {event!r}: handler", spec) for event, spec in source.rules]
    for where, spec in [("handler", source.handler), *rules]:
        try:
            _route(spec, source)
        except BadHandler as bad:
            # Its own worker has the port that this import wants: that says nothing of the module.
            if getattr(bad.error, "errno", None) != errno.EADDRINUSE:
                shown = list(spec) if isinstance(spec, tuple) else spec
                yield f"{say}{where} is {shown!r}: {bad}"


def _route(spec: Spec, source: Source) -> Route:
    kind = kind_of(spec)
    run: Callable[..., Any]
    if kind == "http":
        run = _target(str(spec), source).run
    elif kind == "command":
        if not command.found(spec[0], source.handler_dir):
            raise BadHandler(f"{spec[0]} is not there, or not executable.")
        run = command.Command(tuple(spec), source.handler_dir).run
    elif kind == "ignore":
        run = _ignore
    else:
        run = in_process(
            find_handler(str(spec), source.handler_dir) if kind == "python" else parse_body
        )
    return Route(run, kind in WAITING)


def _target(url: str, source: Source) -> Target:
    schemes = filter(None, (source.verifier.scheme, source.verifier.scheme.or_else))
    withheld = [scheme.header for scheme in schemes if scheme.algorithm == "token"]
    return Target(
        url,
        source.target_secret,
        source.answers,
        private=source.allow_private,
        first_byte_s=source.first_byte_s,
        withheld=withheld,
    )


def _ignore(_delivery: Any, _limit_s: float) -> tuple[None, dict[str, Any]]:
    return None, {"ignored": True}
