"""What must be sent after a commit, stored with the commit: so far, the bell."""

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, now


class OutboxEntry(Record):
    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]
    created_at: Mapped[float]
    sent_at: Mapped[float | None] = mapped_column(index=True)


def put(session: Session, kind: str) -> None:
    session.execute(insert(OutboxEntry).values(kind=kind, created_at=now(), sent_at=None))


def unsent(session: Session, kind: str) -> list[int]:
    query = select(OutboxEntry.id).where(OutboxEntry.kind == kind, OutboxEntry.sent_at.is_(None))
    return list(session.scalars(query.order_by(OutboxEntry.id).limit(1000)))


def mark_sent(session: Session, ids: list[int]) -> None:
    session.execute(update(OutboxEntry).where(OutboxEntry.id.in_(ids)).values(sent_at=now()))
