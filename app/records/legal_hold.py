"""Legal holds: while a request has one, what it brought and what it named is not purged.

Taken and lifted under a lock on the request's row, as a purge is: one of the two is first, and the other sees it.
"""

from enum import StrEnum

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.errors import Refused
from app.records import history
from app.records.base import Record, now


class Code(StrEnum):
    LEGAL_CLAIMS = "legal_claims"
    AUTHORITY_ORDER = "authority_order"
    AUDIT = "audit"
    OTHER = "other"


class LegalHold(Record):
    __tablename__ = "legal_holds"

    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), primary_key=True)
    code: Mapped[str]
    since: Mapped[float]
    by: Mapped[str]


def put(session: Session, request_id: str, code: Code, actor: str) -> LegalHold:
    """The same one again changes nothing. There is one at a time: whoever lifts it must not end another one with it."""
    held = session.get(LegalHold, request_id)
    if held is not None and (held.code, held.by) == (code, actor):
        return held
    if held is not None:
        raise Refused(
            "hold-stands",
            "request",
            "Another hold stands, by another key or for another reason; until it is lifted nothing is purged.",
            "Leave it, or lift it first: what is overdue may be purged before yours.",
            409,
        )
    held = LegalHold(request_id=request_id, code=code, since=session.scalar(select(now())), by=actor)
    session.add(held)
    history.write(session, actor, "request.held", request_id, request_id, {"code": code})
    return held


def lift(session: Session, held: LegalHold, actor: str) -> None:
    session.delete(held)
    history.write(session, actor, "request.hold_lifted", held.request_id, held.request_id, {"code": held.code})


def of_requests(session: Session, request_ids: list[str]) -> dict[str, LegalHold]:
    held = session.scalars(select(LegalHold).where(LegalHold.request_id.in_(request_ids)))
    return {each.request_id: each for each in held}
