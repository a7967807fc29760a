"""/v1/jobs: the work behind a request, and what it tells while it runs: as a list, and as it happens."""

import asyncio
import time
from collections.abc import AsyncIterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from app.api.dependencies import After, Lethe, Limit, Page, moment, need, paged, position
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.api.waiting import Prefer, wait_until
from app.deployment import Deployment
from app.errors import Conflict, NotFound
from app.idempotency import Once
from app.records import history, job_event
from app.records import job as jobs
from app.records.api_key import ApiKey
from app.records.request import Request as DeletionRequest

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
STREAM_SECONDS = 600.0  # then the client comes again, with a key that is checked again
LOOK_SECONDS = 0.5
Reader = Annotated[ApiKey, Depends(need("requests:read"))]
Poster = Annotated[ApiKey, Depends(need("requests:create"))]
LIVE = (jobs.Status.QUEUED, jobs.Status.RUNNING)


class JobOut(BaseModel):
    id: str
    request: str
    kind: jobs.Kind = Field(description="unlearn: a rung of the request's ladder. attack: on a version that it made.")
    method: str = Field(description="Empty for an attack.")
    recipe: dict[str, Any] = Field(
        description="Resolved: every hyper-parameter. For an attack job the attacks, each with every parameter."
    )
    rung: int = Field(description="Of the request's ladder, from 0.")
    status: jobs.Status
    stage: str | None = Field(
        description="loading, unlearning, evaluating or registering, while it runs; of an attack job loading or attacking."
    )
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


async def until_ended(
    job_id: str, request: Request, response: Response, lethe: Lethe, key: Reader, prefer: Prefer = None
) -> None:
    await wait_until(lambda: _find(lethe, job_id, key).status not in LIVE, prefer, request, response)


@router.get("/{job_id}", response_model=JobOut, dependencies=[Depends(until_ended)])
def get_job(job_id: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One job: its stage, how far it is, and why it failed; with `Prefer: wait=N`, when it has ended."""
    job = _find(lethe, job_id, key)
    if job.status in LIVE:
        response.headers["Retry-After"] = "1"
    return shown(job)


@router.post("/{job_id}/cancel", status_code=202, response_model=JobOut, responses=refusals(409))
def cancel_attack(job_id: str, response: Response, lethe: Lethe, key: Poster, once: Idempotent) -> dict[str, Any]:
    """Cancel an attack job: at once while queued, within seconds while it runs. 409 when it has ended, and for a rung: cancel its
    request instead."""
    job = _find(lethe, job_id, key)
    once.made(lambda: _cancel(lethe, job, key.actor, once))
    tell(once, response)
    return shown(_find(lethe, job_id, key))


def _cancel(lethe: Deployment, job: jobs.Job, actor: str, once: Once) -> str:
    if job.kind != jobs.Kind.ATTACK:
        raise Conflict("It is a rung of its request's ladder: cancel the request.", code="illegal-transition")
    with lethe.store.write() as session:
        once.claim(session, job.id)
        asked = jobs.ask_to_cancel(session, job.id, actor)
        if asked.status == jobs.Status.RUNNING:
            history.write(session, actor, "job.cancel_asked", job.id, job.request_id)
        elif asked.status != jobs.Status.CANCELLED or job.status not in LIVE:
            raise Conflict("The job has ended.", code="illegal-transition")
    return job.id


def shown(job: jobs.Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "request": job.request_id,
        "kind": job.kind,
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
    return {**page, "data": [_event(event) for event in page["data"]]}


def first_look(
    job_id: str,
    lethe: Lethe,
    key: Reader,
    after: After = None,
    last_event_id: Annotated[str | None, Header(max_length=64, description="Goes before `after`.")] = None,
) -> tuple[str, int]:
    """What can be refused before the stream begins. The job's id, and the number of the last event that the caller has."""
    return _find(lethe, job_id, key).id, position(last_event_id or after)


@router.get("/{job_id}/events/stream", response_class=EventSourceResponse)
async def stream_events(
    lethe: Lethe, start: Annotated[tuple[str, int], Depends(first_look)]
) -> AsyncIterable[ServerSentEvent]:
    """The same events as they happen (server-sent events): `id` is the number, `event` the kind, `data` the event. The last
    one is `end`, with the job's status. After ten minutes the stream closes; come again with `Last-Event-ID`."""
    job_id, seen = start
    until = time.monotonic() + STREAM_SECONDS
    while time.monotonic() < until:
        ended, found = await run_in_threadpool(_since, lethe, job_id, seen)
        for event in found:
            seen = event.seq
            yield ServerSentEvent(data=_event(event), event=event.kind, id=str(seen))
        if ended and not found:
            yield ServerSentEvent(data={"status": ended}, event="end")
            return
        await asyncio.sleep(0 if found else LOOK_SECONDS)


def _since(lethe: Deployment, job_id: str, seen: int) -> tuple[str | None, list[job_event.JobEvent]]:
    """The status, once it is final, and the next events. The status first: no event comes after it."""
    with lethe.store.read() as session:
        status = session.get_one(jobs.Job, job_id).status
        return None if status in LIVE else status, job_event.page(session, job_id, after=seen, limit=100)


def _event(event: job_event.JobEvent) -> dict[str, Any]:
    return {"seq": event.seq, "at": moment(event.at), "kind": event.kind, "data": event.data}


def _find(lethe: Deployment, job_id: str, key: ApiKey) -> jobs.Job:
    with lethe.store.read() as session:
        job = session.get(jobs.Job, job_id)
        request = session.get(DeletionRequest, job.request_id) if job else None
    if job is None or request is None or (request.created_by != key.actor and "requests:admin" not in key.scopes):
        raise NotFound("job")
    return job
