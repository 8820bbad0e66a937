"""The short form of `make chaos`, with a fixed seed: nothing acknowledged is lost, and the ledger
holds throughout.
"""

from chaos import chaos


def test_twenty_seconds_of_everything_at_once_lose_nothing():
    rows, wrong = chaos(20, 7)
    assert not wrong, (wrong, rows)
    assert rows["acknowledged"] > 200
