#!/usr/bin/env python3
"""The operator's command: see what failed, put it back, discard it, bring that back, prove that
nothing is lost.

Data goes to standard output, talk to standard error. On a terminal, columns are aligned; through a
pipe they are separated by tabs, and nothing is cut. Exit codes: 0 done, 1 failed, 2 usage, 3 no
such thing, 4 declined, 69 Redis unreachable, 78 settings, 130 interrupted, 141 closed pipe.
"""

import argparse
import base64
import getpass
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from hookq import daemon, log
from hookq.ingest.spool import SpoolFailed
from hookq.job import arrived_at
from hookq.operate import dlq
from hookq.settings import (
    EX_DECLINED,
    EX_GONE,
    EX_SETTINGS,
    EX_UNREACHABLE,
    EX_USAGE,
    VERSION,
    Settings,
    add_flags,
    load,
    redis_url,
)
from hookq.store import dead, reading
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.records import Act, Cause, Parked, Search

EX_INTERRUPTED, EX_PIPE = 130, 141
SHOWN_ID = 10  # characters of an id in a list: all of its time of arrival
ASK_ABOVE = 100  # --retry all: so many jobs at once are a load on what they call

EXAMPLES = """\
  dlqctl --view                                  the 20 oldest dead letters, numbered from 0
  dlqctl --view --source stripe --since 2h --error Timeout
  dlqctl --view --by-cause                       grouped
  dlqctl --show 0t7k2r1c                         everything about one delivery
  dlqctl --show 0t7k2r1c --raw | jq .            its body, the bytes alone
  dlqctl --retry 0                               put back number 0, the oldest
  dlqctl --retry all --cause 3fa9c2d1 --dry-run  what would go back?
  dlqctl --flush --source demo                   discard (restorable for 24 h)
  dlqctl --undo                                  bring the last batch back
  dlqctl --audit                                 is anything lost? exits 1 when the gap is not 0
"""
REFUSALS = {NewerData: EX_SETTINGS, dlq.NoSuch: EX_GONE, dlq.Nonsense: EX_USAGE}
SELECTORS = ("source", "cause", "event_type", "error", "since", "until")


