"""/v1/requests: deletion requests: post, follow, cancel, retry."""

import math
from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import select

from app.api.dependencies import After, Lethe, Limit, Page, last_deadline, last_seen, moment, need, paged
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.api.request_schemas import RequestIn, RequestOut, Source
from app.api.waiting import Prefer, preferred, wait_until
from app.curation import Wish
from app.deployment import Deployment
from app.errors import Conflict, NotFound
from app.idempotency import Once
from app.preview import contact_sheet
from app.privacy import purge
from app.privacy.sealing import KeyGone
from app.privacy.selection import read_wish
from app.queue import ring
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import history
from app.records import job as jobs
from app.records import legal_hold as legal_holds
from app.records import model as models
from app.records import request as requests
from app.records.api_key import ApiKey
from app.records.base import now
from app.records.request import LIVE, WAITING, Status
from app.submission import DAY, retry, submit

router = APIRouter(prefix="/v1/requests", tags=["requests"])
Poster = Annotated[ApiKey, Depends(need("requests:create"))]
Reader = Annotated[ApiKey, Depends(need("requests:read"))]
Concept = Annotated[ApiKey, Depends(need("requests:concept"))]
MOST_DUPLICATES = 10  # told with a request; the filter duplicate_of lists all
PNG = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


@router.post("", status_code=202, response_model=RequestOut, responses=refusals(404, 409, 507))
async def post_request(
    body: RequestIn,
    request: Request,
    background: BackgroundTasks,
    response: Response,
    lethe: Lethe,
    key: Poster,
    once: Idempotent,
    prefer: Prefer = None,
) -> dict[str, Any]:
    """Ask that a model forget. 202: the request is stored, and queued unless the model's `process` says that it is verified or
    approved first; poll `Location`, or send `Prefer: wait=N`. Refusals store nothing.

    With method auto each rung is a job of its own, from the model's head; the next one is queued when one misses the policy, or
    fails by what it ran."""
    wish, sees_all = wish_of(body), "requests:admin" in key.scopes
    request_id = await run_in_threadpool(once.made, lambda: submit(lethe, wish, key.actor, sees_all, once))
    tell(once, response)
    if preferred(prefer) and not once.replayed:
        await run_in_threadpool(ring, lethe.celery)  # now: what waits for the answer waits for the job
    elif not once.replayed:
        background.add_task(ring, lethe.celery)
    await wait_until(lambda: _ended(lethe, request_id, key), prefer, request, response)
    return await run_in_threadpool(accepted, lethe, request_id, response, key)


def wish_of(body: RequestIn) -> Wish:
    return Wish(
        model=body.model,
        concept=body.concept,
        dataset=body.forget.dataset if body.forget else None,
        samples=body.forget.samples if body.forget else None,
        class_label=body.forget.class_label if body.forget else None,
        generate=body.generate.model_dump(),
        method=body.method,
        recipe=body.recipe,
        seed=body.seed,
        reference=body.reference,
        external_id=body.external_id,
        requested_at=body.requested_at.timestamp() if body.requested_at else None,
        due_at=body.due_at.timestamp() if body.due_at else None,
        regime=body.regime,
    )


@router.get("", response_model=Page[RequestOut], responses=refusals(404))
def list_requests(
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Reader,
    limit: Limit = 50,
    after: After = None,
    status: Status | None = None,
    model: Annotated[str | None, Query(max_length=100)] = None,
    external_id: Annotated[str | None, Query(max_length=200)] = None,
    at_risk: Annotated[
        int | None,
        Query(ge=0, le=3650, description="Only those not ended that are due within so many days, or overdue."),
    ] = None,
    duplicate_of: Annotated[
        str | None, Query(max_length=100, description="Id of a request: those that ask the same of the same model.")
    ] = None,
) -> dict[str, Any]:
    """Requests, newest first: one's own, or everybody's with the scope requests:admin. With `at_risk` the nearest deadline comes
    first, and a request that failed counts as not ended while it can be retried."""
    like = find(lethe, duplicate_of, key) if duplicate_of else None
    with lethe.store.read() as session:
        named = models.find(session, model) if model else None
        if model and named is None:
            raise NotFound("model")
        filters = requests.Filters(_owner(key), status, named.id if named else None, external_id, like)
        if at_risk is None:
            found = requests.page(session, filters, after=last_seen(after), limit=limit + 1)
        else:
            seconds, last = at_risk * DAY, last_deadline(after)
            found = requests.at_risk(session, filters, seconds=seconds, after=last, limit=limit + 1)
    page = paged(
        found, limit, lambda each: each.id if at_risk is None else f"{each.due_at!r}~{each.id}", request, response
    )
    return {**page, "data": _rows(lethe, page["data"], key)}


