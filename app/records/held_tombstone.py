"""What a quarantined version would lay as tombstones if a person released it against its verdict.

Keyed digests, with no effect on any retain set. They go with the request's forget set.
"""

from sqlalchemy import ForeignKey, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.privacy.fingerprints import joined, parted
from app.records.base import Record
from app.records.checkpoint import Checkpoint


class HeldTombstone(Record):
    __tablename__ = "held_tombstones"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)
    key_name: Mapped[str]  # of the fingerprint key


def hold(session: Session, checkpoint_id: str, marks: set[str]) -> None:
    for name, digest in sorted(parted(mark) for mark in marks):
        session.add(HeldTombstone(checkpoint_id=checkpoint_id, fingerprint=digest, key_name=name))


def of_checkpoint(session: Session, checkpoint_id: str) -> set[str]:
    held = select(HeldTombstone.key_name, HeldTombstone.fingerprint).where(HeldTombstone.checkpoint_id == checkpoint_id)
    return {joined(name, digest) for name, digest in session.execute(held)}


def under(session: Session, key_name: str) -> list[HeldTombstone]:
    return list(session.scalars(select(HeldTombstone).where(HeldTombstone.key_name == key_name)))


def not_under(session: Session, key_name: str) -> list[HeldTombstone]:
    return list(session.scalars(select(HeldTombstone).where(HeldTombstone.key_name != key_name)))


def drop(session: Session, request_id: str) -> None:
    """Those of all versions of a request."""
    versions = select(Checkpoint.id).where(Checkpoint.request_id == request_id)
    session.execute(delete(HeldTombstone).where(HeldTombstone.checkpoint_id.in_(versions)))
