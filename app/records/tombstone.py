"""Keyed digests of samples that completed requests named: they never enter a later retain set of the model.

A row's digest was made with the fingerprint key that it names; callers see both as one mark (app/privacy/fingerprints.py).
"""

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.privacy.fingerprints import joined, parted
from app.records.base import Record, now


class Tombstone(Record):
    __tablename__ = "tombstones"

    model_id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    key_name: Mapped[str]
    request_id: Mapped[str]
    created_at: Mapped[float]


def lay(session: Session, model_id: str, request_id: str, marks: set[str]) -> None:
    known = of_model(session, model_id)
    clock = session.scalar(select(now())) or 0.0
    for mark in sorted(marks - known):
        key, digest = parted(mark)
        session.add(
            Tombstone(model_id=model_id, fingerprint=digest, key_name=key, request_id=request_id, created_at=clock)
        )


def of_model(session: Session, model_id: str) -> set[str]:
    found = select(Tombstone.key_name, Tombstone.fingerprint).where(Tombstone.model_id == model_id)
    return {joined(name, digest) for name, digest in session.execute(found)}


def under(session: Session, key_name: str) -> list[Tombstone]:
    return list(session.scalars(select(Tombstone).where(Tombstone.key_name == key_name)))


def not_under(session: Session, key_name: str) -> list[Tombstone]:
    return list(session.scalars(select(Tombstone).where(Tombstone.key_name != key_name)))


def counts(session: Session) -> dict[str, int]:
    """How many there are by key."""
    query = select(Tombstone.key_name, func.count()).group_by(Tombstone.key_name)
    return {str(row[0]): int(row[1]) for row in session.execute(query)}


def drop_under(session: Session, key_name: str) -> None:
    session.execute(delete(Tombstone).where(Tombstone.key_name == key_name))
