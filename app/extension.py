"""More time for a request, once, as its regime allows: the request is due later, and so is its job in the queue."""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select

from app.deadlines import Regime, last_due
from app.deployment import Deployment
from app.errors import Conflict, Refused
from app.idempotency import UNKEYED, Once
from app.records import history
from app.records import job as jobs
from app.records import request as requests
from app.records.base import now
from app.records.request import Request
from app.submission import CLOCK_SKEW, DAY, LONGEST_DEADLINE


class Code(StrEnum):
    COMPLEXITY = "complexity"
    NUMBER_OF_REQUESTS = "number_of_requests"


@dataclass(frozen=True)
class Extension:
    """Why, when the person was told, and until when: by default as long as the regime allows."""

    code: Code
    notified_at: float
    due_at: float | None


def extend(lethe: Deployment, request_id: str, extension: Extension, actor: str, once: Once = UNKEYED) -> str:
    """One transaction. Rows are locked in the order in which workers do: jobs, request."""
    with lethe.store.write() as session:
        once.claim(session, request_id)
        jobs.hold_rungs(session, request_id)
        request = requests.hold(session, request_id)
        clock = session.scalar(select(now())) or 0.0
        _refuse_unless_extensible(request, clock)
        _refuse_unless_told_in_time(request, extension.notified_at, clock)
        due = _due(request, extension.due_at, clock)
        said = {"code": extension.code, "notified_at": extension.notified_at, "due_before": request.due_at}
        request.extension = {**said, "at": clock, "by": actor}
        days = round((due - request.due_at) / DAY)
        request.due_at = due
        jobs.redate(session, request_id, due)
        details = {"code": extension.code, "days": days}
        history.write(session, actor, "request.extended", request_id, request_id, details)
    return request_id


def _refuse_unless_extensible(request: Request, clock: float) -> None:
    if request.status not in requests.LIVE:
        raise Conflict(f"The request is {request.status}: its deadline runs no more.", code="illegal-transition")
    if request.extension is not None:
        raise Conflict("The request was extended before, and that is allowed once.", code="already-extended")
    if clock > request.due_at:
        raise Conflict("The first period has ended: it can be extended no more.", code="deadline-passed")


def _refuse_unless_told_in_time(request: Request, notified_at: float, clock: float) -> None:
    if not request.requested_at - CLOCK_SKEW <= notified_at <= min(request.due_at, clock + CLOCK_SKEW):
        raise Refused(
            "out-of-bounds",
            "notified_at",
            "It must lie between the request and its first due date, and not in the future.",
            "Tell the person first, and name the time at which you did.",
        )


def _due(request: Request, wished: float | None, clock: float) -> float:
    latest = last_due(Regime(request.regime), request.requested_at)
    if wished is None and latest is None:
        raise Refused("due-date-missing", "due_at", "This regime names no date.", "Name until when it will be done.")
    due = wished if wished is not None else latest
    assert due is not None
    if not request.due_at < due <= (latest or clock + LONGEST_DEADLINE):
        raise Refused(
            "out-of-bounds",
            "due_at",
            "It must lie after the present due date, and not after what the regime allows.",
            "Leave it out for the longest that the regime allows; without one, at most ten years from now.",
        )
    return due
