"""What every Python worker of the bench does with a job: parse its body, and count it where the
bench looks.

The count is 8 bytes of a file (COUNT) in shared memory: it costs a microsecond and outlives a
forked child.
"""

import json
import mmap
import os
import struct
import threading
from pathlib import Path

_lock = threading.Lock()
with Path(os.environ["COUNT"]).open("r+b") as _file:
    _memory = mmap.mmap(_file.fileno(), 8)


def handle(body: bytes | str) -> None:
    json.loads(body)
    with _lock:
        _memory[:] = struct.pack("<q", struct.unpack("<q", _memory[:])[0] + 1)
