"""/v1/requests: deletion requests: post, follow, cancel, retry."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.dependencies import After, Lethe, Limit, Moment, Page, Text, last_seen, moment, need, paged
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
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
from app.records.request import Status
from app.submission import retry, submit

router = APIRouter(prefix="/v1/requests", tags=["requests"])
Poster = Annotated[ApiKey, Depends(need("requests:create"))]
Reader = Annotated[ApiKey, Depends(need("requests:read"))]
Concept = Annotated[ApiKey, Depends(need("requests:concept"))]
Source = Literal["uploaded", "registered", "generated"]
PNG = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}


class Forget(BaseModel):
    """What to forget: an uploaded set of role forget, samples of a registered set, or a class label. Left out, the
    concept alone says it, for families whose forget kinds in the catalogue name `concept`."""

    model_config = ConfigDict(extra="forbid")
    dataset: Text | None = Field(
        None,
        description="Id of an uploaded forget set; or, with samples or class_label, the registered set to choose from (default: the model's train set, else its retain set).",
    )
    samples: list[str] | None = Field(
        None, min_length=1, max_length=1_000_000, description="Sample ids, see GET /v1/datasets/{name}/samples."
    )
    class_label: Text | None = Field(None, max_length=200, description="A label of the model.")

    @model_validator(mode="after")
    def one_way(self) -> "Forget":
        if self.samples is not None and self.class_label is not None:
            raise ValueError("give samples or class_label, not both")
        if self.samples is None and self.class_label is None and self.dataset is None:
            raise ValueError("give dataset, samples or class_label")
        return self


class Generate(BaseModel):
    """How many images the worker makes with the base model where no registered set has any; they stay in its memory."""

    model_config = ConfigDict(extra="forbid")
    forget: int = Field(
        100, ge=1, le=10_000, strict=True, description="Of the concept, when no label or caption names it."
    )
    retain: int = Field(
        200, ge=1, le=10_000, strict=True, description="Of the labels to keep, when the model has no retain set."
    )


class RequestIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"model": "digits", "concept": "three", "forget": {"class_label": "3"}, "method": "salun"}]
        },
    )
    model: Text = Field(description="Name or id of a registered model.")
    concept: Text | None = Field(
        None,
        max_length=500,
        description="What this is about. Sealed; shown only to keys with requests:concept. For families of texts it is a rule, too: what names it, by label or caption, is not kept; and without `forget` it selects the samples.",
    )
    forget: Forget | None = Field(None, description="Needed unless the concept alone says what to forget.")
    generate: Generate = Field(
        Generate(), description="For generators only: what to make where no registered set has any."
    )
    method: str = Field(
        "auto",
        description="auto climbs the model's ladder, cheapest first, until a rung meets the policy; or a method of GET /v1/catalog.",
    )
    recipe: dict[str, Any] = Field(
        {}, description="Hyper-parameters of a named method; the family's defaults for the rest. auto takes none."
    )
    seed: int = Field(
        0, ge=0, lt=2**53, strict=True, description="Of every random choice: equal seeds give equal weights."
    )
    reference: Text | None = Field(
        None, description="Registered model that was retrained without the forget set: the report's target."
    )
    external_id: str | None = Field(
        None,
        max_length=200,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
        description="Your own id. Not a name: it is stored in plain.",
    )
    requested_at: Moment | None = Field(None, description="When the person asked; default now. Not in the future.")
    due_at: Moment | None = Field(
        None,
        description="Until when it must be done; default 30 days after requested_at. At most ten years away; the nearest deadline runs first.",
    )

    @model_validator(mode="after")
    def something_to_forget(self) -> "RequestIn":
        if self.forget is None and self.concept is None:
            raise ValueError("give forget, or a concept that alone says what to forget")
        return self


class Rung(BaseModel):
    method: str
    recipe: dict[str, Any] = Field(description="Resolved: every hyper-parameter.")


class JobBrief(BaseModel):
    """One rung of the ladder, in one climb of it: what ran, what came of it, and what it cost."""

    id: str
    method: str
    rung: int = Field(description="Of `ladder`, from 0.")
    retry: int = Field(description="How often the request had been retried before.")
    status: jobs.Status
    stage: str | None
    error: str | None = Field(description="A code: why it failed.")
    verdict: Literal["passed", "failed"] | None = Field(description="Of the policy, once it was measured.")
    version: int | None = Field(description="Number of the version that it made; missed the policy: in quarantine.")
    unlearning_seconds: float | None = Field(description="Of the method alone.")
    seconds: float | None = Field(description="Of the whole job, in its last attempt.")


class Hold(BaseModel):
    code: legal_holds.Code
    since: str
    by: str = Field(description="The key that put it.")


class RequestOut(BaseModel):
    id: str
    status: Status
    reason: str | None = Field(
        description="A code, where the status needs one: worker_lost, threshold_missed, broken_promise, next_rung, overridden, ..."
    )
    model: str
    external_id: str | None
    concept: str | None = Field(description="Null without the scope requests:concept.")
    forget_kind: str = Field(description="dataset, samples, class_label or concept.")
    forget_count: int = Field(description="Number of samples that it selects, or that will be generated.")
    forget_source: Source = Field(
        description="Where they come from: an uploaded set, a registered one, or the base model, when the job runs."
    )
    method: str = Field(description="As asked: auto, or a method's name.")
    ladder: list[Rung] = Field(description="What runs, in this order, until a version meets the policy.")
    seed: int
    reference: str | None
    jobs: list[JobBrief] = Field(description="Oldest first: one for each rung that was reached.")
    checkpoint: int | None = Field(description="Number of the newest version that this request made.")
    requested_at: str
    due_at: str
    created_at: str
    finished_at: str | None
    forget_set_purged_at: str | None
    hold: Hold | None = Field(description="A legal hold: nothing of the request is purged while it stands.")


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
    """Ask that a model forget. 202: the request is stored and queued; poll `Location`, or send `Prefer: wait=N`. Refusals
    store nothing.

    With method auto each rung is a job of its own, from the model's head; the next one is queued when one misses the policy, or
    fails by what it ran."""
    wish, sees_all = _wish(body), "requests:admin" in key.scopes
    request_id = await run_in_threadpool(once.made, lambda: submit(lethe, wish, key.actor, sees_all, once))
    tell(once, response)
    if preferred(prefer) and not once.replayed:
        await run_in_threadpool(ring, lethe.celery)  # now: what waits for the answer waits for the job
    elif not once.replayed:
        background.add_task(ring, lethe.celery)
    await wait_until(lambda: _ended(lethe, request_id, key), prefer, request, response)
    return await run_in_threadpool(_accepted, lethe, request_id, response, key)


def _wish(body: RequestIn) -> Wish:
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
) -> dict[str, Any]:
    """Requests, newest first: one's own, or everybody's with the scope requests:admin."""
    owner = None if "requests:admin" in key.scopes else key.actor
    with lethe.store.read() as session:
        named = models.find(session, model) if model else None
        if model and named is None:
            raise NotFound("model")
        found = requests.page(
            session,
            owner=owner,
            after=last_seen(after),
            limit=limit + 1,
            status=status,
            model_id=named.id if named else None,
            external_id=external_id,
        )
    page = paged(found, limit, lambda each: each.id, request, response)
    return {**page, "data": _rows(lethe, page["data"])}


async def until_ended(
    request_id: str, request: Request, response: Response, lethe: Lethe, key: Reader, prefer: Prefer = None
) -> None:
    await wait_until(lambda: _ended(lethe, request_id, key), prefer, request, response)


@router.get("/{request_id}", response_model=RequestOut, dependencies=[Depends(until_ended)])
def get_request(request_id: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One request, its jobs and its version; with `Prefer: wait=N`, when it has ended."""
    found = find(lethe, request_id, key)
    if found.status in (Status.QUEUED, Status.RUNNING):
        response.headers["Retry-After"] = "1"
    return _out(lethe, found, key)


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
    """Cancel: at once while queued; a running job stops within seconds and its device is free. Ended requests: 409."""
    found = find(lethe, request_id, key)
    once.made(lambda: _cancel(lethe, found, key.actor, once))
    tell(once, response)
    return _accepted(lethe, found.id, response, key)


