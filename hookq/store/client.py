"""A client of Redis: it runs scripts, and asks what is nobody's in particular.

Every script is one atomic step (R4). An audience adds its own verbs: jobs.py (workers), dead.py
(operators), reading.py and figures.py (whoever looks). A program imports what it may do.

Promises: a call that raised Away has done all of its work or none. Does not promise which: ask
again.
"""

from collections.abc import Mapping
from typing import Any

import redis

from hookq.store.connection import connect, reaching
from hookq.store.format import check_format
from hookq.store.keys import PREFIX, key
from hookq.store.scripts import SCRIPTS


class Client:
    """One instance per thread: a blocked lease must not hold up a renewal."""

    def __init__(self, url: str, name: str, *, timeout_s: float = 5.0) -> None:
        self.name, self.local = name, url.startswith("unix:")
        self.redis = connect(url, timeout_s, name)
        self.redis.set_response_callback("SET", raw)

    def close(self) -> None:
        self.redis.close()

    def run(self, script: str, *args: Any) -> Any:
        """Run a script; load it where Redis does not know it (NOSCRIPT: nothing ran)."""
        with reaching():
            try:
                return self.redis.evalsha(SCRIPTS[script].sha, 1, PREFIX, *args)
            except redis.exceptions.NoScriptError:
                return self.redis.eval(SCRIPTS[script].text, 1, PREFIX, *args)

    def exec(self, pipe: Any, script: str, *args: Any) -> Any:
        """Run a script within MULTI/EXEC. Redis 7.0 refuses any MULTI while memory is full, but an
        operator must still be able to make room: the script alone is as atomic.
        """
        try:
            pipe.eval(SCRIPTS[script].text, 1, PREFIX, *args)
            return pipe.execute()[0]
        except redis.exceptions.OutOfMemoryError:
            pipe.reset()
            return self.run(script, *args)

    def check_format(self) -> None:
        """Raise NewerData when a newer version has written here."""
        with reaching():
            check_format(self.redis.execute_command)

    def ping(self) -> None:
        """Return when Redis answers, else raise Away."""
        with reaching():
            self.redis.ping()

    def now(self) -> float:
        """Return the time by Redis' clock in unix seconds: due times and deaths are dated by it."""
        with reaching():
            seconds, micros = self.redis.time()
            return float(seconds + micros / 1e6)

    def memory(self) -> tuple[int, int]:
        """Return (bytes used, maxmemory)."""
        with reaching():
            info = self.redis.info("memory")
            return int(info["used_memory"]), int(info["maxmemory"])

    def sources(self) -> set[str]:
        """Return every source that ever had a delivery, also those the settings no longer have."""
        with reaching():
            return {name.decode() for name in self.redis.smembers(key("sources"))}

    def raise_counters(self, counters: Mapping[str, int]) -> None:
        """Raise counters. No id claims it: after a lost reply, do not ask again."""
        self.run("beat_worker", "", "", *pairs(counters))


def raw(reply: Any, **_: object) -> Any:
    """Return a reply as it comes: a callback that takes the place of redis-py's own."""
    return reply


def pairs(counters: Mapping[str, int]) -> list[str | int]:
    """Return counters as a script's arguments."""
    return [value for pair in counters.items() for value in pair]
