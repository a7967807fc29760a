"""/v1/models and /v1/uploads: base networks, the sets that judge them, and their policy."""

import tempfile
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from app.api.datasets import ARCHIVE_BODY, receive
from app.api.dependencies import (
    MODELS_ADMIN,
    After,
    Lethe,
    Limit,
    Page,
    Text,
    last_seen,
    moment,
    need,
    need_own,
    paged,
    refuse_foreign,
)
from app.api.once import Idempotent, IdempotentStream, tell
from app.api.openapi import refusals
from app.catalog.types import Rule
from app.deployment import Deployment
from app.errors import Forbidden, NotFound, PreconditionFailed, Refused
from app.evaluators import resolve_evaluators
from app.preconditions import matches, precondition_required
from app.recipe import check_evaluation, check_ladder, check_policy, policy_warnings
from app.records import api_key as api_keys
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import model as models
from app.records.api_key import ApiKey
from app.records.base import new_id
from app.records.model import Model
from app.records.upload import Upload
from app.registration import (
    SETS,
    NewModel,
    check_shadows,
    keep_sets,
    keep_upload,
    register_model,
    resolve_sets,
    scratch,
)

router = APIRouter(prefix="/v1", tags=["models"])
Writer = Annotated[ApiKey, Depends(need("models:write"))]
Owner = Annotated[ApiKey, Depends(need_own("models:write"))]
Reader = Annotated[ApiKey, Depends(need("models:read"))]
Slug = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class ThresholdIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    metric: str = Field(
        description="A metric of GET /v1/catalog, or an attack that `evaluation.attacks` names (at_most, at_least)."
    )
    rule: Rule = Field(
        description="On the value after; drop_at_most: points below the base's, of what is kept; share_of_before: share of the "
        "base's distance to the metric's `ideal` for that kind; times_before_at_least, times_before_at_most: the value divided by "
        "the base's. One that the figure cannot take is refused."
    )
    value: float = Field(strict=True, allow_inf_nan=False)


class RungIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    method: str = Field(description="See GET /v1/catalog.")
    recipe: dict[str, Any] = Field({}, description="Hyper-parameters; the family's defaults for the rest.")


class Process(BaseModel):
    """What a request needs before it is queued: somebody who says that the person is who they say, and somebody who approves."""

    model_config = ConfigDict(extra="forbid")
    verification: Literal["none", "required"] = "none"
    approval: Literal["none", "required"] = "none"


Rungs = Annotated[list[RungIn], Field(min_length=1, max_length=8)]


Days = Annotated[float, Field(ge=0, le=3650, strict=True, allow_inf_nan=False)]


class Retention(BaseModel):
    """Days from the end of a request to the purge of its sealed forget set. 0: at once. A legal hold stops the clock."""

    model_config = ConfigDict(extra="forbid")
    completed_days: Days | None = Field(
        None,
        description="After it completed; default 0. While the set is kept, later versions are measured on it again.",
    )
    failed_days: Days | None = Field(
        None,
        description="After it failed or missed its thresholds, so that it can be retried; default LETHE_FAILED_RETENTION_DAYS.",
    )


class Source(BaseModel):
    model_config = ConfigDict(extra="forbid")
    upload: Text | None = Field(None, description="Id from POST /v1/uploads.")
    path: Text | None = Field(None, description="Folder on the server, under one of LETHE_MODEL_ROOTS.")


class ModelIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Slug
    family: str = Field(description="See GET /v1/catalog.")
    source: Source
    train: Text | None = Field(None, description="Data set that the network was trained on, by id or name.")
    retain: Text | None = Field(
        None, description="Data set to keep; a request needs one, unless the family can generate it."
    )
    test: Text | None = Field(None, description="Data set that the network never saw.")
    judge: Text | None = Field(None, description="Registered image_classifier that judges generated images.")
    evaluators: dict[Text, Text] = Field(
        {}, description="Further registered models that measure generated images, by part; see GET /v1/catalog."
    )
    policy: dict[Text, list[ThresholdIn]] = Field(
        {}, description="Thresholds by kind of forgetting; else the family's defaults."
    )
    evaluation: dict[str, Any] = Field(
        {},
        description="How outputs are produced for the report; else the family's defaults. `attacks` names the attacks that "
        'run on every request, each with its parameters: {"relearning": {"steps": 20}}; see GET /v1/catalog.',
    )
    retention: Retention = Retention()
    ladder: Rungs | None = Field(
        None, description="What `method: auto` tries, cheapest first; else the family's default by kind of forgetting."
    )
    process: Process = Field(
        Process(), description="What its requests wait for before they are queued; default: nothing."
    )