def _cancel(lethe: Deployment, found: requests.Request, actor: str, once: Once) -> str:
    with lethe.store.write() as session:
        once.claim(session, found.id)
        job = jobs.ask_newest_to_cancel(session, found.id, actor)
        if job is None:
            raise Conflict("The request has ended.", code="illegal-transition")
        if job.status == jobs.Status.RUNNING:
            history.write(session, actor, "job.cancel_asked", job.id, found.id)
    if job.status == jobs.Status.CANCELLED:
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
    return _accepted(lethe, request_id, response, key)


def _accepted(lethe: Deployment, request_id: str, response: Response, key: ApiKey) -> dict[str, Any]:
    response.headers["Location"] = f"/v1/requests/{request_id}"
    response.headers["Retry-After"] = "1"
    return _out(lethe, find(lethe, request_id, key), key)


def find(lethe: Deployment, request_id: str, key: ApiKey) -> requests.Request:
    with lethe.store.read() as session:
        found = session.get(requests.Request, request_id)
    if found is None or (found.created_by != key.actor and "requests:admin" not in key.scopes):
        raise NotFound("request")
    return found


def _ended(lethe: Deployment, request_id: str, key: ApiKey) -> bool:
    return find(lethe, request_id, key).status not in (Status.QUEUED, Status.RUNNING)


def _out(lethe: Deployment, request: requests.Request, key: ApiKey) -> dict[str, Any]:
    concept = _concept(lethe, request) if "requests:concept" in key.scopes else None
    return {**_rows(lethe, [request])[0], "concept": concept}


def _rows(lethe: Deployment, found: list[requests.Request]) -> list[dict[str, Any]]:
    """Requests without their concepts, with what belongs to them, in seven queries whatever their number."""
    ids = [request.id for request in found]
    with lethe.store.read() as session:
        names = models.names(
            session, {each for request in found for each in (request.model_id, request.reference_id) if each}
        )
        work = jobs.of_requests(session, ids)
        made = checkpoints.numbers_of_requests(session, ids)
        measured = checkpoints.of_jobs(session, ids)
        holds = legal_holds.of_requests(session, ids)
        uploaded = datasets.sealed(session, {each for request in found if (each := request.forget_dataset_id)})
    own: dict[str, list[dict[str, Any]]] = {request_id: [] for request_id in ids}
    for job in work:
        own[job.request_id].append(_brief(job, *measured.get(job.id, (None, None))))
    return [
        _row(request, names, own[request.id], made.get(request.id), _source(request, uploaded))
        | {"hold": shown_hold(holds.get(request.id))}
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
        "due_at": moment(request.due_at),
        "created_at": moment(request.created_at),
        "finished_at": moment(request.finished_at),
        "forget_set_purged_at": moment(request.purged_at),
    }


def _concept(lethe: Deployment, request: requests.Request) -> str | None:
    try:
        concept: str | None = read_wish(request, lethe.keyring)["concept"]
    except KeyGone:
        return None
    return concept
