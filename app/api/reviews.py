"""/v1/requests/{request_id}: what persons decide: verification, approval, denial, more time."""

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from app import extension, review
from app.api.dependencies import Lethe, Moment, moment, need
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.api.request_schemas import REFERENCE, RequestOut
from app.api.requests import accepted, find
from app.deployment import Deployment
from app.extension import Extension
from app.queue import ring
from app.records.api_key import ApiKey
from app.records.request import Request, Status
from app.review import APPROVE, VERIFY, Check, Denial, Means, Outcome

router = APIRouter(prefix="/v1/requests/{request_id}", tags=["requests"])
Verifier = Annotated[ApiKey, Depends(need(VERIFY))]
Approver = Annotated[ApiKey, Depends(need(APPROVE))]


class VerificationIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"outcome": "verified", "method": "email_loop", "reference": "check/4711"}]},
    )
    outcome: Outcome = Field(description="rejected: the request is denied, for good.")
    method: Means = Field(description="How it was found out.")
    reference: str | None = Field(
        None,
        max_length=200,
        pattern=REFERENCE,
        description="Id of the check where it was made. Not a name: it is stored in plain.",
    )


class VerificationOut(BaseModel):
    """What a verifier learns of a request: no more than whether it goes on."""

    request: str
    status: Status
    outcome: Outcome
    method: Means
    reference: str | None
    at: str
    by: str


class DenialIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"code": "legal_obligation"}]})
    code: Denial = Field(description="Why; it becomes the request's `reason`.")


class ExtensionIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"code": "complexity", "notified_at": "2027-01-20T09:00:00Z"}]},
    )
    code: extension.Code = Field(description="Why it takes longer.")
    notified_at: Moment = Field(
        description="When the person was told: not in the future, nor after the first due date."
    )
    due_at: Moment | None = Field(
        None, description="Until when. gdpr, ccpa: default, and at most, what the regime allows. other: needed."
    )


@router.post("/verification", response_model=VerificationOut, responses=refusals(409))
def verify_request(
    request_id: str,
    body: VerificationIn,
    background: BackgroundTasks,
    response: Response,
    lethe: Lethe,
    key: Verifier,
    once: Idempotent,
) -> dict[str, Any]:
    """Say whether who asked is who they say, for anybody's request that waits for it: an outside check that calls back, or a
    person. 403 for the key that made the request, 409 when it does not wait for verification."""
    check = Check(body.outcome, body.method, body.reference)
    once.made(lambda: review.verify(lethe, request_id, check, key.actor, once))
    _go(lethe, once.replayed is not None, background)
    tell(once, response)
    with lethe.store.read() as session:
        request = session.get_one(Request, request_id)
    said = request.verification or {}
    return {"request": request.id, "status": request.status, **said, "at": moment(said["at"])}


@router.post("/approve", status_code=202, response_model=RequestOut, responses=refusals(409))
def approve_request(
    request_id: str, background: BackgroundTasks, response: Response, lethe: Lethe, key: Approver, once: Idempotent
) -> dict[str, Any]:
    """Approve a request that waits for it: it is queued. 403 for the key that made it, whatever its scopes; 409 when it does not
    wait for approval."""
    found = find(lethe, request_id, key)
    once.made(lambda: review.approve(lethe, found.id, key.actor, once))
    _go(lethe, once.replayed is not None, background)
    tell(once, response)
    return accepted(lethe, found.id, response, key)


@router.post("/deny", response_model=RequestOut, responses=refusals(409))
def deny_request(
    request_id: str, body: DenialIn, response: Response, lethe: Lethe, key: Approver, once: Idempotent
) -> dict[str, Any]:
    """Deny a request that waits for verification or approval, for good; its forget set is purged. 403 for the key that made
    it, which cancels it instead; 409 when it does not wait."""
    found = find(lethe, request_id, key)
    once.made(lambda: review.deny(lethe, found.id, body.code, key.actor, once))
    tell(once, response)
    return accepted(lethe, found.id, response, key)


@router.post("/extend", response_model=RequestOut, responses=refusals(409))
def extend_request(
    request_id: str, body: ExtensionIn, response: Response, lethe: Lethe, key: Approver, once: Idempotent
) -> dict[str, Any]:
    """Take more time, once, before the first period has ended. The request is due later, and moves back in the queue. 409 when it
    has ended, was extended before, or is overdue."""
    found = find(lethe, request_id, key)
    due = body.due_at.timestamp() if body.due_at else None
    wished = Extension(body.code, body.notified_at.timestamp(), due)
    once.made(lambda: extension.extend(lethe, found.id, wished, key.actor, once))
    tell(once, response)
    return accepted(lethe, found.id, response, key)


def _go(lethe: Deployment, replayed: bool, background: BackgroundTasks) -> None:
    """The request may have been queued: ring, once the answer is on its way."""
    if not replayed:
        background.add_task(ring, lethe.celery)
