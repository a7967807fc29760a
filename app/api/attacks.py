"""/v1/requests/{request_id}/attacks: attacks on the version that a request made, after the fact, and what they found."""

from typing import Any

from fastapi import APIRouter, BackgroundTasks, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.dependencies import After, Lethe, Limit, Page, last_seen, moment, paged
from app.api.jobs import JobOut, shown
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.api.requests import Poster, Reader, find
from app.attack_submission import attack
from app.deployment import Deployment
from app.queue import ring
from app.records import attack_result as attack_results
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.report import Attacked

router = APIRouter(prefix="/v1/requests/{request_id}/attacks", tags=["requests"])


class AttacksIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"attacks": {"relearning": {"steps": 50}}}]}
    )
    attacks: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="By name, each with its parameters: those of GET /v1/catalog; what is left out has the default.",
    )


class AttacksOut(BaseModel):
    """One job that attacks a version, and what it found."""

    job: str
    version: int = Field(description="Number of the version that is attacked: the newest when this was asked.")
    status: jobs.Status
    error: str | None = Field(description="A code: why the job failed.")
    settings: dict[str, dict[str, Any]] = Field(description="The attacks asked for, each with every parameter.")
    asked_by: str
    asked_at: str
    made_at: str | None
    attacks: list[Attacked] = Field(
        description="Rows as in a report, under no rule; empty until they were made. The report and its verdict stay as they are."
    )


@router.post("", status_code=202, response_model=JobOut, responses=refusals(409))
def post_attacks(
    request_id: str,
    body: AttacksIn,
    background: BackgroundTasks,
    response: Response,
    lethe: Lethe,
    key: Poster,
    once: Idempotent,
) -> dict[str, Any]:
    """Attack the newest version that the request made, without unlearning again. 202: a job is queued; poll `Location`. Its
    request's status, its version and the report with its verdict stay as they are. 409 when there is no version, or what was
    forgotten cannot be asked any more: an uploaded forget set is purged when its request completes."""
    found = find(lethe, request_id, key)
    job_id = once.made(lambda: attack(lethe, found, body.attacks, key.actor, once))
    tell(once, response)
    if not once.replayed:
        background.add_task(ring, lethe.celery)
    response.headers["Location"] = f"/v1/jobs/{job_id}"
    response.headers["Retry-After"] = "1"
    with lethe.store.read() as session:
        return shown(session.get_one(jobs.Job, job_id))


@router.get("", response_model=Page[AttacksOut], response_model_exclude_unset=True)  # rows as a report has them
def list_attacks(
    request_id: str,
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Reader,
    limit: Limit = 50,
    after: After = None,
) -> dict[str, Any]:
    """What was asked of the request's versions after the fact, newest first, and what was found."""
    found = find(lethe, request_id, key)
    with lethe.store.read() as session:
        asked = jobs.attacks_on(session, found.id, after=last_seen(after), limit=limit + 1)
    page = paged(asked, limit, lambda job: job.id, request, response)
    return {**page, "data": _rows(lethe, found.id, page["data"])}


def _rows(lethe: Deployment, request_id: str, asked: list[jobs.Job]) -> list[dict[str, Any]]:
    with lethe.store.read() as session:
        numbers = {version.id: version.number for version in checkpoints.of_request(session, request_id)}
        results = attack_results.of_jobs(session, [job.id for job in asked])
    return [_row(job, numbers[job.checkpoint_id or ""], results.get(job.id)) for job in asked]


def _row(job: jobs.Job, number: int, result: attack_results.AttackResult | None) -> dict[str, Any]:
    return {
        "job": job.id,
        "version": number,
        "status": job.status,
        "error": job.error["code"] if job.error else None,
        "settings": job.recipe,
        "asked_by": job.created_by,
        "asked_at": moment(job.created_at),
        "made_at": moment(result.at) if result else None,
        "attacks": result.rows if result else [],
    }
