#!/usr/bin/env python3
"""The operator's command: see what failed, put it back, discard it, bring that back, prove that nothing is lost.

Data goes to standard output, talk to standard error. On a terminal, columns are aligned; through a pipe they are
separated by tabs, and nothing is cut. Exit codes: 0 done, 1 failed, 2 usage, 3 no such thing, 4 declined,
69 Redis unreachable, 78 settings, 130 interrupted, 141 closed pipe.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from hookq import dlq, log, process
from hookq.config import EX_DECLINED, EX_GONE, EX_UNREACHABLE, VERSION, Config, add_flags, load
from hookq.job import Headers, header_lines
from hookq.store import Away, Parked, Store

EX_INTERRUPTED, EX_PIPE = 130, 141
SHOWN_ID = 10  # characters of an id in a list: all of its time of arrival
ASK_ABOVE = 100  # --retry all: so many jobs at once are a load on what they call
HIDDEN = re.compile(r"authorization|cookie|signature|token|secret|-key$")

EXAMPLES = """\
  dlqctl --view                 the 20 oldest dead letters, numbered from 0
  dlqctl --show 0t7k2r1c        everything about one delivery
  dlqctl --show 0t7k2r1c --raw  its body, the bytes alone
  dlqctl --retry 0              put back number 0, the oldest
  dlqctl --flush                discard all (restorable for 24 h)
  dlqctl --undo                 bring the last batch back
  dlqctl --audit                is anything lost? exits 1 when the gap is not 0
