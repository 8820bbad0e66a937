"""A peer of the worker: RQ. `rq_app.py fill SOCKET JOBS BODY_FILE` · `rq_app.py work SOCKET
fork|simple`

Its documents say "run Worker in production": a fork for each job, fork below. SimpleWorker runs
jobs in the process, which they allow for jobs of a few milliseconds that are trusted. Results are
not kept; jobs are queued in bulk. What it does not do: keep a lease that is renewed while a
SimpleWorker's job runs.
"""

import sys
from pathlib import Path

import counted
import redis
from rq import Queue, SimpleWorker, Worker

mode, path, what = sys.argv[1:4]
client = redis.Redis(unix_socket_path=path)
queue = Queue("jobs", connection=client)
if mode == "fill":
    body = Path(sys.argv[4]).read_bytes()
    for start in range(0, int(what), 500):
        rows = min(500, int(what) - start)
        queue.enqueue_many(
            [Queue.prepare_data(counted.handle, args=(body,), result_ttl=0) for _ in range(rows)]
        )
else:
    kind = SimpleWorker if what == "simple" else Worker
    kind([queue], connection=client).work(logging_level="WARNING")
