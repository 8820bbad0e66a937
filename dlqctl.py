#!/usr/bin/env python3
"""The operator's command: see what failed, put it back, discard it, restore it, and prove that
nothing is lost.

Data goes to standard output, talk to standard error. On a terminal, columns are aligned; through a
pipe they are separated by tabs, and nothing is cut. An act selects once, asks where it must, and
moves exactly the ids that were selected. Exit codes: 0 done, 1 failed, 2 usage, 3 no such thing, 4
declined, 69 Redis unreachable, 78 settings, 130 interrupted, 141 closed pipe.
"""

import argparse
import getpass
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hookq import daemon, log, settings
from hookq.operate import dlq, phrases, story
from hookq.operate.audit import audit, meanwhile
from hookq.operate.export import as_json, export
from hookq.operate.terminal import confirmed, say_json, table, talk
from hookq.store import dead, reading
from hookq.store.client import Client
from hookq.store.connection import Away
from hookq.store.format import NewerData
from hookq.store.records import Act, Cause, Parked, Search

EX_INTERRUPTED, EX_PIPE = 130, 141
SHOWN_ID = 10  # characters of an id in a list: all of its time of arrival
ASK_ABOVE = 100  # --retry all: more jobs at once than this are a load on what they call
DEFAULT_LIMIT = 20

REFUSALS = {
    dlq.NoSuch: settings.EX_GONE,
    dlq.Nonsense: settings.EX_USAGE,
    NewerData: settings.EX_SETTINGS,
}

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
# The ledger as scripts read it.
COUNTS = ["accepted", "ready", "leased", "retry", "dead", "done", "discarded", "spooled", "gap"]
SELECTORS = ("source", "cause", "event_type", "error", "since", "until")


class Options(NamedTuple):
    """How an act goes about it, whatever it selects."""

    limit: int
    newest: bool
    dry_run: bool
    yes: bool
    json: bool
    colour: bool


# ---------------- the arguments


