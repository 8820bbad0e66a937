"""What a process wrote to its files and when it was synced, from strace; and what a power loss
would leave of them.

A power loss keeps what was synced. Of what was written after that it keeps anything: all, nothing,
a part of one write. Times are of the machine's clock, so that they compare with those of the
clients.
"""

import re
import shutil
import subprocess
from bisect import bisect_right
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import until

CALLS = "write,pwrite64,writev,ftruncate,fsync,fdatasync"
LINE = re.compile(
    r'(\d+\.\d+) (\w+)\(\d+<([^>]+)>(?:, )?(?:"([^"]*)"(?:\.\.\.)?, (\d+))?(?:, )?(\d*)\) += (\d+).*<(\d+\.\d+)>'
)


class Call(NamedTuple):
    """`began` and `ended` are unix seconds; `at` is None for what is appended. `data` is empty
    where only lengths are kept.
    """

    began: float
    ended: float
    what: str
    path: str
    at: int | None
    size: int
    data: bytes


def needs_strace():
    if not shutil.which("strace"):
        pytest.skip(
            "NOT TESTED: power loss and slow disks. strace is missing: sh hookq/setup.sh faults installs it"
        )


@contextmanager
def traced(pid, folder, *, data=False, inject=()):
    """Run strace on a process while the block lasts; yields the folder of its reports, one for each
    thread.
    """
    needs_strace()
    folder.mkdir()
    how = ["-xx", "-s", "100000"] if data else ["-s", "0"]
    command = [
        "strace",
        "-ff",
        "-ttt",
        "-T",
        "-y",
        *how,
        "-e",
        f"trace={CALLS}",
        *inject,
        "-o",
        f"{folder}/t",
        "-p",
        str(pid),
    ]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(
            lambda: "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text(),
            what="strace is there",
        )
        yield folder
    finally:
        tracer.terminate()
        tracer.wait(10)


def unhex(text):
    return bytes.fromhex(text.replace("\\x", ""))


def calls(folder):
    """Return the calls that succeeded, in their order."""
    found = []
    for report in folder.iterdir():
        for line in report.read_text().splitlines():
            if not (made := LINE.match(line)):
                continue
            began, what, path, text, _, at, result, took = made.groups()
            data = unhex(text or "")
            path = unhex(path).decode() if path.startswith("\\x") else path
            size = int(at or 0) if what == "ftruncate" else int(result)
            place = int(at) if what == "pwrite64" else None
            found.append(
                Call(float(began), float(began) + float(took), what, path, place, size, data)
            )
    return sorted(found)


class Disk:
    """The files of a recorded run, as they could be found after a power loss at any moment of it."""

    def __init__(self, made, before, ends):
        """`before`: path → what was in the file when the recording began; `ends`: path → size of an
        append-only file at its end.
        """
        self.before, self.files = before, {}
        for call in sorted(made):
            self.files.setdefault(call.path, []).append(call)
        self.begins = {
            path: size - sum(call.size for call in self.files[path] if call.what == "write")
            for path, size in ends.items()
        }

    def synced(self, path, moment):
        """Return how many calls on the file were surely on disk: all that had ended when the last
        sync before `moment` began.
        """
        of = self.files.get(path, [])
        syncs = [
            call.began
            for call in of
            if call.what in ("fsync", "fdatasync") and call.ended <= moment
        ]
        return sum(call.ended <= syncs[-1] for call in of) if syncs else 0

    def issued(self, path, moment):
        of = self.files.get(path, [])
        return bisect_right([call.began for call in of], moment)

    def length(self, path, moment, dice):
        """Return how long an append-only file is after a power loss: to the last sync, or somewhere
        after it.
        """
        of, ends = self.files[path], [self.begins[path]]
        for call in of:
            ends.append(ends[-1] + (call.size if call.what == "write" else 0))
        least, most = ends[self.synced(path, moment)], ends[self.issued(path, moment)]
        return dice.choice([least, most, dice.randint(least, most)])

    def image(self, path, moment, dice):
        """Return the file's bytes: what was synced, and of the rest some writes, one of them
        perhaps torn.
        """
        of, image = self.files.get(path, []), bytearray(self.before.get(path, b""))
        low, high = self.synced(path, moment), self.issued(path, moment)
        kept = dice.choice(["none", "all", "some"])
        for place, call in enumerate(of[:high]):
            if place >= low and (kept == "none" or (kept == "some" and dice.random() < 0.5)):
                continue
            if call.what == "ftruncate":
                del image[call.size :]
                image.extend(bytes(call.size - len(image)))
            elif call.what == "pwrite64":
                data = call.data[: call.size]
                if place >= low and kept == "some" and dice.random() < 0.2:
                    data = data[: dice.randrange(len(data) + 1)]
                image.extend(bytes(max(0, call.at - len(image))))
                image[call.at : call.at + len(data)] = data
        return bytes(image)
