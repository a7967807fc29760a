"""The database: one file per table, with its statuses, transitions and queries. Imported whole for Alembic."""

from app.records import (
    alias,
    alias_move,
    api_key,
    checkpoint,
    dataset,
    history,
    idempotency,
    intent,
    job,
    job_event,
    leader,
    model,
    outbox,
    request,
    tombstone,
    upload,
)
from app.records.base import Record

__all__ = [
    "Record",
    "alias",
    "alias_move",
    "api_key",
    "checkpoint",
    "dataset",
    "history",
    "idempotency",
    "intent",
    "job",
    "job_event",
    "leader",
    "model",
    "outbox",
    "request",
    "tombstone",
    "upload",
]
