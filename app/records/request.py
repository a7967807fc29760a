"""Deletion requests: what was asked, by whom, until when, and how it ended.

What names the person (concept, sample ids, class) is one sealed column; the data key lies outside the database.

    awaiting_verification -> awaiting_approval -> queued       each only where the model's process asks for it
    awaiting_* -> denied | expired | cancelled      a person says so; the sweeper, past the due date; who asked
    queued -> running -> completed | evaluation_failed | failed | cancelled
    running -> queued                 the worker was lost or drained, and the job waits again; or the next rung does
    failed | evaluation_failed -> queued       a person retries
    evaluation_failed -> completed    a person released its version against the verdict
    completed -> reopened             an alias was rolled back to a version that lacks what was forgotten
    reopened -> completed             no alias points at such a version any more
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, LargeBinary, Select, case, func, select, tuple_, update
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from app.errors import Conflict
from app.records import history
from app.records.base import Record, changed, now
from app.records.legal_hold import LegalHold
from app.records.model import Model, Step

DAY = 86400.0


class Status(StrEnum):
    AWAITING_VERIFICATION = "awaiting_verification"
    AWAITING_APPROVAL = "awaiting_approval"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    EVALUATION_FAILED = "evaluation_failed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DENIED = "denied"
    EXPIRED = "expired"
    REOPENED = "reopened"


AWAITING = {Step.VERIFICATION: Status.AWAITING_VERIFICATION, Step.APPROVAL: Status.AWAITING_APPROVAL}
WAITING = tuple(AWAITING.values())  # for a person: no job exists yet
LIVE = (*WAITING, Status.QUEUED, Status.RUNNING)
RETRIABLE = (Status.FAILED, Status.EVALUATION_FAILED)
AT_ONCE = (
    Status.CANCELLED,
    Status.DENIED,
    Status.EXPIRED,
    Status.REOPENED,
)  # purged so, whatever the model's retention
TERMINAL = (Status.COMPLETED, *RETRIABLE, Status.CANCELLED, Status.DENIED, Status.EXPIRED)
WITHOUT_WORK = (Status.DENIED, Status.EXPIRED, Status.CANCELLED)  # ends of a request that waits; nothing follows them
KEPT = (Status.COMPLETED, Status.REOPENED)  # later versions are asked about what these named
MOVES: dict[Status, tuple[Status, ...]] = {
    Status.AWAITING_VERIFICATION: (Status.AWAITING_APPROVAL, Status.QUEUED, *WITHOUT_WORK),
    Status.AWAITING_APPROVAL: (Status.QUEUED, *WITHOUT_WORK),
    Status.QUEUED: (Status.RUNNING, Status.CANCELLED, Status.FAILED),
    Status.RUNNING: (Status.QUEUED, Status.COMPLETED, *RETRIABLE, Status.CANCELLED),
    Status.FAILED: (Status.QUEUED,),
    Status.EVALUATION_FAILED: (Status.QUEUED, Status.COMPLETED),
    Status.COMPLETED: (Status.REOPENED,),
    Status.REOPENED: (Status.COMPLETED,),
    Status.CANCELLED: (),
    Status.DENIED: (),
    Status.EXPIRED: (),
}


class Request(Record):
    __tablename__ = "requests"
    __table_args__ = (
        Index("ix_requests_created_by_id", "created_by", "id"),
        Index("ix_requests_status_id", "status", "id"),
        Index("ix_requests_due_at_id", "due_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    external_id: Mapped[str | None] = mapped_column(index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    status: Mapped[str]
    reason: Mapped[
        str | None
    ]  # a code: worker_lost, threshold_missed, judge_unfit, broken_promise, next_rung, overridden, rolled_back, why it was denied, ...
    needs: Mapped[list[Any]] = mapped_column(
        default=list
    )  # steps ahead of it, fixed when it was posted; it waits for the first
    verification: Mapped[dict[str, Any] | None]  # outcome, method, reference, at, by
    decision: Mapped[dict[str, Any] | None]  # outcome, at, by
    extension: Mapped[dict[str, Any] | None]  # code, notified_at, due_before, at, by
    sealed: Mapped[bytes] = mapped_column(LargeBinary)  # concept and what to forget, under its own key; empty: erased
    fingerprint: Mapped[str | None] = mapped_column(index=True)  # keyed digest of what it asks of the model
    forget_kind: Mapped[str]
    forget_count: Mapped[int]
    forget_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    method: Mapped[str]  # a method's name, or auto
    ladder: Mapped[list[Any]]  # rungs: method and resolved recipe; of a named method one
    seed: Mapped[int]
    reference_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    regime: Mapped[str] = mapped_column(default="other")  # see app.deadlines
    requested_at: Mapped[float]
    due_at: Mapped[float]
    created_by: Mapped[str]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    purged_at: Mapped[float | None]

    @property
    def key_id(self) -> str:
        return self.id

    @property
    def unanswered(self) -> bool:
        """Whether its deadline still runs: it has not ended, was reopened, or failed and may be retried."""
        reopened = self.status == Status.REOPENED
        return self.finished_at is None or reopened or (self.status in RETRIABLE and self.purged_at is None)


def add(session: Session, request: Request) -> None:
    session.add(request)
    session.flush()
    details = {"method": request.method, "forget_kind": request.forget_kind, "forget_count": request.forget_count}
    history.write(session, request.created_by, "request.received", request.id, request.id, details)


def move(
    session: Session,
    request_id: str,
    to: Status,
    actor: str,
    reason: str | None = None,
    details: dict[str, Any] | None = None,
) -> None:
    """One transition, with its history row, which has `details` too. Raises Conflict when the present status does not allow it."""
    sources = tuple(status for status, targets in MOVES.items() if to in targets)
    if not _moved(session, request_id, sources, to, actor, reason, details):
        raise Conflict(f"The request cannot become {to} from its present status.", code="illegal-transition")


def _moved(
    session: Session,
    request_id: str,
    sources: tuple[Status, ...],
    to: Status,
    actor: str,
    reason: str | None = None,
    details: dict[str, Any] | None = None,
) -> bool:
    moved = update(Request).where(Request.id == request_id, Request.status.in_(sources))
    if not changed(session, moved.values(status=to, reason=reason, finished_at=_finished(to))):
        return False
    said = ({"reason": reason} if reason else {}) | (details or {})
    history.write(session, actor, f"request.{to}", request_id, request_id, said)
    return True


def _finished(to: Status) -> Any:
    """When it ended, once it has. One that is reopened, and completed again, was done in time if it was the first time."""
    if to == Status.REOPENED:
        return Request.finished_at
    if to == Status.COMPLETED:
        return case((Request.status == Status.REOPENED, func.coalesce(Request.finished_at, now())), else_=now())
    return now() if to in TERMINAL else None


def awaited(needs: list[Any]) -> Status:
    """The status of a request that has these steps ahead of it."""
    return AWAITING[Step(needs[0])] if needs else Status.QUEUED


def go_on(session: Session, request: Request, actor: str) -> Status:
    """The step that it waits for is done: it waits for the next one, or is queued, and then the caller adds its job. The
    caller holds the request."""
    request.needs = request.needs[1:]
    after = awaited(request.needs)
    move(session, request.id, after, actor)
    return after


def cancel_waiting(session: Session, request_id: str, actor: str) -> bool:
    """Cancel it if it waits for a person; false when it does not, so that its job must be asked."""
    return _moved(session, request_id, WAITING, Status.CANCELLED, actor)


def expire_waiting(session: Session, actor: str) -> list[str]:
    """End those for which nobody decided until they were due; their ids."""
    late = (
        select(Request).where(Request.status.in_(WAITING), Request.due_at < now()).order_by(Request.due_at).limit(500)
    )
    found = list(session.scalars(late.with_for_update(skip_locked=True)))
    for request in found:
        _moved(session, request.id, WAITING, Status.EXPIRED, actor, f"no_{request.needs[0]}")
    return [request.id for request in found]


def hold(session: Session, request_id: str) -> Request:
    """The request; until the transaction ends nobody moves it."""
    return session.get_one(Request, request_id, with_for_update=True, populate_existing=True)


@dataclass(frozen=True)
class Filters:
    """Which requests are listed; None: whichever. `owner`: whose. `duplicate_of`: those that ask the same of the same model."""

    owner: str | None = None
    status: str | None = None
    model_id: str | None = None
    external_id: str | None = None
    duplicate_of: Request | None = None


def page(session: Session, filters: Filters, *, after: str | None, limit: int) -> list[Request]:
    """Newest first."""
    query = _filtered(filters).order_by(Request.id.desc()).limit(limit)
    return list(session.scalars(query.where(Request.id < after) if after is not None else query))


def at_risk(
    session: Session, filters: Filters, *, seconds: float, after: tuple[float, str] | None, limit: int
) -> list[Request]:
    """Unanswered and due within so many seconds, or overdue; nearest deadline first, from the (due_at, id) `after` on."""
    query = _filtered(filters).where(_unanswered(), Request.due_at <= now() + seconds)
    if after is not None:
        query = query.where(tuple_(Request.due_at, Request.id) > tuple_(*after))
    return list(session.scalars(query.order_by(Request.due_at, Request.id).limit(limit)))


def _unanswered() -> ColumnElement[bool]:
    """`Request.unanswered`, as the database says it."""
    retriable = Request.status.in_(RETRIABLE) & Request.purged_at.is_(None)
    return Request.finished_at.is_(None) | (Request.status == Status.REOPENED) | retriable


def _filtered(filters: Filters) -> Select[Any]:
    query = select(Request)
    for column, value in (
        (Request.created_by, filters.owner),
        (Request.status, filters.status),
        (Request.model_id, filters.model_id),
        (Request.external_id, filters.external_id),
    ):
        if value is not None:
            query = query.where(column == value)
    like = filters.duplicate_of
    if like is not None:  # an erased fingerprint equals no other
        query = query.where(Request.fingerprint == (like.fingerprint or ""), Request.id != like.id)
    return query


def with_status(session: Session, ids: list[str], status: Status) -> list[str]:
    """Those of these requests that have the status, oldest first."""
    return list(
        session.scalars(select(Request.id).where(Request.id.in_(ids), Request.status == status).order_by(Request.id))
    )


def unended(session: Session) -> list[str]:
    """Ids of requests that are worked on, or may be."""
    return list(session.scalars(select(Request.id).where(Request.status.in_(LIVE))))


def reopened(session: Session, model_id: str) -> list[str]:
    query = select(Request.id).where(Request.model_id == model_id, Request.status == Status.REOPENED)
    return list(session.scalars(query.order_by(Request.id)))


def any_held(session: Session, model_id: str) -> bool:
    """Whether a request of the model is under legal hold."""
    held = select(Request.id).join(LegalHold, LegalHold.request_id == Request.id).where(Request.model_id == model_id)
    return session.scalar(held.limit(1)) is not None


def past_retention(session: Session, failed_days: float, request_id: str | None = None) -> list[str]:
    """Ended requests, or this one, whose forget set must go now, by what their models say at present and where they say
    nothing: at once, or after `failed_days` where a retry is possible. Those under a legal hold stay."""
    at_once = Request.status.in_(AT_ONCE)
    completed = _past(Request.status == Status.COMPLETED, "completed_days", 0)
    ended = completed | _past(Request.status.in_(RETRIABLE), "failed_days", failed_days)
    due = (
        select(Request.id).join(Model, Model.id == Request.model_id).where(Request.purged_at.is_(None), at_once | ended)
    )
    due = due.where(~select(LegalHold.request_id).where(LegalHold.request_id == Request.id).exists())
    return list(session.scalars((due if request_id is None else due.where(Request.id == request_id)).limit(500)))


def _past(ended: ColumnElement[bool], policy: str, otherwise: float) -> ColumnElement[bool]:
    """Whether as many days have gone by as the model's retention says under this name."""
    days = func.coalesce(Model.retention[policy].as_float(), otherwise)
    return ended & (func.coalesce(Request.finished_at, Request.created_at) <= now() - days * DAY)


def fingerprinted(session: Session) -> int:
    """How many requests can be told as earlier ones."""
    return session.scalar(select(func.count()).select_from(Request).where(Request.fingerprint.is_not(None))) or 0


def drop_fingerprints(session: Session) -> None:
    session.execute(update(Request).where(Request.fingerprint.is_not(None)).values(fingerprint=None))


def duplicates(session: Session, ids: list[str], owner: str | None, most: int) -> dict[str, list[str]]:
    """For each of these requests the earlier ones that ask the same of the same model, newest first, at most `most`.
    `owner` None means everybody's."""
    earlier = aliased(Request)
    place = func.row_number().over(partition_by=Request.id, order_by=earlier.id.desc()).label("place")
    same = (earlier.fingerprint == Request.fingerprint) & (earlier.id < Request.id)
    pairs = select(Request.id, earlier.id.label("earlier"), place).join(earlier, same).where(Request.id.in_(ids))
    found = (pairs.where(earlier.created_by == owner) if owner is not None else pairs).subquery()
    told: dict[str, list[str]] = {request_id: [] for request_id in ids}
    for row in session.execute(select(found).where(found.c.place <= most).order_by(found.c.id, found.c.place)):
        told[row.id].append(row.earlier)
    return told
