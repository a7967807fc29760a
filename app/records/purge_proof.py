"""What is known of a set before it is erased, so that a purge that was interrupted still proves what it erased.

One row for each request, and for each set that was erased without one. Digests and counts only.
"""

from typing import Any

from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record


class PurgeProof(Record):
    __tablename__ = "purge_proofs"

    resource: Mapped[str] = mapped_column(primary_key=True)  # id of the request, or of the set
    document: Mapped[dict[str, Any]]


def find(session: Session, resource: str) -> dict[str, Any] | None:
    row = session.get(PurgeProof, resource)
    return None if row is None else row.document


def keep(session: Session, resource: str, document: dict[str, Any]) -> None:
    """The first one stays: what a later attempt finds may be erased in part. The caller holds the resource's row."""
    if find(session, resource) is None:
        session.add(PurgeProof(resource=resource, document=document))


def change(session: Session, resource: str, document: dict[str, Any]) -> dict[str, Any]:
    """Replace what was kept, with the purge itself; it is returned."""
    session.get_one(PurgeProof, resource).document = document
    return document
