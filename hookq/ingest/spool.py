"""The spool: the local disk journal that ingestion writes while Redis is away, and drains when it
is back.

One SQLite file for all ingestion processes of a machine (WAL, synchronous=FULL): a batch is one
commit and one fsync. Everything of a delivery travels unchanged, its job id and time of arrival
too: one drained twice is found in Redis (R6).

Rules: a row is removed only after Redis answered for it. The limit is judged in the transaction
that adds, on a total kept by triggers: it holds across processes, and costs the same however much
is kept. A file that cannot be read is refused, never deleted or overwritten. Any failure closes the
connection; the next call opens it anew.

Promises: when accept returns, its batch survives the loss of process and power. Each wait for
another process ends (R7). Does not promise: that a batch is gone after accept raised (a commit
whose fsync failed can come back: a duplicate, no loss); that a disk syncs in time; that the file
shrinks before the spool is empty. It is used from one thread.
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from hookq.job import BROUGHT, Delivery

WAIT_S: Final = 0.5  # ingestion has one thread: while it waits here, all of its connections wait
ROW_BYTES: Final = (
    1024  # what a row is judged to need besides head and body: its ids, and SQLite's own
)
KEPT: Final = 1024  # pages of 4 KiB that an empty spool may keep of the disk, and its WAL as many
# To remove is to write, too: a spool that has filled its own disk could never be drained. So it
# stops this much earlier.
ROOM: Final = 16 << 20

FORMAT: Final = 1  # of the file

# AUTOINCREMENT: the number of a removed row never comes again. Two processes may drain the same
# rows, and the later one must not remove what came since. The first number is random for the same
# reason: a row of a file that was moved away is none of the file that took its place. WAL comes
# last: until then each commit is in the file itself.
#
# The columns are what a delivery brings, by the table in hookq/job.py: SQL made of constants.
TYPES: Final = {str: "TEXT", int: "INTEGER", float: "REAL", bytes: "BLOB"}
COLUMNS: Final = ", ".join(f"{field.name} {TYPES[field.kind]} NOT NULL" for field in BROUGHT)
SCHEMA: Final = f"""
PRAGMA auto_vacuum = NONE; PRAGMA synchronous = FULL;
BEGIN;
CREATE TABLE spool (row INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL,
    dedupe_s INTEGER NOT NULL, {COLUMNS});
