"""Dead letters as JSON: without their bodies for `dlqctl --view --json`, whole for
`dlqctl --export`.

Promises: an exported file appears whole or not at all, and only its owner can read it.
"""

import base64
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from hookq.operate import dlq, phrases
from hookq.store import reading
from hookq.store.client import Client
from hookq.store.records import Parked


def as_json(number: int, job: Parked) -> dict[str, Any]:
    """Return what is known of a dead letter without its body; `number` is that of --retry N."""
    facts = job._asdict()
    died_at, last = facts.pop("at"), facts.pop("facts")
    del facts["batch"]
    more = {"error": phrases.why(job), "last_attempt": last}
    return {"n": number, **facts, "state": "dead", "died_at": died_at, **more}


def export(store: Client, selected: dlq.Selected, file: str) -> int:
    """Write those selected to `file`, - for standard output; return how many. Raises OSError."""
    if file == "-":
        return _write(store, selected, sys.stdout)
    target = Path(file)
    number, part = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}-")
    try:
        with os.fdopen(number, "w") as out:
            count = _write(store, selected, out)
        Path(part).replace(target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return count


def _write(store: Client, selected: dlq.Selected, out: TextIO) -> int:
    """Write a line for each that is still dead; return how many those are."""
    count = 0
    for number, job in dlq.jobs(store, selected):
        if delivery := reading.delivery(store, job.id):
            body = base64.b64encode(delivery.body).decode()
            whole = {**as_json(number, job), "headers": delivery.headers, "body": body}
            print(json.dumps(whole), file=out)
            count += 1
    return count
