"""The ledger as an operator sees it: Redis' counts and this machine's spool together.

Promises: a spool that cannot be read is reported as unknown, with the reason, never as empty.
"""

from pathlib import Path

from hookq.ingest.spool import Spool, SpoolFailed
from hookq.store import reading
from hookq.store.client import Client
from hookq.store.records import Ledger


def audit(store: Client, state_dir: Path) -> Ledger:
    """Return the ledger now: `accepted` counts what is in this machine's spool, too. Raises
    Away.
    """
    ledger = reading.audit(store)
    try:
        spooled, spool_bytes = spool_size(state_dir)
    except SpoolFailed as error:
        return ledger._replace(spool_why=str(error))
    accepted = ledger.accepted + spooled
    return ledger._replace(accepted=accepted, spooled=spooled, spool_bytes=spool_bytes)


def spool_size(state_dir: Path) -> tuple[int, int]:
    """Return (deliveries, bytes) of this machine's spool. Raises SpoolFailed."""
    return Spool(state_dir / "spool.db", 0).size() if state_dir.exists() else (0, 0)


def meanwhile(state_dir: Path) -> str:
    """Return where deliveries go while Redis is unavailable, as a sentence."""
    try:
        spooled, _ = spool_size(state_dir)
    except SpoolFailed as error:
        return str(error)
    return f"Meanwhile deliveries go into the spool of their machine; this one's holds {spooled:,}."