def parser() -> argparse.ArgumentParser:
    # allow_abbrev: `--fl` must not mean --flush.
    flags = argparse.ArgumentParser(
        prog="dlqctl",
        description="Dead letters and the ledger.",
        epilog=EXAMPLES,
        allow_abbrev=False,
        usage="dlqctl (--view | --show ID | --retry N|all | --flush | --undo [BATCH] "
        "| --export FILE | --audit) [selectors] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_acts(flags)
    add_selectors(flags)
    add_options(flags)
    settings.add_flags(flags, "STATE_DIR", "WEBHOOKS_FILE")
    return flags


def add_acts(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument_group("acts").add_mutually_exclusive_group(required=True).add_argument
    add("--view", action="store_true", help="list dead letters, the oldest first")
    show = "everything about one delivery: a job id, its beginning, or a delivery id"
    add("--show", metavar="ID", help=show)
    retry = "put back dead letter number N of --view, or all that are selected"
    add("--retry", metavar="N|all", type=rank, help=retry)
    flush = "discard the dead letters selected; they can be restored for 24 h"
    add("--flush", action="store_true", help=flush)
    undo = "bring back what was discarded last, or BATCH"
    add("--undo", nargs="?", const="", metavar="BATCH", help=undo)
    export = "write those selected to FILE (- for standard output), one JSON object a line"
    add("--export", metavar="FILE", help=export)
    add("--audit", action="store_true", help="compare what was accepted with what is there")


def add_selectors(flags: argparse.ArgumentParser) -> None:
    goes_with = "for --view, --retry all, --flush and --export; all must match"
    add = flags.add_argument_group("selectors", goes_with).add_argument
    id = "this one; may be repeated; a unique beginning will do"
    add("--id", action="append", default=[], metavar="ID", help=id)
    add("--source", default="", help="of this source")
    add("--type", dest="event_type", default="", help="of this event type")
    add("--error", default="", metavar="TEXT", help="with TEXT in the error, whatever the case")
    add("--cause", default="", metavar="C", help="of this cause; --view --by-cause lists them")
    since = "dead since T: 90s, 2h or 3d ago, or an ISO date"
    add("--since", default="", metavar="T", help=since)
    add("--until", default="", metavar="T", help="dead before T")


def add_options(flags: argparse.ArgumentParser) -> None:
    add = flags.add_argument
    by_cause = "with --view: grouped by cause, the most first"
    add("--by-cause", action="store_true", help=by_cause)
    many = f"with --view: how many (default {DEFAULT_LIMIT}, 0 = all)"
    add("--limit", type=limit, metavar="N", help=many)
    newest = "with --view: the newest first; numbers stay the same"
    add("--newest", action="store_true", help=newest)
    add("--raw", action="store_true", help="with --show: the body alone, byte for byte")
    dry = "say what would be done, and do nothing"
    add("-n", "--dry-run", action="store_true", help=dry)
    add("-y", "--yes", action="store_true", help="do not ask")
    add("--json", action="store_true", help="machine-readable output")
    add("--no-color", action="store_true", help="no colour (also NO_COLOR and TERM=dumb)")
    url = "another Redis than that of the settings; without a password"
    add("--redis-url", type=open_url, metavar="URL", help=url)
    add("--version", action="version", version=f"dlqctl {settings.VERSION}")


def rank(text: str) -> int | str:
    if text != "all" and not re.fullmatch(r"[0-9]{1,15}", text):
        why = f"{text!r} is neither a number of --view (0, 1, 2 …) nor all"
        raise argparse.ArgumentTypeError(why)
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
        return settings.redis_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"it must be {error}") from None


def check_flags(flags: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End with 2 where a flag would be ignored."""
    selected = args.id or any(getattr(args, name) for name in SELECTORS)
    if isinstance(args.retry, int) and selected:
        flags.error("--retry N counts in the whole list; with a selector, say --retry all")
    if selected and (args.undo is not None or args.show is not None or args.audit):
        flags.error("selectors go with --view, --retry all, --flush and --export")
    if not args.view and (args.limit is not None or args.newest or args.by_cause):
        flags.error("--limit, --newest and --by-cause go with --view")


# ---------------- from the arguments to an act


def main() -> None:
    flags = parser()
    # Bytes that are not UTF-8 come in as halves of surrogate pairs: nothing could print those.
    args = flags.parse_args([os.fsencode(word).decode("utf-8", "replace") for word in sys.argv[1:]])
    if sys.stdout is None:
        sys.exit("Standard output is closed: there is nowhere to write to.")
    check_flags(flags, args)
    log.to_nowhere()  # the command's own output says what it did; log lines are for daemons
    try:
        code = connected(args, daemon.load_or_exit(lambda: settings_of(args)))
        sys.stdout.flush()
    except (dlq.NoSuch, dlq.Nonsense, NewerData) as error:
        code = talk(str(error), REFUSALS[type(error)])
    except KeyboardInterrupt:
        code = EX_INTERRUPTED
    except OSError as error:  # standard output's: its reader is gone, or the disk is full
        code = EX_PIPE
        if not isinstance(error, BrokenPipeError):
            code = talk(f"Standard output cannot be written: {error.strerror}.", 1)
        # Else the interpreter complains when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def settings_of(args: argparse.Namespace) -> settings.Settings:
    named = {name: value for name, value in vars(args).items() if name.isupper()}
    return settings.load(named, root=daemon.root(), sources=False)


def connected(args: argparse.Namespace, found: settings.Settings) -> int:
    """Run the act; return the exit code."""
    store = Client(args.redis_url or found.redis_url, daemon.name_of("dlqctl"))
    many = DEFAULT_LIMIT if args.limit is None else args.limit
    colour = not args.no_color
    options = Options(many, args.newest, args.dry_run, args.yes, args.json, colour)
    try:
        store.check_format()
        if args.audit:
            return prove(store, found.state_dir, options)
        if args.show is not None:
            return show_raw(store, args.show) if args.raw else show(store, args.show, options)
        if args.undo is not None:
            return restore(store, args.undo, options)
        if isinstance(args.retry, int):
            return redrive_number(store, args.retry, options)
        return on_selected(args)(store, search_of(store, args), options)
    except Away as error:
        where = "Is webhookd running with this STATE_DIR or REDIS_URL?"
        talk(f"Redis cannot be reached ({error}). {where}")
        return talk(meanwhile(found.state_dir), settings.EX_UNREACHABLE)


def on_selected(args: argparse.Namespace) -> Callable[[Client, Search, Options], int]:
    """Return the act on a selection that the arguments name."""
    if args.view:
        return view_causes if args.by_cause else view
    if args.export is not None:
        return lambda store, search, _: write(store, search, args.export)
    return discard if args.flush else redrive


def search_of(store: Client, args: argparse.Namespace) -> Search:
    texts = {name: getattr(args, name) for name in SELECTORS}
    return dlq.search_of(texts, store.now(), dlq.whole_ids(store, args.id))


def actor() -> Act:
    """Return an act of whoever typed this: the person behind sudo, where there is one."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        user = str(os.getuid())
    return dlq.actor("command", f"{user}@{socket.gethostname()}")


# ---------------- reading


def view(store: Client, search: Search, options: Options) -> int:
    total, now = reading.audit(store).dead, store.now()
    selected = dlq.select(store, search, limit=options.limit, newest=options.newest)
    rows = list(dlq.jobs(store, selected))
    if options.json:
        return say_json([as_json(n, job) for n, job in rows])
    if rows:
        head = ("N", "ID", "SOURCE", "EVENT TYPE", "ATTEMPTS", "DEAD FOR", "ERROR")
        table(head, [row_of(n, job, now) for n, job in rows], colour=options.colour)
    if not total:
        return talk(
            "No dead letters. A job lands here when its attempts are used up, or at once when "
            "no retry can help."
        )
    if not rows:
        return talk(f"None match ({phrases.counted(total)} in all).")
    causes = dead.causes(store)
    shown = f"{len(rows)} of {phrases.counted(total)}, {phrases.plural(len(causes), 'cause')}"
    age = phrases.age(now - oldest(causes, now))
    return talk(f"{shown}, oldest {age}.   Next: dlqctl --show ID | dlqctl --retry N")


def row_of(number: int, job: Parked, now: float) -> tuple[str, ...]:
    id, age = job.id[:SHOWN_ID], phrases.age(now - job.at)
    about = job.source, job.event_type, phrases.attempts(job)
    return str(number), id, *about, age, phrases.why(job)


def oldest(causes: Sequence[Cause], now: float) -> float:
    return min((cause.first_at for cause in causes), default=now)


def view_causes(store: Client, search: Search, options: Options) -> int:
    causes, now = dlq.by_cause(store, search), store.now()
    if options.json:
        return say_json([cause._asdict() for cause in causes])
    if causes:
        head = ("CAUSE", "COUNT", "SOURCE", "FIRST", "LAST", "SAMPLE", "WHAT")
        table(head, [cause_row(cause, now) for cause in causes], colour=options.colour)
    then = "   Next: dlqctl --retry all --cause CAUSE" if causes else ""
    total = phrases.counted(sum(cause.total for cause in causes))
    return talk(f"{total}, {phrases.plural(len(causes), 'cause')}.{then}")


def cause_row(row: Cause, now: float) -> tuple[str, ...]:
    ages = phrases.age(now - row.first_at), phrases.age(now - row.last_at)
    return row.id, str(row.total), row.source, *ages, row.sample[:SHOWN_ID], row.cause


def show(store: Client, id: str, options: Options) -> int:
    history = story.find(store, id)
    if options.json:
        return say_json(story.as_json(history))
    for line in story.text(history):
        print(line)
    return 0


def show_raw(store: Client, id: str) -> int:
    history = story.find(store, id)
    if history.delivery is None:
        raise dlq.NoSuch(f"The body of {history.id} is not kept any more: it is {history.state}.")
    sys.stdout.buffer.write(history.delivery.body)
    return 0


def write(store: Client, search: Search, file: str) -> int:
    try:
        count = export(store, dlq.select(store, search), file)
    except BrokenPipeError:
        raise
    except OSError as error:
        return talk(f"{log.printable(file)} cannot be written: {error.strerror}.", 1)
    return talk(
        f"Wrote {phrases.counted(count)} with headers and bodies as they came: keep them as safe "
        "as the secrets."
    )


def prove(store: Client, state_dir: Path, options: Options) -> int:
    """Print the ledger, and on standard error what is wrong; return 1 if anything is."""
    ledger, troubles = audit(store, state_dir), reading.orphans(store)
    if ledger.spool_why:
        troubles.append(ledger.spool_why)
    if gap := ledger.gap:
        why = f"The gap is {gap}: what was accepted and what is there differ."
        troubles.append(f"{why} See README, “When the gap is not 0”.")
    counts = {name: getattr(ledger, name) for name in COUNTS}
    if options.json:
        say_json(counts)
    else:
        for name, count in counts.items():
            print(f"{name:10} {'unknown' if count is None else format(count, ','):>12}")
    for line in troubles:
        talk(line)
    return 1 if troubles else 0


# ---------------- acting


def redrive_number(store: Client, number: int, options: Options) -> int:
    selected = dlq.select(store, Search(), number, 1)
    job = next((job for _, job in dlq.jobs(store, selected)), None)
    if options.dry_run:
        if job is None:
            raise dlq.no_number(number)
        return report(options, {"would_retry": [job.id]}, f"Would put back {job.id}.")
    id = dlq.redrive_number(store, number, actor())
    about = ""
    if job and job.id == id:
        about = f" ({job.source} {log.printable(job.event_type)})"
    sentence = f"Put back {id}{about}. {left(store)}   Follow: dlqctl --show {id}"
    return report(options, {"retried": [id]}, sentence)


def redrive(store: Client, search: Search, options: Options) -> int:
    search = dlq.frozen(search, store.now())
    ids, words = dlq.select(store, search).ids, phrases.words(search)
    if options.dry_run:
        sentence = f"Would put back {phrases.counted(len(ids))} ({words})."
        return report(options, {"would_retry": ids}, sentence)
    question = f"This puts {phrases.counted(len(ids))} back ({words}). Go on? [y/N] "
    if len(ids) > ASK_ABOVE and not options.yes and not confirmed(question):
        return settings.EX_DECLINED
    moved = dlq.redrive(store, ids, search, actor())
    sentence = f"Put back {len(moved):,}. {left(store)}   Follow: dlqctl --audit"
    return report(options, {"retried": moved}, sentence)


def discard(store: Client, search: Search, options: Options) -> int:
    act, now = actor(), store.now()
    search = dlq.frozen(search, now)
    ids, words = dlq.select(store, search).ids, phrases.words(search)
    if options.dry_run:
        sentence = f"Would discard {phrases.counted(len(ids))} ({words})."
        return report(options, {"would_discard": ids}, sentence)
    if not ids:
        return report(options, {"discarded": [], "batch": None}, "There is nothing to discard.")
    if not options.yes:
        whose = spread(dlq.by_cause(store, search), now)
        discards = f"This discards {phrases.counted(len(ids))}{whose}."
        if not confirmed(f"{discards} They can be restored for 24 h. Go on? [y/N] "):
            return settings.EX_DECLINED
    moved = dlq.discard(store, ids, search, act)
    sentence = f"Discarded {len(moved):,} (batch {act.act}).   Back: dlqctl --undo {act.act}"
    return report(options, {"discarded": moved, "batch": act.act}, sentence)


def spread(causes: Sequence[Cause], now: float) -> str:
    """Return how many sources these are of, and how old the oldest is."""
    sources = phrases.plural(len({cause.source for cause in causes}), "source")
    return f" ({sources}, oldest {phrases.age(now - oldest(causes, now))})" if causes else ""


def restore(store: Client, batch: str, options: Options) -> int:
    if options.dry_run:
        batch = batch or dead.last_batch(store) or ""
        ids = dead.batch(store, batch) if batch else []
        sentence = f"Would restore {len(ids)} of batch {log.printable(batch) or '(none)'}."
        return report(options, {"would_restore": ids, "batch": batch or None}, sentence)
    batch, ids = dlq.restore(store, batch, actor())
    sentence = f"Restored {len(ids):,} of batch {batch}.   See: dlqctl --view"
    return report(options, {"restored": ids, "batch": batch}, sentence)


def report(options: Options, data: dict[str, Any], sentence: str) -> int:
    if options.json:
        return say_json(data)
    print(sentence)
    return 0


def left(store: Client) -> str:
    return f"{phrases.counted(reading.audit(store).dead)} left."


if __name__ == "__main__":
    main()
