"""What happened, for ever: one row per transition, written in the transition's own transaction.

Rows name ids and digests, never the person. The database refuses UPDATE and DELETE (a trigger).
"""

from typing import Any

from sqlalchemy import Index, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, now


class HistoryEntry(Record):
    __tablename__ = "history"
    __table_args__ = (Index("ix_history_request_id_id", "request_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(index=True)
    actor: Mapped[str] = mapped_column(index=True)
    action: Mapped[str] = mapped_column(index=True)
    resource: Mapped[str] = mapped_column(index=True)
    request_id: Mapped[str | None]
    details: Mapped[dict[str, Any]]


def write(
    session: Session,
    actor: str,
    action: str,
    resource: str,
    request_id: str | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    session.execute(
        insert(HistoryEntry).values(
            at=now(), actor=actor, action=action, resource=resource, request_id=request_id, details=details or {}
        )
    )


def page(
    session: Session,
    *,
    after: int | None,
    limit: int,
    actor: str | None = None,
    action: str | None = None,
    resource: str | None = None,
    request_id: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> list[HistoryEntry]:
    """Entries in order of writing, `limit` at most, after the entry with id `after`."""
    query = select(HistoryEntry).order_by(HistoryEntry.id).limit(limit)
    filters = {"actor": actor, "action": action, "resource": resource, "request_id": request_id}
    for name, value in filters.items():
        if value is not None:
            query = query.where(getattr(HistoryEntry, name) == value)
    if after is not None:
        query = query.where(HistoryEntry.id > after)
    if since is not None:
        query = query.where(HistoryEntry.at >= since)
    if until is not None:
        query = query.where(HistoryEntry.at < until)
    return list(session.scalars(query))