def parser() -> argparse.ArgumentParser:
    # allow_abbrev: `--fl` must not mean --flush.
    made = argparse.ArgumentParser(
        prog="dlqctl",
        description="Dead letters and the ledger.",
        epilog=EXAMPLES,
        allow_abbrev=False,
        usage="dlqctl (--view | --show ID | --retry N|all | --flush | --undo [BATCH] "
        "| --export FILE | --audit) [selectors] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = made.add_argument_group("acts").add_mutually_exclusive_group(required=True)
    acts.add_argument("--view", action="store_true", help="list dead letters, the oldest first")
    acts.add_argument(
        "--show",
        metavar="ID",
        help="everything about one delivery: a job id, its beginning, or a delivery id",
    )
    acts.add_argument(
        "--retry",
        metavar="N|all",
        type=rank,
        help="put back dead letter number N of --view, or all that are selected",
    )
    acts.add_argument(
        "--flush",
        action="store_true",
        help="discard the dead letters selected; they can be restored for 24 h",
    )
    acts.add_argument(
        "--undo",
        nargs="?",
        const="",
        metavar="BATCH",
        help="bring back what was discarded last, or BATCH",
    )
    acts.add_argument(
        "--export",
        metavar="FILE",
        help="write those selected to FILE (- for standard output), one JSON object a line",
    )
    acts.add_argument(
        "--audit", action="store_true", help="compare what was accepted with what is there"
    )
    chosen = made.add_argument_group(
        "selectors", "for --view, --retry all, --flush and --export; all must match"
    )
    chosen.add_argument(
        "--id",
        action="append",
        default=[],
        metavar="ID",
        help="this one; may be repeated; a unique beginning will do",
    )
    chosen.add_argument("--source", default="", help="of this source")
    chosen.add_argument("--type", dest="event_type", default="", help="of this event type")
    chosen.add_argument(
        "--error", default="", metavar="TEXT", help="with TEXT in the error, whatever the case"
    )
    chosen.add_argument(
        "--cause", default="", metavar="C", help="of this cause; --view --by-cause lists them"
    )
    chosen.add_argument(
        "--since", default="", metavar="T", help="dead since T: 90s, 2h or 3d ago, or an ISO date"
    )
    chosen.add_argument("--until", default="", metavar="T", help="dead before T")
    made.add_argument(
        "--by-cause", action="store_true", help="with --view: grouped by cause, the most first"
    )
    made.add_argument(
        "--limit", type=limit, metavar="N", help="with --view: how many (default 20, 0 = all)"
    )
    made.add_argument(
        "--newest", action="store_true", help="with --view: the newest first; numbers stay the same"
    )
    made.add_argument(
        "--raw", action="store_true", help="with --show: the body alone, byte for byte"
    )
    made.add_argument(
        "-n", "--dry-run", action="store_true", help="say what would be done, and do nothing"
    )
    made.add_argument("-y", "--yes", action="store_true", help="do not ask")
    made.add_argument("--json", action="store_true", help="machine-readable output")
    made.add_argument(
        "--no-color", action="store_true", help="no colour (also NO_COLOR and TERM=dumb)"
    )
    made.add_argument(
        "--redis-url",
        type=open_url,
        metavar="URL",
        help="another Redis than that of the settings; without a password",
    )
    made.add_argument("--version", action="version", version=f"dlqctl {VERSION}")
    add_flags(made, "STATE_DIR", "WEBHOOKS_FILE")
    return made


def rank(text: str) -> int | str:
    if text != "all" and not re.fullmatch(r"[0-9]{1,15}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of --view (0, 1, 2 …) nor all"
        )
    return text if text == "all" else int(text)


def limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def open_url(text: str) -> str:
    if "@" in text or "password" in text:  # any user of the machine can read a command line
        raise argparse.ArgumentTypeError(
            "a URL with a user or a password belongs into REDIS_URL or REDIS_URL_FILE, not on "
            "the command line"
        )
    try:
        return redis_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it must be {error}") from None


def main() -> None:
    made = parser()
    # Bytes that are no UTF-8 come in as halves of surrogate pairs, which nothing could print or
    # send.
    args = made.parse_args([os.fsencode(word).decode("utf-8", "replace") for word in sys.argv[1:]])
    if sys.stdout is None:
        sys.exit("Standard output is closed: there is nowhere to write to.")
    if isinstance(args.retry, int) and selected(args):
        made.error("--retry N counts in the whole list; with a selector, say --retry all")
    if selected(args) and (args.undo is not None or args.show is not None or args.audit):
        made.error("selectors go with --view, --retry all, --flush and --export")
    if not args.view and (args.limit is not None or args.newest or args.by_cause):
        made.error("--limit, --newest and --by-cause go with --view")
    args.limit = 20 if args.limit is None else args.limit
    log.to_nowhere()  # the command's own output says what it did; the lines are for daemons
    try:
        args.settings = daemon.load_or_exit(lambda: settings_of(args))
        url = args.redis_url or args.settings.redis_url
        code = run(args, Client(url, daemon.name_of("dlqctl")))
        sys.stdout.flush()
    except Away as error:
        print(
            f"Redis cannot be reached ({error}). Is webhookd running with this STATE_DIR or "
            "REDIS_URL?",
            file=sys.stderr,
        )
        print(in_spool(args.settings), file=sys.stderr)
        code = EX_UNREACHABLE
    except tuple(REFUSALS) as error:
        print(error, file=sys.stderr)
        code = REFUSALS[type(error)]
    except KeyboardInterrupt:
        code = EX_INTERRUPTED
    except OSError as error:  # of standard output: the reader is gone, or the disk is full
        code = EX_PIPE if isinstance(error, BrokenPipeError) else 1
        if code == 1:
            print(f"Standard output cannot be written: {error.strerror}.", file=sys.stderr)
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # or the interpreter complains when it flushes at its end
    sys.exit(code)


def in_spool(settings: Settings) -> str:
    try:
        return (
            "Meanwhile deliveries go into the spool of their machine; this one's holds "
            f"{dlq.spool_size(settings.state_dir)[0]:,}."
        )
    except SpoolFailed as error:
        return str(error)


def settings_of(args: argparse.Namespace) -> Settings:
    return load(
        {name: value for name, value in vars(args).items() if name.isupper()},
        root=daemon.root(),
        sources=False,
    )


def run(args: argparse.Namespace, store: Client) -> int:
    store.check_format()
    if args.view:
        return view_causes(store, args) if args.by_cause else view(store, args)
    if args.show is not None:
        return show(store, args)
    if args.retry is not None:
        return retry(store, args)
    if args.flush:
        return flush(store, args)
    if args.undo is not None:
        return undo(store, args)
    if args.export is not None:
        return export(store, args)
    return audit(store, args)


def selected(args: argparse.Namespace) -> bool:
    return bool(args.id or any(getattr(args, name) for name in SELECTORS))


def search_of(store: Client, args: argparse.Namespace) -> Search:
    return dlq.search_of(
        {name: getattr(args, name) for name in SELECTORS},
        store.now(),
        dlq.whole_ids(store, args.id),
    )


def actor() -> Act:
    """Return an act of whoever typed this: the person behind sudo, where there is one."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return dlq.actor("command", f"{user}@{socket.gethostname()}")


# ---------------- the acts


def view(store: Client, args: argparse.Namespace) -> int:
    total, now = reading.audit(store).dead, store.now()
    found = list(
        dlq.jobs(
            store, dlq.select(store, search_of(store, args), limit=args.limit, newest=args.newest)
        )
    )
    if args.json:
        return say_json([{"n": n, **as_json(job)} for n, job in found])
    if found:
        table(
            args,
            ("N", "ID", "SOURCE", "EVENT TYPE", "ATTEMPTS", "DEAD FOR", "ERROR"),
            [row_of(n, job, now) for n, job in found],
        )
    if not total:
        print(
            "No dead letters. A job lands here when its attempts are used up, or at once when "
            "no retry can help.",
            file=sys.stderr,
        )
    elif not found:
        print(f"None match ({dlq.counted(total)} in all).", file=sys.stderr)
    else:
        causes = dead.causes(store)
        of = (
            f"{len(found)} of {dlq.counted(total)}, {plural(len(causes), 'cause')}, oldest "
            f"{dlq.age(now - oldest(causes, now))}"
        )
        print(f"{of}.   Next: dlqctl --show ID | dlqctl --retry N", file=sys.stderr)
    return 0


def oldest(causes: Sequence[Cause], now: float) -> float:
    return min((cause.first_at for cause in causes), default=now)


def row_of(number: int, job: Parked, now: float) -> tuple[str, ...]:
    attempts = f"{job.attempt}/{job.facts.get('of', '?')}"
    return (
        str(number),
        job.id[:SHOWN_ID],
        job.source,
        job.event_type,
        attempts,
        dlq.age(now - job.at),
        dlq.why(job),
    )


def view_causes(store: Client, args: argparse.Namespace) -> int:
    causes, now = dlq.by_cause(store, search_of(store, args)), store.now()
    if args.json:
        return say_json([cause._asdict() for cause in causes])
    if causes:
        rows = [
            (c.id, f"{c.total}", c.source, *ages(c, now), c.sample[:SHOWN_ID], c.cause)
            for c in causes
        ]
        table(args, ("CAUSE", "COUNT", "SOURCE", "FIRST", "LAST", "SAMPLE", "WHAT"), rows)
    then = "   Next: dlqctl --retry all --cause CAUSE" if causes else ""
    print(
        f"{dlq.counted(sum(cause.total for cause in causes))}, "
        f"{plural(len(causes), 'cause')}.{then}",
        file=sys.stderr,
    )
    return 0


def ages(cause: Cause, now: float) -> tuple[str, str]:
    return dlq.age(now - cause.first_at), dlq.age(now - cause.last_at)


def show(store: Client, args: argparse.Namespace) -> int:
    found = dlq.story(store, args.show)
    if args.raw:
        if found.delivery is None:
            raise dlq.NoSuch(f"The body of {found.id} is not kept any more: it is {found.state}.")
        sys.stdout.buffer.write(found.delivery.body)
        return 0
    if args.json:
        return say_json(story_json(found))
    for name, value in facts_of(found).items():
        print(
            f"{name:12} {dlq.stamp(value) if name == 'received_at' else log.printable(str(value))}"
        )
    for event in found.events:
        facts = dict(event.facts)
        if "answer" in facts:
            facts["answer"] = facts["answer"]["status"]
        told = "  ".join(f"{name}={value}" for name, value in facts.items() if name != "output")
        print(f"{dlq.stamp(event.at)}  {event.event:18} {log.printable(told)}")
    for text in filter(None, (found.trace, dlq.said(found))):
        print("\n" + printable_lines(text))
    if found.delivery:
        print(
            "\n"
            + "\n".join(
                f"{name}: {log.printable(value)}"
                for name, value in dlq.shown_headers(found.delivery).items()
            )
        )
        print("\n" + printable_lines(found.delivery.body.decode("utf-8", "backslashreplace")))
    return 0


def retry(store: Client, args: argparse.Namespace) -> int:
    if args.retry != "all":
        found = [job for _, job in dlq.jobs(store, dlq.select(store, Search(), args.retry, 1))]
        if args.dry_run:
            if not found:
                raise dlq.NoSuch(
                    f"There is no dead letter number {args.retry}; see `dlqctl --view`."
                )
            return told(args, {"would_retry": [found[0].id]}, f"Would put back {found[0].id}.")
        id = dlq.retry_rank(store, args.retry, actor())
        of = (
            f" ({found[0].source} {log.printable(found[0].event_type)})"
            if found and found[0].id == id
            else ""
        )
        return told(
            args,
            {"retried": [id]},
            f"Put back {id}{of}. {left(store)}   Follow: dlqctl --show {id}",
        )
    search = frozen(store, args)
    ids = list(dlq.select(store, search).numbers)
    if args.dry_run:
        return told(
            args,
            {"would_retry": ids},
            f"Would put back {dlq.counted(len(ids))} ({dlq.words(search)}).",
        )
    if len(ids) > ASK_ABOVE and not confirmed(
        args, f"This puts {dlq.counted(len(ids))} back ({dlq.words(search)}). Go on? [y/N] "
    ):
        return EX_DECLINED
    moved = dlq.retry(store, search, actor())
    return told(
        args, {"retried": moved}, f"Put back {len(moved):,}. {left(store)}   Follow: dlqctl --audit"
    )


def flush(store: Client, args: argparse.Namespace) -> int:
    search, act, now = frozen(store, args), actor(), store.now()
    ids = list(dlq.select(store, search).numbers)
    if args.dry_run:
        return told(
            args,
            {"would_discard": ids},
            f"Would discard {dlq.counted(len(ids))} ({dlq.words(search)}).",
        )
    if not ids:
        return told(args, {"discarded": [], "batch": None}, "There is nothing to discard.")
    causes = dlq.by_cause(store, search)
    of = (
        f" ({plural(len({cause.source for cause in causes}), 'source')}, oldest "
        f"{dlq.age(now - oldest(causes, now))})"
        if causes
        else ""
    )
    if not confirmed(
        args,
        f"This discards {dlq.counted(len(ids))}{of}. They can be restored for 24 h. Go on? [y/N] ",
    ):
        return EX_DECLINED
    moved = dlq.discard(store, search, act)
    sentence = f"Discarded {len(moved):,} (batch {act.act}).   Back: dlqctl --undo {act.act}"
    return told(args, {"discarded": moved, "batch": act.act}, sentence)


def frozen(store: Client, args: argparse.Namespace) -> Search:
    """Return the selection up to now: what dies while a person reads the question is not
    touched.
    """
    search = search_of(store, args)
    return search._replace(until=min(search.until, store.now()))


def undo(store: Client, args: argparse.Namespace) -> int:
    if args.dry_run:
        batch = args.undo or dead.last_batch(store) or ""
        ids = dead.batch(store, batch) if batch else []
        sentence = f"Would restore {len(ids)} of batch {log.printable(batch) or '(none)'}."
        return told(args, {"would_restore": ids, "batch": batch or None}, sentence)
    batch, ids = dlq.restore(store, args.undo, actor())
    return told(
        args,
        {"restored": ids, "batch": batch},
        f"Restored {len(ids):,} of batch {batch}.   See: dlqctl --view",
    )


def export(store: Client, args: argparse.Namespace) -> int:
    """Write those selected; a file appears whole or not at all, readable by its owner only."""
    chosen, target, part = dlq.select(store, search_of(store, args)), Path(args.export), ""
    try:
        if args.export == "-":
            count = sum(
                write_line(store, number, job, sys.stdout)
                for number, job in dlq.jobs(store, chosen)
            )
        else:
            file, part = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}-")
            with os.fdopen(file, "w") as out:
                count = sum(
                    write_line(store, number, job, out) for number, job in dlq.jobs(store, chosen)
                )
            Path(part).replace(target)
    except BrokenPipeError:
        raise
    except OSError as error:
        if part:
            Path(part).unlink(missing_ok=True)
        print(f"{log.printable(args.export)} cannot be written: {error.strerror}.", file=sys.stderr)
        return 1
    print(
        f"Wrote {dlq.counted(count)} with headers and bodies as they came: keep them as safe "
        "as the secrets.",
        file=sys.stderr,
    )
    return 0


def write_line(store: Client, number: int, job: Parked, out: TextIO) -> bool:
    delivery = reading.delivery(store, job.id)
    if delivery:  # None: put back or discarded meanwhile
        body = base64.b64encode(delivery.body).decode()
        print(
            json.dumps({"n": number, **as_json(job), "headers": delivery.headers, "body": body}),
            file=out,
        )
    return delivery is not None


def audit(store: Client, args: argparse.Namespace) -> int:
    found = dlq.audit(store, args.settings.state_dir)
    troubles = reading.orphans(store)
    if found.spool_why:
        troubles.append(found.spool_why)
    if found.gap:
        why = f"The gap is {found.gap}: what was accepted and what is there differ."
        troubles.append(f"{why} See README, “When the gap is not 0”.")
    names = ("accepted", "ready", "leased", "retry", "dead", "done", "discarded", "spooled", "gap")
    numbers = {name: getattr(found, name) for name in names}
    if args.json:
        say_json(numbers)
    else:
        for name, number in numbers.items():
            print(f"{name:10} {'unknown' if number is None else format(number, ','):>12}")
    for line in troubles:
        print(line, file=sys.stderr)
    return 1 if troubles else 0


# ---------------- how it is said


def told(args: argparse.Namespace, data: dict[str, Any], sentence: str) -> int:
    if args.json:
        return say_json(data)
    print(sentence)
    return 0


def say_json(data: Any) -> int:
    print(json.dumps(data))
    return 0


def confirmed(args: argparse.Namespace, question: str) -> bool:
    """Ask on standard input, terminal or not; its end is a no."""
    if args.yes:
        return True
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower() if sys.stdin else ""
    if answer in ("y", "yes"):
        return True
    print("Nothing was changed.", file=sys.stderr)
    return False


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def left(store: Client) -> str:
    return f"{dlq.counted(reading.audit(store).dead)} left."


def as_json(job: Parked) -> dict[str, Any]:
    facts = job._asdict()
    died_at, last = facts.pop("at"), facts.pop("facts")
    del facts["batch"]
    return {
        **facts,
        "state": "dead",
        "died_at": died_at,
        "error": dlq.why(job),
        "last_attempt": last,
    }


def story_json(found: dlq.Story) -> dict[str, Any]:
    body = found.delivery.body.decode("utf-8", "backslashreplace") if found.delivery else None
    return {
        **facts_of(found),
        "headers": dlq.shown_headers(found.delivery),
        "events": [event.as_json() for event in found.events],
        "trace": found.trace,
        "body": body,
    }


def facts_of(found: dlq.Story) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": found.id, "state": found.state}
    if found.delivery:
        d = found.delivery
        facts |= {"source": d.source, "event_type": d.event_type, "delivery_id": d.delivery_id}
        facts |= {"received_at": d.received_at, "size": len(d.body)}
    elif found.events:
        last = found.events[-1]
        facts["source"] = last.source
        facts |= {name: last.facts.get(name, "") for name in ("event_type", "delivery_id")}
        facts["received_at"] = arrived_at(found.id)
    if found.parked:
        facts |= {
            "attempt": found.parked.attempt,
            "max_attempts": found.parked.facts.get("of"),
            "cause": found.parked.cause,
        }
        facts["error"] = dlq.why(found.parked).removeprefix(": ")
    return facts


def printable_lines(text: str) -> str:
    return "\n".join(log.printable(line) for line in text.splitlines())


def table(args: argparse.Namespace, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the last cut to the terminal's width; through a pipe, tabs and nothing
    cut, no colour.
    """
    clean: list[list[str]] = [[log.printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for cells in clean:
            print("\t".join(cells))
        return
    shown: list[Sequence[str]] = [head, *clean]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    columns = shutil.get_terminal_size().columns
    plain = args.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    for row in shown:
        line = "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        line = line if len(line) <= columns else line[: columns - 1] + "…"
        print(f"\x1b[1m{line}\x1b[0m" if row is head and not plain else line)


if __name__ == "__main__":
    main()
