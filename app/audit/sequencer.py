"""Gives every committed history row its place in the audit, within a second, so that no POST waits for a lock on the log.

Runs in every server, in one at a time. A batch is one transaction: rows are numbered, linked and taken from the queue
together or not at all.
"""

from functools import partial

import structlog

from app.records import audit_entry, audit_queue, leader
from app.records.session import Store
from app.rounds import Rounds

log = structlog.get_logger()
BATCH = 200  # SQLite has one writer: it is ours for no longer than this many rows take
PAUSE = 0.4
PAUSE_WHEN_BEHIND = 0.02  # lets SQLite's other writers in
PAUSE_AFTER_FAILURE = 5.0
LEASE = 2.0


def sequencing(store: Store) -> Rounds:
    return Rounds("sequencer", partial(_round, store), PAUSE)


def _round(store: Store, holder: str) -> float:
    try:
        return PAUSE_WHEN_BEHIND if integrate(store, holder) == BATCH else PAUSE
    except Exception as error:  # noqa: BLE001  (logged by its class; rows wait, and the next round tries again)
        log.error("audit.failed", error=type(error).__name__)
        return PAUSE_AFTER_FAILURE


def integrate(store: Store, holder: str = "sequencer") -> int:
    """One batch, oldest first. How many entries the audit has more; 0 also while another holder sequences."""
    with store.read() as session:
        if not audit_queue.any_waits(session):
            return 0
    with store.write() as session:
        if not leader.lead(session, "audit", holder, LEASE):  # its row stays locked until we commit
            return 0
        rows = audit_queue.oldest(session, BATCH)
        if rows:
            audit_entry.append(session, rows)
            audit_queue.remove(session, [row.id for row in rows])
        return len(rows)