async def until_ended(
    request_id: str, request: Request, response: Response, lethe: Lethe, key: Reader, prefer: Prefer = None
) -> None:
    await wait_until(lambda: _ended(lethe, request_id, key), prefer, request, response)


@router.get("/{request_id}", response_model=RequestOut, dependencies=[Depends(until_ended)])
def get_request(request_id: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One request, its jobs and its version; with `Prefer: wait=N`, when it has ended."""
    found = find(lethe, request_id, key)
    if found.status in LIVE:
        response.headers["Retry-After"] = retry_after(found)
    return shown(lethe, found, key)


@router.get(
    "/{request_id}/preview.png",
    response_class=Response,
    responses={200: {"description": "The picture.", **PNG}},
)
def get_preview(request_id: str, lethe: Lethe, key: Concept) -> Response:
    """A contact sheet of a few samples that the request selects. It shows the person, so it needs the scope
    requests:concept; 404 when they are generated only once the job runs, and after the forget set was purged."""
    sheet = contact_sheet(lethe, find(lethe, request_id, key))
    return Response(sheet, media_type="image/png", headers={"Cache-Control": "no-store"})


@router.post("/{request_id}/cancel", status_code=202, response_model=RequestOut, responses=refusals(409))
def cancel_request(request_id: str, response: Response, lethe: Lethe, key: Poster, once: Idempotent) -> dict[str, Any]:
    """Cancel: at once while it waits for a person or is queued; a running job stops within seconds and its device is free.
    Ended requests: 409."""
    found = find(lethe, request_id, key)
    once.made(lambda: _cancel(lethe, found, key.actor, once))
    tell(once, response)
    return accepted(lethe, found.id, response, key)


def _cancel(lethe: Deployment, found: requests.Request, actor: str, once: Once) -> str:
    with lethe.store.write() as session:
        once.claim(session, found.id)
        waited = requests.cancel_waiting(session, found.id, actor)
        job = None if waited else jobs.ask_newest_to_cancel(session, found.id, actor)
        if job is None and not waited:
            raise Conflict("The request has ended.", code="illegal-transition")
        if job is not None and job.status == jobs.Status.RUNNING:
            history.write(session, actor, "job.cancel_asked", job.id, found.id)
    if job is None:
        purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, found.id, lethe.settings)
    elif job.status == jobs.Status.CANCELLED:
        purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job.id, lethe.settings)
    return found.id


@router.post("/{request_id}/retry", status_code=202, response_model=RequestOut, responses=refusals(409, 507))
def retry_request(
    request_id: str, background: BackgroundTasks, response: Response, lethe: Lethe, key: Poster, once: Idempotent
) -> dict[str, Any]:
    """Queue a failed request again, as a new job: with method auto the first rung of the ladder that the model has now. 409
    when it did not fail or its forget set was purged."""
    found = find(lethe, request_id, key)
    once.made(lambda: retry(lethe, found, key.actor, once))
    tell(once, response)
    if not once.replayed:
        background.add_task(ring, lethe.celery)
    return accepted(lethe, request_id, response, key)


def accepted(lethe: Deployment, request_id: str, response: Response, key: ApiKey) -> dict[str, Any]:
    """The answer to what changed a request, as it is now."""
    found = find(lethe, request_id, key)
    response.headers["Location"] = f"/v1/requests/{request_id}"
    response.headers["Retry-After"] = retry_after(found)
    return shown(lethe, found, key)


def retry_after(request: requests.Request) -> str:
    """Seconds: a person takes longer than a worker."""
    return "60" if request.status in WAITING else "1"


def find(lethe: Deployment, request_id: str, key: ApiKey) -> requests.Request:
    with lethe.store.read() as session:
        found = session.get(requests.Request, request_id)
    if found is None or (found.created_by != key.actor and "requests:admin" not in key.scopes):
        raise NotFound("request")
    return found


def _ended(lethe: Deployment, request_id: str, key: ApiKey) -> bool:
    return find(lethe, request_id, key).status not in LIVE


def shown(lethe: Deployment, request: requests.Request, key: ApiKey) -> dict[str, Any]:
    """A request as its owner, or who sees everybody's, is answered."""
    concept = _concept(lethe, request) if "requests:concept" in key.scopes else None
    return {**_rows(lethe, [request], key)[0], "concept": concept}


def _owner(key: ApiKey) -> str | None:
    """Whose requests the key sees; None: everybody's."""
    return None if "requests:admin" in key.scopes else key.actor


def _rows(lethe: Deployment, found: list[requests.Request], key: ApiKey) -> list[dict[str, Any]]:
    """Requests without their concepts, with what belongs to them, in seven queries whatever their number."""
    ids = [request.id for request in found]
    with lethe.store.read() as session:
        names = models.names(
            session, {each for request in found for each in (request.model_id, request.reference_id) if each}
        )
        work = jobs.of_requests(session, ids)
        made = checkpoints.numbers_of_requests(session, ids)
        measured = checkpoints.of_jobs(session, ids)
        before = requests.duplicates(session, ids, _owner(key), MOST_DUPLICATES)
        holds = legal_holds.of_requests(session, ids)
        uploaded = datasets.sealed(session, {each for request in found if (each := request.forget_dataset_id)})
        clock = session.scalar(select(now())) or 0.0
    own: dict[str, list[dict[str, Any]]] = {request_id: [] for request_id in ids}
    for job in work:
        own[job.request_id].append(_brief(job, *measured.get(job.id, (None, None))))
    return [
        {
            **_row(request, names, own[request.id], made.get(request.id), _source(request, uploaded)),
            **_deadline(request, clock),
            **_review(request),
            "duplicates": before[request.id],
            "hold": shown_hold(holds.get(request.id)),
        }
        for request in found
    ]


def shown_hold(held: legal_holds.LegalHold | None) -> dict[str, Any] | None:
    return None if held is None else {"code": held.code, "since": moment(held.since), "by": held.by}


def _brief(job: jobs.Job, version: int | None, verdict: str | None) -> dict[str, Any]:
    return {
        "id": job.id,
        "method": job.method,
        "rung": job.rung,
        "retry": job.retry,
        "status": job.status,
        "stage": job.stage,
        "error": job.error["code"] if job.error else None,
        "verdict": verdict,
        "version": version,
        "unlearning_seconds": job.unlearning_seconds,
        "seconds": job.seconds,
    }


def _source(request: requests.Request, uploaded: set[str]) -> Source:
    if request.forget_dataset_id is None:
        return "generated"
    return "uploaded" if request.forget_dataset_id in uploaded else "registered"


def _row(
    request: requests.Request, names: dict[str, str], work: list[dict[str, Any]], number: int | None, source: Source
) -> dict[str, Any]:
    return {
        "id": request.id,
        "status": request.status,
        "reason": request.reason,
        "model": names[request.model_id],
        "external_id": request.external_id,
        "concept": None,
        "forget_kind": request.forget_kind,
        "forget_count": request.forget_count,
        "forget_source": source,
        "method": request.method,
        "ladder": request.ladder,
        "seed": request.seed,
        "reference": names.get(request.reference_id or ""),
        "jobs": work,
        "checkpoint": number,
        "requested_at": moment(request.requested_at),
        "created_at": moment(request.created_at),
        "finished_at": None if request.status == requests.Status.REOPENED else moment(request.finished_at),
        "forget_set_purged_at": moment(request.purged_at),
    }


def _deadline(request: requests.Request, clock: float) -> dict[str, Any]:
    extension, running = request.extension or {}, request.unanswered
    return {
        "regime": request.regime,
        "due_at": moment(request.due_at),
        "days_left": math.floor((request.due_at - clock) / DAY) if running else None,
        "overdue": (clock if running else request.finished_at or clock) > request.due_at,
        "extended_at": moment(extension.get("at")),
        "extension_code": extension.get("code"),
        "notified_at": moment(extension.get("notified_at")),
    }


def _review(request: requests.Request) -> dict[str, Any]:
    """What it waits for, and who decided what: keys' ids only."""
    check, decision = request.verification or {}, request.decision or {}
    outcome, rejected = decision.get("outcome"), check.get("outcome") == "rejected"
    return {
        "needs": request.needs if request.status in WAITING else [],
        "verified_at": moment(check.get("at")),
        "verified_by": check.get("by"),
        "verification_method": check.get("method"),
        "verification_reference": check.get("reference"),
        "decided_at": moment(decision.get("at")),
        "approved_by": decision.get("by") if outcome == "approved" else None,
        "denied_by": check.get("by") if rejected else decision.get("by") if outcome == "denied" else None,
    }


def _concept(lethe: Deployment, request: requests.Request) -> str | None:
    try:
        concept: str | None = read_wish(request, lethe.keyring)["concept"]
    except KeyGone:
        return None
    return concept
