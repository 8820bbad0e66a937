"""The look at Redis that each program takes at its start: which it is, and what in its settings can
lose jobs. A line in the log each, never a refusal.
"""

from hookq import log
from hookq.store.connection import Away
from hookq.store.store import Store


def boot_check(url: str, name: str, replicas: int) -> None:
    """Write a line about this Redis, and one for each of its settings that can lose jobs. Never a
    refusal.
    """
    try:
        store = Store(url, name)
        found, risks = store.health(replicas)
        store.close()
    except Away:
        return  # whoever needs it says so, again and again
    log.event("redis.check", **{key.replace("-", "_"): value for key, value in found.items()})
    for risk in risks:
        log.event("redis.risk", "warning", why=risk)