class ModelPatch(BaseModel):
    model_config = ConfigDict(extra="forbid")
    """Only what is named changes; null takes a set or the judge away, and the ladder back to the family's default."""

    train: Text | None = None
    retain: Text | None = None
    test: Text | None = None
    judge: Text | None = None
    evaluators: dict[Text, Text] | None = Field(None, description="Replaces all of them; null takes all away.")
    policy: dict[Text, list[ThresholdIn]] | None = Field(
        None, description="Replaces the kinds it names; the others go back to the family's defaults."
    )
    evaluation: dict[str, Any] | None = Field(
        None, description="Settings it does not name go back to the family's defaults, and attacks to none."
    )
    retention: Retention | None = Field(
        None,
        description="What it does not name goes back to the default. It holds for requests that have ended, too: a shorter one purges at the next sweep.",
    )
    ladder: Rungs | None = Field(None, description="For later requests and retries; the running ones keep theirs.")
    process: Process | None = Field(
        None, description="For later requests: those received keep what they need. Replaces all of it; null: nothing."
    )
    owner: Text | None = Field(
        None, description="Id of the key that the model is handed over to. Needs the scope models:admin."
    )


class Warned(BaseModel):
    """A rule that cannot be shown to be met, or rules that forgetting nothing meets; nothing is refused for it."""

    field: str
    rule: str = Field(description="What cannot be shown, or is not asked, and why.")
    remedy: str
    n: int | None = Field(
        description="Images that the settings or the registered set give it, at most; 0: it will not be measured. Null where it is no matter of n."
    )
    n_needed: int | None = Field(
        description="Smallest n at which the best possible answer's 95 % Wilson interval reaches the threshold; null: none, or no matter of n."
    )


class ModelOut(BaseModel):
    id: str
    name: str
    family: str
    labels: list[str]
    train: str | None
    retain: str | None
    test: str | None
    judge: str | None
    evaluators: dict[str, str]
    policy: dict[str, Any]
    evaluation: dict[str, Any]
    retention: dict[str, float] = Field(description="completed_days and failed_days, as they hold now.")
    ladder: list[dict[str, Any]] | None = Field(
        description="Of `method: auto`: method and resolved recipe of each rung. Null: the family's default, see GET /v1/catalog."
    )
    process: Process
    warnings: list[Warned] = Field(
        description="Rules on a share that the evaluation or a registered set has too few images for, or that will not be measured; "
        "and kinds without a rule that shows forgetting."
    )
    owner: str = Field(
        description="The key that may change it, as the audit names it; at first the one that registered it."
    )
    head: int = Field(description="Number of the newest released checkpoint: the parent of the next version.")
    created_at: str


class UploadOut(BaseModel):
    id: str
    bytes: int


@router.post("/uploads", status_code=201, response_model=UploadOut, openapi_extra=ARCHIVE_BODY, responses=refusals(507))
async def upload(
    request: Request, response: Response, lethe: Lethe, key: Writer, once: IdempotentStream
) -> dict[str, Any]:
    """Upload a model directory (config and safetensors) as a zip or tar; name its id in POST /v1/models within a day.
    It is looked into there: if its content is refused, it is deleted at once."""
    record = Upload(id=new_id("up"), created_by=key.actor)
    with tempfile.TemporaryFile(dir=scratch(lethe)) as body:
        record.bytes = await receive(request, body, lethe.settings.max_upload_bytes, once)
        upload_id = await run_in_threadpool(once.made, lambda: keep_upload(lethe, record, body, once))
    tell(once, response)
    return {"id": upload_id, "bytes": record.bytes}  # of a repeated one, too: its body is the same


