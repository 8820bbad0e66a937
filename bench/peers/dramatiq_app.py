"""A peer of the worker: Dramatiq on Redis. `dramatiq_app.py fill SOCKET JOBS BODY_FILE`, or worked
on by its command:

    dramatiq dramatiq_app --processes 1 --threads N        (REDIS_SOCKET)

As its documents advise: one process, several threads; the default middleware. Messages are JSON, so
the body is text. What it does not do: keep results, or a history. It acknowledges after the work,
as webhookd does.
"""

import os
import sys
from pathlib import Path

import counted
import dramatiq
from dramatiq.brokers.redis import RedisBroker

filling = __name__ == "__main__"
broker = RedisBroker(url=f"unix://{sys.argv[2] if filling else os.environ['REDIS_SOCKET']}")
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="jobs")
def push(body: str) -> None:
    counted.handle(body)


if filling:
    text = Path(sys.argv[4]).read_text()
    for _ in range(int(sys.argv[3])):
        push.send(text)
