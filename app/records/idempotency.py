"""Which POST with an Idempotency-Key made what: one row each, kept for a day.

Both texts are keyed digests: who reads the database can neither tell what a client named its key nor test guesses of a body.
"""

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, now

SECONDS = 86400.0


class IdempotencyKey(Record):
    __tablename__ = "idempotency_keys"

    id: Mapped[str] = mapped_column(primary_key=True)  # keyed digest of caller and key
    digest: Mapped[str]  # keyed digest of path, query and body
    status: Mapped[int]
    resource: Mapped[str]  # id of what was made; the answer is rendered from it anew
    created_at: Mapped[float] = mapped_column(index=True)


def find(session: Session, key_id: str) -> IdempotencyKey | None:
    found = session.get(IdempotencyKey, key_id)
    if found is None or found.created_at < (session.scalar(select(now())) or 0.0) - SECONDS:
        return None
    return found


def claim(session: Session, key: IdempotencyKey) -> IdempotencyKey | None:
    """Insert the key. None, or the row of the POST that was first: a concurrent one is waited for until it has ended."""
    session.execute(
        delete(IdempotencyKey).where(IdempotencyKey.id == key.id, IdempotencyKey.created_at < now() - SECONDS)
    )
    key.created_at = session.scalar(select(now())) or 0.0
    try:
        with session.begin_nested():
            session.add(key)
    except IntegrityError:
        first = session.get_one(IdempotencyKey, key.id)
        session.expunge(first)  # the caller reads it after its transaction was rolled back
        return first
    return None


def forget_old(session: Session) -> None:
    session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now() - SECONDS))