"""


def parser() -> argparse.ArgumentParser:
    # allow_abbrev: `--fl` must not mean --flush.
    made = argparse.ArgumentParser(
        prog="dlqctl", description="Dead letters and the ledger.", epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    act = made.add_mutually_exclusive_group(required=True)
    act.add_argument("--view", action="store_true", help="list dead letters, the oldest first")
    act.add_argument("--show", metavar="ID", help="everything about one delivery: a job id, its beginning, or a delivery id")
    act.add_argument("--retry", metavar="N|all", type=rank, help="put back dead letter number N of --view, or all")
    act.add_argument("--flush", action="store_true", help="discard all dead letters; they can be restored for 24 h")
    act.add_argument("--undo", nargs="?", const="", metavar="BATCH", help="bring back what was discarded last, or BATCH")
    act.add_argument("--audit", action="store_true", help="compare what was accepted with what is there")
    made.add_argument("--json", action="store_true", help="machine-readable output")
    made.add_argument("--raw", action="store_true", help="with --show: the body alone, byte for byte")
    made.add_argument("--limit", type=limit, default=20, metavar="N", help="with --view: how many (default 20, 0 = all)")
    made.add_argument("--newest", action="store_true", help="with --view: the newest first; numbers stay the same")
    made.add_argument("-y", "--yes", action="store_true", help="do not ask")
    made.add_argument("--version", action="version", version=f"dlqctl {VERSION}")
    add_flags(made, "STATE_DIR", "WEBHOOKS_FILE")
    return made


def rank(text: str) -> int | str:
    if text != "all" and not re.fullmatch(r"[0-9]{1,15}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of --view (0, 1, 2 …) nor all")
    return text if text == "all" else int(text)


def limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def main() -> None:
    args = parser().parse_args()
    log.to_nowhere()  # the command's own output says what it did; the lines are for daemons
    try:
        settings = process.load_or_exit(lambda: settings_of(args))
        code = run(args, Store(settings.redis_url, process.name_of("dlqctl")))
        sys.stdout.flush()
    except Away as error:
        print(f"Redis cannot be reached ({error}). Is webhookd running with this STATE_DIR or REDIS_URL?", file=sys.stderr)
        code = EX_UNREACHABLE
    except dlq.NoSuch as error:
        print(error, file=sys.stderr)
        code = EX_GONE
    except KeyboardInterrupt:
        code = EX_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes at its end
        code = EX_PIPE
    sys.exit(code)


def settings_of(args: argparse.Namespace) -> Config:
    return load({name: value for name, value in vars(args).items() if name.isupper()}, root=process.root(), sources=False)


def run(args: argparse.Namespace, store: Store) -> int:
    if args.view:
        return view(store, args)
    if args.show is not None:
        return show(store, args)
    if args.retry is not None:
        return retry(store, args)
    if args.flush:
        return flush(store, args)
    if args.undo is not None:
        return undo(store, args)
    return audit(store, args)


# ---------------- the acts


def view(store: Store, args: argparse.Namespace) -> int:
    total = store.audit()["dead"]
    found = store.parked("dead", 0, args.limit - 1 if args.limit else -1, newest=args.newest)
    numbered = [(total - 1 - place if args.newest else place, job) for place, job in enumerate(found)]
    if args.json:
        return say_json([{"n": n, **as_json(job)} for n, job in numbered])
    now = time.time()
    rows = [row_of(n, job, now) for n, job in numbered]
    if rows:
        table(("N", "ID", "SOURCE", "EVENT TYPE", "ATTEMPTS", "DEAD FOR", "ERROR"), rows)
    then = "   Next: dlqctl --show ID | dlqctl --retry N" if rows else " A job lands here when no retry can help."
    print(f"{len(rows)} of {dlq.counted(total)}.{then}", file=sys.stderr)
    return 0


def row_of(number: int, job: Parked, now: float) -> tuple[str, ...]:
    attempts = f"{job.attempt}/{job.facts.get('of', '?')}"
    return (str(number), job.id[:SHOWN_ID], job.source, job.event_type, attempts, dlq.age(now - job.at), dlq.why(job))


def show(store: Store, args: argparse.Namespace) -> int:
    found = dlq.story(store, args.show)
    if args.raw:
        if found.delivery is None:
            raise dlq.NoSuch(f"The body of {found.id} is not kept any more: it is {found.state}.")
        sys.stdout.buffer.write(found.delivery.body)
        return 0
    if args.json:
        return say_json(story_json(found))
    for name, value in facts_of(found):
        print(f"{name:12} {log.printable(value)}")
    for event in found.events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        told = "  ".join(f"{k}={v}" for k, v in event.items() if k not in ("at", "event", "source"))
        print(f"{at}  {event['event']:15} {log.printable(told)}")
    if found.delivery:
        print("\n" + "\n".join(f"{name}: {log.printable(value)}" for name, value in headers_of(found).items()))
        print(f"\n{printable_body(found.delivery.body)}")
    return 0


def retry(store: Store, args: argparse.Namespace) -> int:
    if args.retry != "all":
        id = dlq.retry_rank(store, args.retry, "command")
        return told(args, {"retried": [id]}, f"Put back {id}. {left(store)}   Follow: dlqctl --show {id}")
    count = store.audit()["dead"]
    if count > ASK_ABOVE and not confirmed(args, f"This puts {dlq.counted(count)} back. Go on? [y/N] "):
        return EX_DECLINED
    ids = dlq.retry_all(store, "command")
    return told(args, {"retried": ids}, f"Put back {len(ids)}. {left(store)}   Follow: dlqctl --audit")


def flush(store: Store, args: argparse.Namespace) -> int:
    count = store.audit()["dead"]
    if not confirmed(args, f"This discards {dlq.counted(count)}. They can be restored for 24 h. Go on? [y/N] "):
        return EX_DECLINED
    batch, ids = dlq.discard_all(store, "command")
    if not ids:
        return told(args, {"discarded": [], "batch": None}, "There was nothing to discard.")
    return told(args, {"discarded": ids, "batch": batch}, f"Discarded {len(ids)} (batch {batch}).   Back: dlqctl --undo {batch}")


def undo(store: Store, args: argparse.Namespace) -> int:
    batch, ids = dlq.restore(store, args.undo or None, "command")
    return told(args, {"restored": ids, "batch": batch}, f"Restored {len(ids)} of batch {batch}.   See: dlqctl --view")


def audit(store: Store, args: argparse.Namespace) -> int:
    found = store.audit()
    orphans = store.orphans()
    names = ("accepted", "ready", "leased", "retry", "dead", "done", "discarded", "spooled", "gap")
    if args.json:
        say_json({name: found[name] for name in names})
    else:
        for name in names:
            print(f"{name:10} {found[name]:>12,}")
    for line in orphans:
        print(line, file=sys.stderr)
    if found["gap"]:
        print(
            f"The gap is {found['gap']}: what was accepted and what is there differ. See README, “When the gap is not 0”.", file=sys.stderr
        )
    return 1 if found["gap"] or orphans else 0


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
    answer = sys.stdin.readline().strip().lower()
    if answer in ("y", "yes"):
        return True
    print("Nothing was changed.", file=sys.stderr)
    return False


def left(store: Store) -> str:
    return f"{dlq.counted(store.audit()['dead'])} left."


def as_json(job: Parked) -> dict[str, Any]:
    facts = job._asdict()
    died_at, last = facts.pop("at"), facts.pop("facts")
    return {**facts, "state": "dead", "died_at": died_at, "error": dlq.why(job), "last_attempt": last}


def story_json(found: dlq.Story) -> dict[str, Any]:
    body = found.delivery.body.decode("utf-8", "backslashreplace") if found.delivery else None
    return {**dict(facts_of(found)), "headers": headers_of(found), "events": found.events, "body": body}


def facts_of(found: dlq.Story) -> list[tuple[str, str]]:
    facts = [("id", found.id), ("state", found.state)]
    if found.delivery:
        d = found.delivery
        facts += [("source", d.source), ("event_type", d.event_type), ("delivery_id", d.delivery_id)]
        facts += [("received_at", f"{d.received_at:.3f}"), ("size", f"{len(d.body)}")]
    elif found.events:
        facts += [("source", found.events[0]["source"])]
    if found.parked:
        facts += [
            ("attempts", f"{found.parked.attempt}/{found.parked.facts.get('of', '?')}"),
            ("error", dlq.why(found.parked).removeprefix(": ")),
        ]
    return facts


def headers_of(found: dlq.Story) -> dict[str, str]:
    """Return the sender's headers; what could let somebody in is not shown."""
    if not found.delivery:
        return {}
    shown = Headers()
    for name, value in header_lines(found.delivery.head):
        shown[name] = "(hidden)" if HIDDEN.search(name) else value
    return shown


def printable_body(body: bytes) -> str:
    text = body.decode("utf-8", "backslashreplace")
    return "\n".join(log.printable(line) for line in text.splitlines())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns, the last cut to the terminal's width; through a pipe, tabs and nothing cut."""
    clean: list[list[str]] = [[log.printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in clean:
            print("\t".join(row))
        return
    widths = [max(len(row[i]) for row in [list(head), *clean]) for i in range(len(head))]
    columns = shutil.get_terminal_size().columns
    fit: Callable[[Sequence[str]], str] = lambda row: "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))  # noqa: E731
    for row in [head, *clean]:
        print(fit(row)[:columns].rstrip())


if __name__ == "__main__":
    main()
