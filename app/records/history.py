"""What happened, for ever: one row per transition, written in the transition's own transaction.

Rows name ids and digests, never the person. The database refuses UPDATE and DELETE (a trigger). Their order is settled
afterwards, by app/audit/sequencer.py, so that no transaction waits for another.
"""

from typing import Any

from sqlalchemy import Index, insert
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.audit import canonical
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
    """ValueError for details that have no canonical form, such as fractions: they could not be hashed."""
    said = {"actor": actor, "action": action, "resource": resource, "request_id": request_id, "details": details or {}}
    canonical.encode(said)
    session.execute(insert(HistoryEntry).values(at=now(), **said))
