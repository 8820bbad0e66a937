"""A request to a source as it arrived: what is verified, and the two answers short of a delivery.

Rules: pure values. An Arrival holds everything that verification judges by, the time of arrival
included (R10): one that was rejected can be kept, and verified again later with the same result or,
after the settings were mended, a better one.

Does not promise: that anything in it is true. Only `signing.verify` says who sent it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Arrival(NamedTuple):
    """One request to a source. `head` has its header lines as they came; `fields` is the same,
    parsed once: values by lower-case name, decoded as latin-1. `at` is in unix seconds by our
    clock.
    """

    source: str
    head: bytes
    fields: Mapping[str, str]
    query: str
    body: bytes
    at: float


# What an arrival says of itself, unproven: (signatures, timestamp, messages, delivery id). One of
# the signatures must match one of the messages, the bytes that may have been signed; timestamp and
# delivery id are "" where it names none. A plain tuple, since one is made for every request.
Claim = tuple[Sequence[str], str, Sequence[bytes], str]


class Rejected(NamedTuple):
    """The arrival is not a delivery. `reason` is the word for the sender, `why` a sentence for the
    log.
    """

    reason: str
    why: str
