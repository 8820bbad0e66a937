"""What a command prints: data on standard output, talk on standard error.

A table is aligned on a terminal; through a pipe it is separated by tabs, nothing is cut and nothing
coloured. Whatever is not printable is shown as an escape.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from hookq import log


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, colour: bool) -> None:
    """Print the rows; on a terminal with `head`, and each line cut to the terminal's width."""
    clean = [[log.printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for cells in clean:
            print("\t".join(cells))
        return
    shown = [list(head), *clean]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head))]
    columns = shutil.get_terminal_size().columns
    bold = colour and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for n, row in enumerate(shown):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        line = "  ".join(padded).rstrip()
        line = line if len(line) <= columns else line[: columns - 1] + "…"
        print(f"\x1b[1m{line}\x1b[0m" if n == 0 and bold else line)


def say_json(data: Any) -> int:
    print(json.dumps(data))
    return 0


def talk(sentence: str, code: int = 0) -> int:
    print(sentence, file=sys.stderr)
    return code


def confirmed(question: str) -> bool:
    """Ask on standard input, terminal or not; its end is a no."""
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline().strip().lower() if sys.stdin else ""
    if answer in ("y", "yes"):
        return True
    talk("Nothing was changed.")
    return False
