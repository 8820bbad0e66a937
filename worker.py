#!/usr/bin/env python3
"""The worker: leases jobs, runs their handlers, settles them. One job in Python at a time in each
process.

Three kinds of threads: the main one runs the jobs (hookq/work/loop.py), the keeper keeps the leases
(hookq/work/keeper.py), and those of the pool run the jobs that wait for somebody else
(hookq/work/pool.py).

Promises: a job that was accepted is run at least once. Does not promise exactly once: a worker may
die between the work and its settling, so handlers should be idempotent by `delivery.id`.
"""

import argparse
import resource
import sys
from pathlib import Path

from hookq import daemon, log
from hookq.settings import VERSION, add_flags, load
from hookq.store.format import NewerData
from hookq.work import routes
from hookq.work.keeper import Keeper
from hookq.work.loop import Worker


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="worker.py",
        description="Works on the jobs that webhookd.py has taken in.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"webhookd {VERSION}")
    add_flags(parser, "STATE_DIR", "WEBHOOKS_FILE")
    daemon.add_check(parser)
    return parser.parse_args()


def limit_memory(limit: int) -> None:
    """Make what a handler asks for beyond `limit` a MemoryError of its own. The hard limit stays:
    commands that a handler starts are bound by that one.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def main() -> None:
    args = parse_flags()
    flags = {name: value for name, value in vars(args).items() if name.isupper()}
    sys.path.insert(0, str(Path.cwd()))  # a handler "package.module:function" is found from here
    signals = daemon.Signals()
    settings = daemon.load_or_exit(lambda: load(flags, root=daemon.root()))
    limit_memory(settings.worker_memory)
    if args.check:
        daemon.end_check(settings, routes.problems(settings) if args.check == "all" else ())
    worker = Worker(settings, daemon.name_of("worker"), signals)
    sources = sorted(settings.sources)
    log.event(
        "process.start", program="worker", version=VERSION, worker=worker.name, sources=sources
    )
    Keeper(worker).start()
    try:
        worker.run()
    except NewerData as error:
        worker.marker.close()
        daemon.refuse_newer(str(error))
    if not signals.stop:  # an accepted reload, or a handler has filled the memory
        daemon.reexec(signals)
    log.event("process.end", program="worker", done=worker.progress.done)


if __name__ == "__main__":
    main()
