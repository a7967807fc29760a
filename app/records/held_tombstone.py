"""What a quarantined version would lay as tombstones if a person released it against its verdict.

Keyed digests, with no effect on any retain set. They go with the request's forget set.
"""

from sqlalchemy import ForeignKey, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record
from app.records.checkpoint import Checkpoint


class HeldTombstone(Record):
    __tablename__ = "held_tombstones"

    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(primary_key=True)


def hold(session: Session, checkpoint_id: str, fingerprints: set[str]) -> None:
    session.add_all(HeldTombstone(checkpoint_id=checkpoint_id, fingerprint=mark) for mark in sorted(fingerprints))


def of_checkpoint(session: Session, checkpoint_id: str) -> set[str]:
    held = select(HeldTombstone.fingerprint).where(HeldTombstone.checkpoint_id == checkpoint_id)
    return set(session.scalars(held))


def drop(session: Session, request_id: str) -> None:
    """Those of all versions of a request."""
    versions = select(Checkpoint.id).where(Checkpoint.request_id == request_id)
    session.execute(delete(HeldTombstone).where(HeldTombstone.checkpoint_id.in_(versions)))
