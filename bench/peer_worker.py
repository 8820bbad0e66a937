"""The peer of the worker: one command per job. `peer_worker.py REDIS_URL STREAM` parses each body until none is left.

What it does not do: batches, time limits, retries, dead letters, history, counters, heartbeats.
"""

import json
import sys

import redis

CLIENT, STREAM = redis.Redis.from_url(sys.argv[1]), sys.argv[2]
CLIENT.xgroup_create(STREAM, "peer", id="0", mkstream=True)
while found := CLIENT.xreadgroup("peer", "p1", {STREAM: ">"}, count=1):
    entry, fields = found[0][1][0]
    json.loads(fields[b"body"])
    CLIENT.xack(STREAM, "peer", entry)
    CLIENT.xdel(STREAM, entry)
