"""A peer of the worker: Celery on Redis. `celery_app.py fill SOCKET JOBS BODY_FILE` ·
`celery_app.py work SOCKET`

As its documents advise for many short tasks: no results, a prefetch of 128, one process (the solo
pool), no gossip. What it does not do here: late acknowledgement. A task is acknowledged before it
runs, so a worker that dies loses it.
"""

import sys
from pathlib import Path

import counted
from celery import Celery

mode, path = sys.argv[1:3]
app = Celery("peer", broker=f"redis+socket://{path}")
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=128, broker_connection_retry_on_startup=True
)
app.conf.update(
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    task_store_errors_even_if_ignored=False,
)


@app.task(name="push")
def push(body: str) -> None:
    counted.handle(body)


if mode == "fill":
    body = Path(sys.argv[4]).read_text()
    with app.producer_pool.acquire() as producer:
        for _ in range(int(sys.argv[3])):
            push.apply_async((body,), producer=producer)
else:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    app.worker_main(["worker", "--pool=solo", "--concurrency=1", *quiet])
