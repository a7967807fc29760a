"""Which history rows have no number in the audit yet. A trigger puts each here in its own transaction, so none can be
missed, however late that transaction commits; the sequencer takes it out in the transaction that numbers it."""

from sqlalchemy import ForeignKey, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record
from app.records.history import HistoryEntry


class Waiting(Record):
    __tablename__ = "audit_queue"

    history_id: Mapped[int] = mapped_column(ForeignKey("history.id"), primary_key=True, autoincrement=False)


def any_waits(session: Session) -> bool:
    return session.scalar(select(Waiting.history_id).limit(1)) is not None


def oldest(session: Session, most: int) -> list[HistoryEntry]:
    query = select(HistoryEntry).join(Waiting, Waiting.history_id == HistoryEntry.id)
    return list(session.scalars(query.order_by(HistoryEntry.id).limit(most)))


def remove(session: Session, ids: list[int]) -> None:
    session.execute(delete(Waiting).where(Waiting.history_id.in_(ids)))