@router.post("/models", status_code=201, response_model=ModelOut, responses=refusals(404, 409, 413, 507))
def register(body: ModelIn, response: Response, lethe: Lethe, key: Writer, once: Idempotent) -> dict[str, Any]:
    """Register a base model as version 1. Only safetensors and known configs are accepted; the config must match
    the weights and name a class of the family. Every data set's labels must be the model's; for families whose
    catalogue entry says `labels_from: sets`, the labels of the sets are the model's. A threshold that the evaluation has
    too few images for is no refusal: `warnings` names it and the n that it needs. So it does with a kind of forgetting whose
    policy has no rule that shows forgetting."""
    policy = {kind: [threshold.model_dump() for threshold in thresholds] for kind, thresholds in body.policy.items()}
    new = NewModel(
        name=body.name,
        family=body.family,
        upload=body.source.upload,
        path=body.source.path,
        train=body.train,
        retain=body.retain,
        test=body.test,
        judge=body.judge,
        policy=policy,
        evaluation=body.evaluation,
        evaluators=body.evaluators,
        ladder=None if body.ladder is None else [rung.model_dump() for rung in body.ladder],
        retention=body.retention.model_dump(exclude_none=True),
        process=body.process.model_dump(),
    )
    model_id = once.made(lambda: register_model(lethe, new, key.actor, once))
    tell(once, response)
    response.headers["Location"] = f"/v1/models/{body.name}"
    return _one(lethe, model_id, response)


@router.get("/models", response_model=Page[ModelOut])
def list_models(
    request: Request, response: Response, lethe: Lethe, key: Reader, limit: Limit = 50, after: After = None
) -> dict[str, Any]:
    """Registered models, newest first."""
    with lethe.store.read() as session:
        found = models.page(session, after=last_seen(after), limit=limit + 1)
        heads = checkpoints.heads(session, [model.id for model in found])
        counts = datasets.counts(session, _sets(*found))
    page = paged(found, limit, lambda model: model.id, request, response)
    return {**page, "data": [_out(lethe, model, heads[model.id], counts) for model in page["data"]]}


