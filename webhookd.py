#!/usr/bin/env python3
"""Ingestion: takes signed webhooks in, makes them durable, answers. By hand: `--check`,
`--selftest`, `--send`.

Start reading at hookq/ingest/loop.py.
"""

import argparse
import resource
import sys
from collections.abc import Callable

from hookq import daemon, log
from hookq.ingest.loop import Loop
from hookq.settings import VERSION, Settings, add_flags, load


def serve(read_settings: Callable[[], Settings]) -> None:
    """Take deliveries until a stop is asked for, or restart in place for new settings."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # each connection is one
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    signals = daemon.Signals()
    settings = daemon.load_or_exit(read_settings)
    make_state_dir(settings)
    where = f"{settings.host}:{settings.port}"
    try:
        loop = Loop(settings, daemon.inherited_socket())
    except OSError as error:
        then = "Set HOST and PORT to a free address."
        sys.exit(f"{where} cannot be listened on: {error.strerror}. {then}")
    signals.wake = loop.poll.wake
    log.never_wait()
    names = sorted(settings.sources)
    log.event("process.start", program="webhookd", version=VERSION, sources=names, files=files)
    loop.run(signals)
    if loop.reload and not signals.stop:
        daemon.reexec(signals, loop.door.listener.socket)
    log.event("process.end", program="webhookd")


def make_state_dir(settings: Settings) -> None:
    """Make the folder of the spool. Without it deliveries still go to Redis, and it is reported."""
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        why = f"STATE_DIR {settings.state_dir} cannot be made: {error.strerror}"
        log.event("spool.failed", "critical", why=why)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="webhookd.py", description="Takes signed webhooks in.", allow_abbrev=False
    )
    mode = made.add_mutually_exclusive_group()
    daemon.add_check(mode)
    vectors = "run signature vectors (default: those of the project)"
    mode.add_argument("--selftest", nargs="?", const="", metavar="FILE", help=vectors)
    sample = "send one signed sample and follow it to the end"
    mode.add_argument("--send", nargs="?", const="", metavar="FILE", help=sample)
    source = "with --send: whose delivery it is (default github)"
    made.add_argument("--source", default="github", help=source)
    made.add_argument("--fail", action="store_true", help="with --send: a body that is no JSON")
    made.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    limits = ("MAX_BODY", "MAX_CONNECTIONS", "MAX_HELD")
    add_flags(made, "HOST", "PORT", *limits, "STATE_DIR", "WEBHOOKS_FILE")
    return made


def main() -> None:
    made = parser()
    args = made.parse_args()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}

    def read_settings() -> Settings:
        return load(flags, root=daemon.root())

    if args.fail and args.send is None:
        made.error("--fail goes with --send")
    if args.fail and args.send:
        made.error("--fail sends a body of its own: leave the file out")
    # What a person asks for is imported then: ingestion does not carry it in memory.
    if args.selftest is not None:
        from hookq import selftest

        sys.exit(selftest.run(args.selftest))
    if args.check:
        settings = daemon.load_or_exit(read_settings)
        daemon.end_check(settings, daemon.check_handlers(settings) if args.check == "all" else ())
    if args.send is not None:
        from hookq.operate.sample import send_sample

        settings = daemon.load_or_exit(read_settings)
        sys.exit(send_sample(settings, args.source, args.send, fail=args.fail))
    serve(read_settings)


if __name__ == "__main__":
    main()
