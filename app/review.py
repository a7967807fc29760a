"""What persons decide of a request before it is queued: whether who asked is who they say, and whether it is done.

Whoever decides holds the request's row, so of two decisions at once, or a decision and a cancel, one comes first and the other
finds the request moved. The step that makes it queued adds its job and orders the bell in the same transaction.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.errors import Conflict, NotFound, SameKey
from app.idempotency import UNKEYED, Once
from app.privacy import purge
from app.records import history
from app.records import job as jobs
from app.records import request as requests
from app.records.base import now
from app.records.request import Request, Status

VERIFY, APPROVE = "requests:verify", "requests:approve"


class Outcome(StrEnum):
    VERIFIED = "verified"
    REJECTED = "rejected"


class Means(StrEnum):
    """How it was found out who asked."""

    EMAIL_LOOP = "email_loop"
    ACCOUNT_LOGIN = "account_login"
    IDENTITY_DOCUMENT = "identity_document"
    AUTHORISED_AGENT = "authorised_agent"
    IN_PERSON = "in_person"
    OTHER = "other"


class Denial(StrEnum):
    IDENTITY_NOT_VERIFIED = "identity_not_verified"
    MANIFESTLY_UNFOUNDED = "manifestly_unfounded"
    EXCESSIVE = "excessive"
    LEGAL_OBLIGATION = "legal_obligation"
    FREEDOM_OF_EXPRESSION = "freedom_of_expression"
    PUBLIC_INTEREST = "public_interest"
    LEGAL_CLAIMS = "legal_claims"
    NOT_PERSONAL_DATA = "not_personal_data"
    DUPLICATE = "duplicate"
    OTHER = "other"


@dataclass(frozen=True)
class Check:
    """An outside check of who asked. `reference` is its id there."""

    outcome: Outcome
    method: Means
    reference: str | None


def verify(lethe: Deployment, request_id: str, check: Check, actor: str, once: Once = UNKEYED) -> str:
    """Verified: the request waits for approval or is queued. Rejected: it is denied, and its forget set purged."""
    with lethe.store.write() as session:
        once.claim(session, request_id)
        request = _held(session, request_id, actor)
        _refuse_unless(request, Status.AWAITING_VERIFICATION)
        said = {"outcome": check.outcome, "method": check.method}
        request.verification = _signed(session, actor, {**said, "reference": check.reference})
        history.write(session, actor, "request.checked", request_id, request_id, said)
        if check.outcome == Outcome.VERIFIED:
            _go_on(session, request, actor)
        else:
            requests.move(session, request_id, Status.DENIED, actor, Denial.IDENTITY_NOT_VERIFIED)
    _purge_if_denied(lethe, request_id)
    return request_id


def approve(lethe: Deployment, request_id: str, actor: str, once: Once = UNKEYED) -> str:
    """The request is queued."""
    with lethe.store.write() as session:
        once.claim(session, request_id)
        request = _held(session, request_id, actor)
        _refuse_unless(request, Status.AWAITING_APPROVAL)
        request.decision = _signed(session, actor, {"outcome": "approved"})
        history.write(session, actor, "request.approved", request_id, request_id)
        _go_on(session, request, actor)
    return request_id


def deny(lethe: Deployment, request_id: str, code: Denial, actor: str, once: Once = UNKEYED) -> str:
    """The request ends while it waits for a person; its forget set is purged."""
    with lethe.store.write() as session:
        once.claim(session, request_id)
        request = _held(session, request_id, actor)
        _refuse_unless(request, *requests.WAITING)
        request.decision = _signed(session, actor, {"outcome": "denied"})
        requests.move(session, request_id, Status.DENIED, actor, code)
    _purge_if_denied(lethe, request_id)
    return request_id


def _held(session: Session, request_id: str, actor: str) -> Request:
    """The request, until the transaction ends. Who made it may not decide on it."""
    if session.get(Request, request_id) is None:
        raise NotFound("request")
    request = requests.hold(session, request_id)
    if request.created_by == actor:
        raise SameKey
    return request


def _refuse_unless(request: Request, *statuses: Status) -> None:
    if request.status not in statuses:
        raise Conflict(f"The request is {request.status}, not {' or '.join(statuses)}.", code="illegal-transition")


def _go_on(session: Session, request: Request, actor: str) -> None:
    if requests.go_on(session, request, actor) == Status.QUEUED:
        jobs.start(session, request)


def _signed(session: Session, actor: str, said: dict[str, Any]) -> dict[str, Any]:
    return {**said, "at": session.scalar(select(now())), "by": actor}


def _purge_if_denied(lethe: Deployment, request_id: str) -> None:
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, lethe.settings)
