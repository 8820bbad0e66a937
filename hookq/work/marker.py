"""Markers: what this worker is doing, in files in STATE_DIR that outlive a kill -9.

A worker that is killed, or ended by the code of a handler, cannot say what it was doing. So it
writes that down before it does it, and another worker of this machine reads it afterwards:

    hand/<worker>     which entry its main thread runs: the job that is charged with the crash (R9)
    import/<source>   that this source's handlers are being imported: see `importing`

Promises: a marker is written before what it stands for begins. Does not promise that it is written
at all: a full disk costs us the marker, not the work. Nor that other machines see it: to them each
lease of the dead worker is a suspect.
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hookq import log

ENTRY_BYTES: Final = 64  # a stream entry's id has 41 at most


class Marker:
    """The in-progress marker of a worker's main thread: the entry it runs, empty between two jobs.

    It is written through shared memory, before and after each job, at a microsecond each. The
    kernel keeps the file's pages when the process dies.
    """

    def __init__(self, state_dir: Path, worker: str) -> None:
        self.path = state_dir / "hand" / worker
        self.memory: mmap.mmap | None = None
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self.path.open("w+b") as file:
                # So that a full disk shows as an error here, not as SIGBUS at the first write.
                os.posix_fallocate(file.fileno(), 0, ENTRY_BYTES)
                self.memory = mmap.mmap(file.fileno(), ENTRY_BYTES)
        except OSError as error:
            log.event("hand.failed", "warning", why=f"{self.path}: {error.strerror}")

    def set(self, entry: bytes) -> None:
        """Name the entry that runs from now on; b"" for none."""
        if self.memory:
            self.memory[:] = entry.ljust(ENTRY_BYTES, b"\0")

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


def in_progress(state_dir: Path, worker: str) -> bytes | None:
    """Return the entry that worker was running, b"" for none, or None if it has no marker here,
    which is so for every worker of another machine.
    """
    try:
        return (state_dir / "hand" / worker).read_bytes().rstrip(b"\0")
    except OSError:
        return None


def forget(state_dir: Path, worker: str) -> None:
    """Remove the in-progress marker of a dead worker whose leases were reclaimed."""
    (state_dir / "hand" / worker).unlink(missing_ok=True)


@contextlib.contextmanager
def importing(state_dir: Path, source: str) -> Iterator[None]:
    """Mark that this source's handlers are being imported.

    The file grows by one byte for each import that begins, and is removed when one ends, by an
    exception too. So what is found of a dead importer counts the imports in a row that took their
    worker with them, and the file's time is the last one's.
    """
    path = state_dir / "import" / source
    with contextlib.ExitStack() as stack:
        # It fails when the disk is full, and while another worker imports the same source: that
        # one's marker is enough.
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab", buffering=0))
            _lock(file.fileno())
            file.write(b"x")
            # Before the lock goes: whoever waits to look must find no file, rather than a crash.
            stack.callback(path.unlink, missing_ok=True)
        yield


def crashes(state_dir: Path, source: str) -> tuple[int, float]:
    """Return how many imports of this source in a row ended their worker, and when the last one
    began (unix seconds).
    """
    try:
        with (state_dir / "import" / source).open("r+b") as file:
            living = 0
            try:
                _lock(file.fileno())
            except OSError:  # another worker imports it now, and lives: its byte is no crash
                living = 1
            status = os.fstat(file.fileno())
    except OSError:
        return 0, 0.0
    return (status.st_size - living if status.st_nlink else 0), status.st_mtime


def _lock(fd: int) -> None:
    """Take the lock that says that the importer lives. The kernel releases it with the process;
    and unlike flock's, a child that a handler's module has forked does not inherit it.
    """
    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
