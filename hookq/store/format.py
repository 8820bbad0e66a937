"""The format of all that Redis holds: an older version does not start beside newer data.

The newest version that ever started here leaves its number. Jobs have a format of their own
(`FORMAT` in hookq/job.py): versions that share the number of the data may still differ in that.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Final

import redis

from hookq.store.keys import key

DATA_FORMAT: Final = 1


class NewerData(Exception):
    """Redis holds data of a newer version. The message is one sentence, safe to show."""


def check_format(ask: Callable[..., Any]) -> None:
    """Leave our number where there is none; raise NewerData where there is a greater one.

    `ask` sends the words of a command and returns its reply.
    """
    number = ask("GET", key("format"))
    if number is None:
        # A Redis that takes no write now (full, read-only) is marked by whoever starts next.
        with contextlib.suppress(redis.ResponseError):
            number = ask("SET", key("format"), DATA_FORMAT, "NX", "GET")
    if number is not None and int(number) > DATA_FORMAT:
        raise NewerData(
            f"This Redis holds data of a newer webhookd (format {int(number)}; this one knows "
            f"{DATA_FORMAT}): start the newer version, or use another Redis."
        )
