"""Which handler runs a job: from a source and an event type to a runner. The one room that loads a
user's code.

Only workers load it, and `--check`, in a process of its own. Ingestion never does: it must take a
delivery whatever a handler's module does on import. The settings know a handler's form alone.

Promises: `Routes` can be run, or raises BadHandler with a sentence; `problems` has a sentence for
every handler that cannot be loaded. Does not promise that an import ends (handlers.py).
"""

import errno
import fnmatch
import os
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from hookq.job import Delivery
from hookq.outcome import Outcome
from hookq.settings import Settings
from hookq.sources import Source, Spec, kind_of
from hookq.work import command
from hookq.work.python import BadHandler, Runner, find_handler, in_process, parse_body
from hookq.work.url import Target

WAITING = {"http", "command"}  # kinds of handlers that wait for somebody else


class Route(NamedTuple):
    """How to run a job: its runner, and whether that waits for somebody else."""

    run: Runner
    waits: bool


class Routes:
    """The routes of one source: that of the first rule whose pattern fits the event type, else the
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
    """Return the kinds of a source's handlers, by their form: nothing is loaded."""
    return {kind_of(spec) for spec in (source.handler, *(spec for _, spec in source.rules))}


def problems(settings: Settings) -> list[str]:
    """Load every handler; return a sentence for each that cannot be loaded.

    For a process that does nothing else: `os._exit` is replaced, so that a module that ends its
    process on import is reported with the line where it does.
    """
    os._exit = sys.exit  # type: ignore[assignment]
    return [problem for source in settings.sources.values() for problem in _problems(source)]


def _problems(source: Source) -> Iterator[str]:
    where = f"webhooks.toml: [sources.{source.name}]"
    rules = [(f"on {event!r}: handler", spec) for event, spec in source.rules]
    for key, spec in [("handler", source.handler), *rules]:
        try:
            _route(spec, source)
        except BadHandler as bad:
            # The module binds a port that its own worker holds: that is no fault of the module.
            if getattr(bad.error, "errno", None) != errno.EADDRINUSE:
                shown = list(spec) if isinstance(spec, tuple) else spec
                yield f"{where} {key} is {shown!r}: {bad}"


def _route(spec: Spec, source: Source) -> Route:
    """Load one handler. Raises BadHandler."""
    kind = kind_of(spec)
    run: Runner
    if kind == "http":
        run = _target(str(spec), source).run
    elif kind == "command":
        if not command.executable(spec[0], source.handler_dir):
            raise BadHandler(f"{spec[0]} is not there, or not executable.")
        run = command.Command(tuple(spec), source.handler_dir).run
    elif kind == "ignore":
        run = _ignore
    elif kind == "python":
        run = in_process(find_handler(str(spec), source.handler_dir))
    else:
        run = in_process(parse_body)
    return Route(run, kind in WAITING)


def _target(url: str, source: Source) -> Target:
    """Return the target of a source. A token of its sender is a secret, and not passed on."""
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


def _ignore(_delivery: Delivery, _limit_s: float) -> Outcome:
    return None, {"ignored": True}