INSERT INTO sqlite_sequence VALUES ('spool', abs(random() % (1 << 30)) << 32);
CREATE TABLE total (deliveries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER came AFTER INSERT ON spool BEGIN
    UPDATE total SET deliveries = deliveries + 1, bytes = bytes + new.bytes; END;
CREATE TRIGGER went AFTER DELETE ON spool BEGIN
    UPDATE total SET deliveries = deliveries - 1, bytes = bytes - old.bytes; END;
PRAGMA user_version = {FORMAT};
COMMIT;
PRAGMA journal_mode = WAL;
"""  # noqa: S608
# Debian's SQLite overwrites what is deleted with zeroes unless told otherwise: a drain took four
# times as long.
SETTINGS: Final = f"""
PRAGMA synchronous = FULL; PRAGMA secure_delete = FAST; PRAGMA temp_store = MEMORY;
PRAGMA wal_autocheckpoint = {KEPT}; PRAGMA journal_size_limit = {KEPT * 4096};
"""
NAMES: Final = tuple(field.name for field in BROUGHT)
ADD: Final = f"""INSERT INTO spool (bytes, dedupe_s, {", ".join(NAMES)})
    VALUES (?, ?, {", ".join("?" * len(NAMES))})"""  # noqa: S608
# In the order of a Delivery's attributes, so that a row makes one; nothing of it was attempted yet.
OLDEST: Final = f"""SELECT row, bytes, dedupe_s,
    {", ".join(name if name in NAMES else "0" for name in Delivery._fields)}
    FROM spool ORDER BY row LIMIT ?"""  # noqa: S608
_values: Final = attrgetter(*NAMES)
TOTAL: Final = "SELECT deliveries, bytes FROM total"

REFUSED: Final = "this process may not open or write it"
MALFORMED: Final = (
    "it is malformed, or no spool: move it away, together with its -wal and -shm, and keep them"
)
WHY: Final = {
    sqlite3.SQLITE_FULL: "its disk is full",
    # EIO, a quota, a limit on the size of files
    sqlite3.SQLITE_IOERR: "its disk fails, or lets no file grow further",
    sqlite3.SQLITE_BUSY: f"another process has kept it locked for more than {WAIT_S} s",
    **dict.fromkeys(
        (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY), REFUSED
    ),
    **dict.fromkeys(
        (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR), MALFORMED
    ),  # ERROR: a table is missing
}


class SpoolFailed(Exception):
    """The spool cannot be used now. The message is one sentence, safe to show."""


class Spooled(NamedTuple):
    """A delivery in the spool; `row` grows in the order of arrival."""

    row: int
    delivery: Delivery
    dedupe_s: int


class Spool:
    """The spool in the file `path`. No disk is touched before the first use; after close, the next
    use opens it again.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)

    def accept(self, batch: Sequence[tuple[Delivery, int]]) -> None:
        """Keep deliveries, each with its dedupe_s. All are durable when this returns; none is
        promised when it raises.
        """
        rows = [
            (len(d.head) + len(d.body) + ROW_BYTES, dedupe_s, *_values(d)) for d, dedupe_s in batch
        ]
        coming = sum(row[0] for row in rows)
        with self._guard():
            db = self._connect() or self._make()
            db.execute("BEGIN IMMEDIATE")
            _, held = db.execute(TOTAL).fetchone()
            disk = os.statvfs(self.path)
            full = (
                f"it holds {held:,} of at most {self.max_bytes:,} bytes"
                if held + coming > self.max_bytes
                else ""
            )
            if (
                not full and disk.f_bavail * disk.f_frsize < ROOM + 2 * coming
            ):  # once in the WAL, once in the file
                full = (
                    f"its disk has hardly more than {ROOM:,} bytes left, and these stay for the "
                    "drain"
                )
            if full:
                db.execute("ROLLBACK")
                raise SpoolFailed(f"The spool {self.path} is full: {full}.")
            db.executemany(ADD, rows)
            db.execute("COMMIT")

    def oldest(self, count: int, max_bytes: int) -> list[Spooled]:
        """Return up to `count` deliveries in the order of arrival, together of max_bytes; at least
        one, whatever its size.
        """
        found: list[Spooled] = []
        with self._guard():
            db = self._connect()
            if db is None:
                return found
            # A cursor left open is a read left open, and the WAL cannot start anew beside it.
            with closing(db.execute(OLDEST, (count,))) as cursor:
                for row, size, dedupe_s, *fields in cursor:
                    max_bytes -= size
                    if found and max_bytes < 0:
                        break
                    found.append(Spooled(row, Delivery(*fields), dedupe_s))
            if not found:
                self._give_back(db)
        return found

    def remove(self, rows: Sequence[int]) -> int:
        """Forget rows that Redis has answered for; return how many: one that another process has
        removed is no error.
        """
        with self._guard():
            db = self._connect()
            if db is None:
                return 0
            db.execute("BEGIN IMMEDIATE")
            cursor = db.executemany("DELETE FROM spool WHERE row = ?", [(row,) for row in rows])
            left, _ = db.execute(TOTAL).fetchone()
            db.execute("COMMIT")
            if not left:
                self._give_back(db)
            return cursor.rowcount

    def size(self) -> tuple[int, int]:
        """Return (deliveries, the bytes that max_bytes limits), (0, 0) without a file. Changes
        nothing, keeps no writer waiting.
        """
        with self._guard():
            own = self._db
            db = self._connect("ro")
            deliveries, held = db.execute(TOTAL).fetchone() if db else (0, 0)
            if db is not own:
                self.close()  # it cannot write
        return deliveries, held

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what disk and SQLite raise into SpoolFailed. To close the connection ends its
        transaction.
        """
        try:
            yield
        except (sqlite3.Error, OSError) as why:
            self.close()
            # What Python itself raises has no code: text that is none.
            code = getattr(why, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            said = why.strerror if isinstance(why, OSError) else WHY.get(code, f"SQLite says {why}")
            raise SpoolFailed(f"The spool {self.path} cannot be used: {said}.") from why
        finally:
            if self._db is not None and self._db.in_transaction:
                self.close()

    def _connect(self, mode: str = "rw") -> sqlite3.Connection | None:
        """Return the connection to the file that is at `path` now, or None without a file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self.close()
            # A disk that is not mounted looks like this: it is not the same as an empty spool.
            if not self.path.parent.is_dir():
                raise SpoolFailed(f"The folder of the spool {self.path} is missing.") from None
            if not Path(f"{self.path}-wal").exists():
                return None
            if self.path.exists():
                return self._connect(mode)  # another process has made both just now
            # The WAL can hold accepted deliveries, and SQLite would mix it into a new file.
            raise SpoolFailed(
                f"The spool {self.path} is missing, but its -wal is there: put it back, or "
                "move the -wal away."
            ) from None
        # The open file may have been moved away: nobody would drain what is added to it.
        if self._inode != (found.st_dev, found.st_ino):
            self.close()
        if self._db is None:
            db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                WAIT_S,
                isolation_level=None,
                uri=True,
            )
            self._db, self._inode = db, (found.st_dev, found.st_ino)
            db.executescript(SETTINGS)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > FORMAT:
                self.close()
                raise SpoolFailed(
                    f"The spool {self.path} was written by a newer webhookd (format {version}; "
                    f"this one knows {FORMAT}): start the newer version."
                )
            if version != FORMAT:
                raise sqlite3.DatabaseError
        return self._db

    def _make(self) -> sqlite3.Connection:
        """Make the file, private whatever the umask (SQLite gives its WAL the same mode), and
        return the connection.
        """
        # Made aside and linked into place: nobody ever opens half a spool, and a file that is there
        # is not replaced.
        with tempfile.TemporaryDirectory(
            dir=self.path.parent, prefix=f"{self.path.name}-"
        ) as aside:
            made = Path(aside, "made")
            with closing(sqlite3.connect(made, isolation_level=None)) as db:
                db.executescript(SCHEMA)
            made.chmod(0o600)
            try:
                os.link(made, self.path)
            except FileExistsError:
                pass  # another process was first
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(
                folder
            )  # else the file may be gone after a loss of power, with all that is in it
        finally:
            os.close(folder)
        return self._connect() or self._make()

    def _give_back(self, db: sqlite3.Connection) -> None:
        """Let an empty spool shrink: a file that once held 1 GB keeps the disk, and makes each
        later commit slower.
        """
        # VACUUM copies what is kept: a few pages, while the spool is empty. incremental_vacuum took
        # 53 s for 1 GB.
        free, wal = db.execute("PRAGMA freelist_count").fetchone()[0], Path(f"{self.path}-wal")
        if free <= KEPT and max(self.path.stat().st_size, wal.stat().st_size) <= 2 * KEPT * 4096:
            return
        db.execute(
            "PRAGMA busy_timeout = 0"
        )  # who reads or adds just now is not waited for: there is a next time
        try:
            if free > KEPT:
                db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.OperationalError as why:
            if why.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(WAIT_S * 1000)}")
