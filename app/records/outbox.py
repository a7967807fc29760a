"""What must be sent after a commit, stored with the commit and removed once it was sent: so far, the bell."""

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, now


class OutboxEntry(Record):
    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]
    created_at: Mapped[float]


def put(session: Session, kind: str) -> None:
    session.execute(insert(OutboxEntry).values(kind=kind, created_at=now()))


def waiting(session: Session, kind: str) -> list[int]:
    query = select(OutboxEntry.id).where(OutboxEntry.kind == kind)
    return list(session.scalars(query.order_by(OutboxEntry.id).limit(1000)))


def remove(session: Session, ids: list[int]) -> None:
    session.execute(delete(OutboxEntry).where(OutboxEntry.id.in_(ids)))