@router.get("/models/{name}", response_model=ModelOut)
def get_model(name: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One model, by id or name. The ETag is for If-Match on PATCH; it changes with each change, and when a new version is the
    head."""
    return _one(lethe, name, response)


@router.patch("/models/{name}", response_model=ModelOut, responses=refusals(412, 428))
def change_model(
    name: str,
    body: ModelPatch,
    response: Response,
    lethe: Lethe,
    key: Owner,
    if_match: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Change the sets, the judge, the evaluators, the policy, the evaluation, the retention, the ladder, the process or the
    owner. Needs If-Match with the model's ETag. Where labels come from the sets, those of a new set are appended; none is
    ever taken away, so each keeps its number. 403 `not-owner` for a model of another key."""
    if if_match is None:
        raise precondition_required("model")
    with lethe.store.read() as session:
        model = _find(session, name)
    changes = _changes(lethe, model, body, key)
    with lethe.store.write() as session:
        model = session.get_one(Model, model.id, with_for_update=True)
        refuse_foreign(model, key)  # it may have been handed over since
        if not matches(if_match, _etag(model, checkpoints.head(session, model.id).number)):
            raise PreconditionFailed
        if "labels" in changes:  # another change may have appended some since they were read
            changes["labels"] = list(dict.fromkeys([*model.labels, *changes["labels"]]))
        keep_sets(session, changes)
        models.change(session, model, changes, key.actor)
    return _one(lethe, model.id, response)


def _changes(lethe: Deployment, model: Model, body: ModelPatch, key: ApiKey) -> dict[str, Any]:
    """Columns and their new values, all checked."""
    sent = body.model_fields_set
    named = {role: getattr(body, role) for role in SETS}
    changes = resolve_sets(lethe, model.family, model.labels, named, body.judge, key.actor)
    if changes["labels"] == model.labels:
        del changes["labels"]
    elif model.judge_id and "judge" not in sent:  # the present judge must know the new labels, too
        resolve_sets(lethe, model.family, changes["labels"], {}, model.judge_id, key.actor)
    changes |= {f"{field}_id": None for field in (*SETS, "judge") if field in sent and getattr(body, field) is None}
    if body.policy is not None:
        policy = {
            kind: [threshold.model_dump() for threshold in thresholds] for kind, thresholds in body.policy.items()
        }
        changes["policy"] = check_policy(model.family, policy)
    if body.evaluation is not None:
        changes["evaluation"] = check_evaluation(model.family, body.evaluation)
        check_shadows(lethe, model.family, changes.get("labels", model.labels), changes["evaluation"])
    if "evaluators" in sent or "evaluation" in changes:  # those that stay must fit the new settings, too
        named = (body.evaluators or {}) if "evaluators" in sent else model.evaluators
        settings = changes.get("evaluation", model.evaluation)
        found = resolve_evaluators(lethe, model.family, named, settings)
        changes |= {"evaluators": found} if "evaluators" in sent else {}
    if "ladder" in sent:
        rungs = None if body.ladder is None else [rung.model_dump() for rung in body.ladder]
        changes["ladder"] = None if rungs is None else check_ladder(model.family, rungs)
    if body.retention is not None:
        changes["retention"] = body.retention.model_dump(exclude_none=True)
    if "process" in sent:
        changes["process"] = (body.process or Process()).model_dump()
    if body.owner is not None:
        changes["owner"] = _new_owner(lethe, body.owner, key)
    if not changes:
        raise Refused("empty-change", "body", "It changes nothing.", "Name a field to change.")
    return changes


def _new_owner(lethe: Deployment, named: str, key: ApiKey) -> str:
    if MODELS_ADMIN not in key.scopes:
        raise Forbidden(MODELS_ADMIN)
    with lethe.store.read() as session:
        owner = api_keys.living(session, named.removeprefix("key:"))
    if owner is None or "models:write" not in owner.scopes:
        rule = "It must be the id of a key with models:write that has not expired and was not revoked."
        raise Refused("unknown-key", "owner", rule, "GET /v1/keys lists them.")
    return owner.actor


def _find(session: Any, name: str) -> Model:
    model = models.find(session, name)
    if model is None:
        raise NotFound("model")
    return model


def _one(lethe: Deployment, name: str, response: Response) -> dict[str, Any]:
    with lethe.store.read() as session:
        model = _find(session, name)
        head = checkpoints.head(session, model.id).number
        counts = datasets.counts(session, _sets(model))
    response.headers["ETag"] = _etag(model, head)
    return _out(lethe, model, head, counts)


def _etag(model: Model, head: int) -> str:
    """Of all that an answer shows of a model."""
    return f'"{model.revision}-{head}"'


def _sets(*found: Model) -> set[str]:
    return {each for model in found for each in (model.test_id, model.retain_id) if each}


def _out(lethe: Deployment, model: Model, head: int, counts: Mapping[str, int]) -> dict[str, Any]:
    """`counts`: sizes of the model's sets, by id."""
    sizes = {"test": counts.get(model.test_id or ""), "retain": counts.get(model.retain_id or "")}
    return {
        "id": model.id,
        "name": model.name,
        "family": model.family,
        "labels": model.labels,
        "train": model.train_id,
        "retain": model.retain_id,
        "test": model.test_id,
        "judge": model.judge_id,
        "evaluators": model.evaluators,
        "policy": model.policy,
        "evaluation": model.evaluation,
        "retention": models.retention(model, lethe.settings.failed_retention_days),
        "ladder": model.ladder,
        "process": model.process,
        "warnings": policy_warnings(model.family, model.policy, model.evaluation, sizes),
        "owner": model.owner,
        "head": head,
        "created_at": moment(model.created_at),
    }
