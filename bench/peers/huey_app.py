"""A peer of the worker: Huey on Redis. `huey_app.py fill SOCKET JOBS BODY_FILE` · `huey_app.py work
SOCKET THREADS`

As its documents advise: no results, a blocking pop, threads as workers; the periodic scheduler is
off. What it does not do: acknowledge. A task is popped before it runs, so a worker that dies loses
it.
"""

import sys
from pathlib import Path

import counted
from huey import RedisHuey

mode, path, number = sys.argv[1:4]
huey = RedisHuey("peer", url=f"unix://{path}", results=False)


@huey.task()
def push(body: bytes) -> None:
    counted.handle(body)


if mode == "fill":
    content = Path(sys.argv[4]).read_bytes()
    for _ in range(int(number)):
        push(content)
else:
    huey.create_consumer(workers=int(number), worker_type="thread", periodic=False).run()
