"""Keyed digests of samples that completed requests named: they never enter a later retain set of the model."""

from sqlalchemy import select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, now


class Tombstone(Record):
    __tablename__ = "tombstones"

    model_id: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str]
    created_at: Mapped[float]


def lay(session: Session, model_id: str, request_id: str, fingerprints: set[str]) -> None:
    known = of_model(session, model_id)
    clock = session.scalar(select(now())) or 0.0
    session.add_all(
        Tombstone(model_id=model_id, fingerprint=mark, request_id=request_id, created_at=clock)
        for mark in sorted(fingerprints - known)
    )


def of_model(session: Session, model_id: str) -> set[str]:
    return set(session.scalars(select(Tombstone.fingerprint).where(Tombstone.model_id == model_id)))
