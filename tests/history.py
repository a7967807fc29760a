"""What tests read of the history: rows in order of writing, before anything is numbered; and waiting for the numbers."""

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.records import audit_queue
from app.records.history import HistoryEntry
from app.records.session import Store


def written(session: Session, **filters: str) -> list[HistoryEntry]:
    return list(session.scalars(select(HistoryEntry).filter_by(**filters).order_by(HistoryEntry.id)))


def settle(store: Store, seconds: float = 10) -> None:
    """Return once a server's sequencer has numbered all that was committed."""
    until = time.monotonic() + seconds
    while True:
        with store.read() as session:
            if not audit_queue.any_waits(session):
                return
        assert time.monotonic() < until
        time.sleep(0.02)
