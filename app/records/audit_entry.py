"""The audit: history rows in one order for ever, each with its number, its hash and the link to all before it.

The database refuses UPDATE and DELETE (a trigger). What an entry says stays in `history`; app/audit/chain.py has the format.
"""

from typing import Any

from sqlalchemy import ForeignKey, insert, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.audit import chain
from app.audit.chain import EMPTY, Head
from app.records.base import Record
from app.records.history import HistoryEntry


class AuditEntry(Record):
    __tablename__ = "audit"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    history_id: Mapped[int] = mapped_column(ForeignKey("history.id"), unique=True)
    leaf: Mapped[bytes]
    link: Mapped[bytes]


def document(seq: int, row: HistoryEntry) -> dict[str, Any]:
    """What is hashed as the leaf."""
    return chain.entry(
        seq=seq, at=row.at, actor=row.actor, action=row.action, resource=row.resource, request=row.request_id,
        details=row.details,
    )  # fmt: skip


def append(session: Session, rows: list[HistoryEntry]) -> None:
    """Number these rows after the last. The caller is the only one who does."""
    seq, link = head(session)
    made = []
    for row in rows:
        leaf = chain.leaf_of(document(seq + 1, row))
        seq, link = seq + 1, chain.link_of(link, leaf)
        made.append({"seq": seq, "history_id": row.id, "leaf": leaf, "link": link})
    session.execute(insert(AuditEntry), made)


def head(session: Session, size: int | None = None) -> Head:
    """The head now, or the one when the log had `size` entries, which it must have by now."""
    if size == 0:
        return Head(0, EMPTY)
    query = select(AuditEntry.seq, AuditEntry.link).order_by(AuditEntry.seq.desc()).limit(1)
    last = session.execute(query if size is None else query.where(AuditEntry.seq == size)).first()
    return Head(last.seq, last.link) if last else Head(0, EMPTY)


def between(session: Session, first: int, last: int) -> list[tuple[AuditEntry, HistoryEntry]]:
    query = select(AuditEntry, HistoryEntry).join(HistoryEntry, HistoryEntry.id == AuditEntry.history_id)
    found = session.execute(query.where(AuditEntry.seq.between(first, last)).order_by(AuditEntry.seq))
    return [(entry, row) for entry, row in found]


def page(
    session: Session,
    *,
    after: int,
    limit: int,
    actor: str | None = None,
    action: str | None = None,
    resource: str | None = None,
    request_id: str | None = None,
    since: float | None = None,
    until: float | None = None,
) -> list[tuple[AuditEntry, HistoryEntry]]:
    """Entries by number, `limit` at most, after number `after`."""
    query = select(AuditEntry, HistoryEntry).join(HistoryEntry, HistoryEntry.id == AuditEntry.history_id)
    filters = {"actor": actor, "action": action, "resource": resource, "request_id": request_id}
    for name, value in filters.items():
        if value is not None:
            query = query.where(getattr(HistoryEntry, name) == value)
    if since is not None:
        query = query.where(HistoryEntry.at >= since)
    if until is not None:
        query = query.where(HistoryEntry.at < until)
    found = session.execute(query.where(AuditEntry.seq > after).order_by(AuditEntry.seq).limit(limit))
    return [(entry, row) for entry, row in found]
