"""Intents to upload: written before a blob is, so that no crash leaves a pack that nobody knows of.

An intent is dead when its holder is gone: its lease has a later token or an end, or it has no job and is old.
"""

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, deleted, now
from app.records.job import Job, Status


class Intent(Record):
    __tablename__ = "intents"

    blob: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str | None] = mapped_column(index=True)
    lease_token: Mapped[int | None]
    created_at: Mapped[float]


def declare(session: Session, blobs: list[str], job_id: str | None = None, lease_token: int | None = None) -> None:
    for blob in blobs:
        session.execute(insert(Intent).values(blob=blob, job_id=job_id, lease_token=lease_token, created_at=now()))


def fulfil(session: Session, blobs: list[str]) -> bool:
    """The blobs are referenced by a record that commits in this transaction. False when the sweeper deleted one meanwhile."""
    return deleted(session, delete(Intent).where(Intent.blob.in_(blobs))) == len(blobs)


def dead(session: Session, older_than_seconds: float) -> list[str]:
    """Blobs whose upload was begun long ago and whose holder cannot publish them any more."""
    holder = select(Job.id).where(
        Job.id == Intent.job_id, Job.lease_token == Intent.lease_token, Job.status == Status.RUNNING
    )
    query = select(Intent.blob).where(Intent.created_at < now() - older_than_seconds, ~holder.exists())
    return list(session.scalars(query.limit(500)))


def forget(session: Session, blob: str) -> bool:
    """False when it was forgotten or fulfilled before. Until the transaction ends nobody fulfils it."""
    return deleted(session, delete(Intent).where(Intent.blob == blob)) > 0
