"""The look at Redis that a program takes at its start: which it is, what in its settings can lose
jobs, and whether this version knows what it holds.

Promises: no more than lines in the log. To refuse is the program's.
"""

from contextlib import closing

from hookq import log
from hookq.store import figures
from hookq.store.client import Client
from hookq.store.connection import Away


def boot_check(url: str, name: str, replicas: int) -> None:
    """Write a line about this Redis, and one for each of its settings that can lose jobs."""
    try:
        with closing(Client(url, name)) as client:
            facts, risks = figures.health(client, replicas)
    except Away:
        return  # whoever needs it says so, again and again
    log.event("redis.check", **{name.replace("-", "_"): value for name, value in facts.items()})
    for risk in risks:
        log.event("redis.risk", "warning", why=risk)


def format_is_known(url: str, name: str) -> bool:
    """Tell whether this version may use what Redis holds; False while that cannot be asked. Raises
    NewerData.
    """
    try:
        with closing(Client(url, name, timeout_s=1.0)) as client:
            client.check_format()
    except Away:
        return False
    return True
