"""Deletion requests: what was asked, by whom, until when, and how it ended.

What names the person (concept, sample ids, class) is one sealed column; the data key lies outside the database.

    queued -> running -> completed | evaluation_failed | failed | cancelled
    running -> queued                 the worker was lost or drained, and the job waits again; or the next rung does
    failed | evaluation_failed -> queued       a person retries
    evaluation_failed -> completed    a person released its version against the verdict
    completed -> reopened             an alias was rolled back to a version that lacks what was forgotten
    reopened -> completed             no alias points at such a version any more
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, Index, LargeBinary, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.errors import Conflict
from app.records import history
from app.records.base import Record, changed, now
from app.records.legal_hold import LegalHold
from app.records.model import Model

DAY = 86400.0


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    EVALUATION_FAILED = "evaluation_failed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REOPENED = "reopened"


TERMINAL = (Status.COMPLETED, Status.EVALUATION_FAILED, Status.FAILED, Status.CANCELLED)
MOVES: dict[Status, tuple[Status, ...]] = {
    Status.QUEUED: (Status.RUNNING, Status.CANCELLED, Status.FAILED),
    Status.RUNNING: (Status.QUEUED, *TERMINAL),
    Status.FAILED: (Status.QUEUED,),
    Status.EVALUATION_FAILED: (Status.QUEUED, Status.COMPLETED),
    Status.COMPLETED: (Status.REOPENED,),
    Status.REOPENED: (Status.COMPLETED,),
    Status.CANCELLED: (),
}


class Request(Record):
    __tablename__ = "requests"
    __table_args__ = (
        Index("ix_requests_created_by_id", "created_by", "id"),
        Index("ix_requests_status_id", "status", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    external_id: Mapped[str | None] = mapped_column(index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    status: Mapped[str]
    reason: Mapped[
        str | None
    ]  # a code: worker_lost, threshold_missed, broken_promise, next_rung, overridden, rolled_back, ...
    sealed: Mapped[bytes] = mapped_column(LargeBinary)  # concept and what to forget, under the request's own key
    forget_kind: Mapped[str]
    forget_count: Mapped[int]
    forget_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    method: Mapped[str]  # a method's name, or auto
    ladder: Mapped[list[Any]]  # rungs: method and resolved recipe; of a named method one
    seed: Mapped[int]
    reference_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    requested_at: Mapped[float]
    due_at: Mapped[float]
    created_by: Mapped[str]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    purged_at: Mapped[float | None]

    @property
    def key_id(self) -> str:
        return self.id


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
    sources = [status for status, targets in MOVES.items() if to in targets]
    finished = now() if to in TERMINAL else None
    moved = update(Request).where(Request.id == request_id, Request.status.in_(sources))
    if not changed(session, moved.values(status=to, reason=reason, finished_at=finished)):
        raise Conflict(f"The request cannot become {to} from its present status.", code="illegal-transition")
    said = ({"reason": reason} if reason else {}) | (details or {})
    history.write(session, actor, f"request.{to}", request_id, request_id, said)


def hold(session: Session, request_id: str) -> Request:
    """The request; until the transaction ends nobody moves it."""
    return session.get_one(Request, request_id, with_for_update=True, populate_existing=True)


def page(
    session: Session,
    *,
    owner: str | None,
    after: str | None,
    limit: int,
    status: str | None = None,
    model_id: str | None = None,
    external_id: str | None = None,
) -> list[Request]:
    """Newest first. `owner` None means everybody's."""
    query = select(Request).order_by(Request.id.desc()).limit(limit)
    for column, value in (
        (Request.created_by, owner),
        (Request.status, status),
        (Request.model_id, model_id),
        (Request.external_id, external_id),
    ):
        if value is not None:
            query = query.where(column == value)
    return list(session.scalars(query.where(Request.id < after) if after is not None else query))


def with_status(session: Session, ids: list[str], status: Status) -> list[str]:
    """Those of these requests that have the status, oldest first."""
    return list(
        session.scalars(select(Request.id).where(Request.id.in_(ids), Request.status == status).order_by(Request.id))
    )


def reopened(session: Session, model_id: str) -> list[str]:
    query = select(Request.id).where(Request.model_id == model_id, Request.status == Status.REOPENED)
    return list(session.scalars(query.order_by(Request.id)))


def past_retention(session: Session, failed_days: float, request_id: str | None = None) -> list[str]:
    """Ended requests, or this one, whose forget set must go now, by what their models say at present and where they say
    nothing: at once, or after `failed_days` where a retry is possible. Those under a legal hold stay."""
    at_once = Request.status.in_([Status.CANCELLED, Status.REOPENED])
    retriable = Request.status.in_([Status.FAILED, Status.EVALUATION_FAILED])
    ended = _past(Request.status == Status.COMPLETED, "completed_days", 0) | _past(
        retriable, "failed_days", failed_days
    )
    due = (
        select(Request.id).join(Model, Model.id == Request.model_id).where(Request.purged_at.is_(None), at_once | ended)
    )
    due = due.where(~select(LegalHold.request_id).where(LegalHold.request_id == Request.id).exists())
    return list(session.scalars((due if request_id is None else due.where(Request.id == request_id)).limit(500)))


def _past(ended: ColumnElement[bool], policy: str, otherwise: float) -> ColumnElement[bool]:
    """Whether as many days have gone by as the model's retention says under this name."""
    days = func.coalesce(Model.retention[policy].as_float(), otherwise)
    return ended & (func.coalesce(Request.finished_at, Request.created_at) <= now() - days * DAY)
