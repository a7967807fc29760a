"""Blobs of retired versions: condemned in the transaction that retires, deleted after it, and when. Rows stay: they are the proof."""

from typing import Any

from sqlalchemy import BigInteger, insert, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, changed, now


class Erasure(Record):
    __tablename__ = "erasures"

    blob: Mapped[str] = mapped_column(primary_key=True)
    retirement: Mapped[str] = mapped_column(index=True)
    model_id: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    erased_at: Mapped[float | None] = mapped_column(index=True)  # None: it is still to be deleted


def condemn(session: Session, retirement: str, model_id: str, blobs: list[dict[str, Any]]) -> None:
    """`blobs`: blob, bytes, sha256. No record that stays refers to them after this transaction."""
    for each in blobs:
        session.execute(insert(Erasure).values(retirement=retirement, model_id=model_id, erased_at=None, **each))


def due(session: Session) -> list[Erasure]:
    return list(session.scalars(select(Erasure).where(Erasure.erased_at.is_(None)).order_by(Erasure.blob).limit(500)))


def done(session: Session, blob: str) -> bool:
    """It is deleted. Returns whether nobody had said so before."""
    open_ = update(Erasure).where(Erasure.blob == blob, Erasure.erased_at.is_(None))
    return changed(session, open_.values(erased_at=now()))


def unfinished(session: Session, retirement: str) -> bool:
    named = (Erasure.retirement == retirement) & Erasure.erased_at.is_(None)
    return session.scalar(select(Erasure.blob).where(named).limit(1)) is not None
