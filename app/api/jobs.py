"""/v1/jobs: the work behind a request, and what it tells while it runs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field

from app.api.dependencies import After, Lethe, Limit, Page, moment, need, paged, position
from app.deployment import Deployment
from app.errors import NotFound
from app.records import job as jobs
from app.records import job_event
from app.records.api_key import ApiKey
from app.records.request import Request as DeletionRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
Reader = Annotated[ApiKey, Depends(need("requests:read"))]


class JobOut(BaseModel):
    id: str
    request: str
    method: str
    recipe: dict[str, Any] = Field(description="Resolved: every hyper-parameter.")
    rung: int = Field(description="Of the request's ladder, from 0.")
    status: jobs.Status
    stage: str | None = Field(description="loading, unlearning, evaluating or registering, while it runs.")
    progress: dict[str, Any] = Field(description="step, total and seconds_left of the stage.")
    attempts: int = Field(description="How many leases it has had.")
    crashes: int
    cancel_requested: bool
    error: dict[str, Any] | None
    unlearning_seconds: float | None = Field(description="Of the method alone, once it succeeded.")
    deadline: str
    created_at: str
    started_at: str | None
    finished_at: str | None


class EventOut(BaseModel):
    seq: int = Field(description="1, 2, 3, ... without gaps.")
    at: str
    kind: str = Field(description="stage, progress or note.")
    data: dict[str, Any] = Field(
        description="stage: its name. progress: step, total, seconds_left and the step's figures."
    )


@router.get("/{job_id}", response_model=JobOut)
def get_job(job_id: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One job: its stage, how far it is, and why it failed."""
    job = _find(lethe, job_id, key)
    if job.status in (jobs.Status.QUEUED, jobs.Status.RUNNING):
        response.headers["Retry-After"] = "1"
    return {
        "id": job.id,
        "request": job.request_id,
        "method": job.method,
        "recipe": job.recipe,
        "rung": job.rung,
        "status": job.status,
        "stage": job.stage,
        "progress": job.progress,
        "attempts": job.lease_token,
        "crashes": job.crashes,
        "cancel_requested": job.cancel_requested,
        "error": job.error,
        "unlearning_seconds": job.unlearning_seconds,
        "deadline": moment(job.deadline),
        "created_at": moment(job.created_at),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
    }


@router.get("/{job_id}/events", response_model=Page[EventOut])
def list_events(
    job_id: str,
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Reader,
    limit: Limit = 100,
    after: After = None,
) -> dict[str, Any]:
    """Events in order, numbered without gaps. `after` is the number of the last one you have."""
    job = _find(lethe, job_id, key)
    with lethe.store.read() as session:
        found = job_event.page(session, job.id, after=position(after), limit=limit + 1)
    page = paged(found, limit, lambda event: str(event.seq), request, response)
    events = [
        {"seq": event.seq, "at": moment(event.at), "kind": event.kind, "data": event.data} for event in page["data"]
    ]
    return {**page, "data": events}


def _find(lethe: Deployment, job_id: str, key: ApiKey) -> jobs.Job:
    with lethe.store.read() as session:
        job = session.get(jobs.Job, job_id)
        request = session.get(DeletionRequest, job.request_id) if job else None
    if job is None or request is None or (request.created_by != key.actor and "requests:admin" not in key.scopes):
        raise NotFound("job")
    return job
