"""Blobs of retired versions: condemned in the transaction that retires, deleted after it, and when. Rows stay: they are the proof."""

from typing import Any

from sqlalchemy import BigInteger, insert, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, changed, now
from app.records.job import Job, Status


class Erasure(Record):
    __tablename__ = "erasures"

    blob: Mapped[str] = mapped_column(primary_key=True)
    retirement: Mapped[str] = mapped_column(index=True)
    model_id: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    condemned_at: Mapped[float | None]  # after the transaction that condemned it; None: nobody looked since
    erased_at: Mapped[float | None] = mapped_column(index=True)  # None: it is still to be deleted


def condemn(session: Session, retirement: str, model_id: str, blobs: list[dict[str, Any]]) -> None:
    """`blobs`: blob, bytes, sha256. No record that stays refers to them after this transaction."""
    for each in blobs:
        session.execute(
            insert(Erasure).values(retirement=retirement, model_id=model_id, condemned_at=None, erased_at=None, **each)
        )


def due(session: Session) -> list[Erasure]:
    """To be deleted now. What a job runs with it was told when it started: while one that started earlier than the blob was
    condemned still runs, whatever its model is, the blob stays."""
    fresh = Erasure.condemned_at.is_(None) & Erasure.erased_at.is_(None)
    changed(session, update(Erasure).where(fresh).values(condemned_at=now()))
    told = select(Job.id).where(Job.status == Status.RUNNING, Job.started_at <= Erasure.condemned_at)
    query = select(Erasure).where(Erasure.erased_at.is_(None), ~told.exists())
    return list(session.scalars(query.order_by(Erasure.blob).limit(500)))


def done(session: Session, blob: str) -> bool:
    """It is deleted. Returns whether nobody had said so before."""
    open_ = update(Erasure).where(Erasure.blob == blob, Erasure.erased_at.is_(None))
    return changed(session, open_.values(erased_at=now()))


def unfinished(session: Session, retirement: str) -> bool:
    named = (Erasure.retirement == retirement) & Erasure.erased_at.is_(None)
    return session.scalar(select(Erasure.blob).where(named).limit(1)) is not None
