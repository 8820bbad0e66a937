"""Notes each push in a SQLite database, once: a delivery that comes again, or runs again, changes
nothing.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from hookq import GiveUp

DATABASE = Path(__file__).with_name("pushes.db")


def note(delivery):
    push = delivery.json()
    if "after" not in push:
        raise GiveUp("no push: it has no commit")
    with (
        closing(sqlite3.connect(DATABASE)) as db,
        db,
    ):  # one transaction: all of it, or an exception and nothing
        db.execute("CREATE TABLE IF NOT EXISTS pushes (delivery PRIMARY KEY, ref, commit_id)")
        db.execute(
            "INSERT OR IGNORE INTO pushes VALUES (?, ?, ?)",
            (delivery.id, push.get("ref"), push["after"]),
        )
