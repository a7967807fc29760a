"""/v1/models/{name}/checkpoints: versions, their lineage, reports and pictures."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi import Request as HttpRequest
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app import report_page, weights
from app.api.dependencies import After, Lethe, Limit, Page, moment, need, paged, position
from app.api.openapi import refusals
from app.deployment import Deployment
from app.errors import Gone, NotFound
from app.override import etag
from app.privacy import label_figures
from app.privacy.sealing import KeyGone, unseal
from app.promotion import HEAD
from app.records import alias as aliases
from app.records import checkpoint as checkpoints
from app.records import erasure as erasures
from app.records import model as models
from app.records.api_key import ApiKey
from app.records.checkpoint import Checkpoint, Status
from app.records.job import Job
from app.records.model import Model
from app.records.request import Request
from app.report import IMAGES, Report
from app.storage import BlobMissing
from app.weights import Manifest

router = APIRouter(prefix="/v1/models/{name}/checkpoints", tags=["checkpoints"])
Reader = Annotated[ApiKey, Depends(need("models:read"))]
Concept = Annotated[ApiKey, Depends(need("requests:concept"))]


class FileOut(BaseModel):
    path: str
    size: int
    sha256: str


class RetiredOut(BaseModel):
    at: str
    by: str
    code: str
    was: str = Field(description="Its status before.")
    retirement: str = Field(description="Versions that were retired together have the same, and the same bytes.")
    tensors: int
    tensors_erased: int = Field(description="Tensors of which no version that stayed has the values.")
    bytes_erased: int = Field(description="Of the packs that were deleted.")
    bytes_kept: int = Field(description="Of new packs that hold what versions that stayed need of the deleted ones.")
    erased: bool = Field(description="Whether all is deleted by now.")


class CheckpointOut(BaseModel):
    id: str
    model: str
    number: int
    status: Status
    parent: int | None = Field(description="Number of the version that this one was made from.")
    request: str | None
    job: str | None
    digest: str = Field(description="SHA-256 of the manifest: names every byte of the version.")
    changes: dict[str, Any] = Field(description="Tensors and elements changed against the parent, bytes added.")
    files: list[FileOut]
    pictures: list[str] = Field(description="Of the report, as far as they are still there.")
    overridden: bool = Field(description="Whether a person released it against its verdict; its report says why.")
    retired: RetiredOut | None = Field(description="When, by whom and why its weights were erased, and what went.")
    created_at: str


@router.get("", response_model=Page[CheckpointOut])
def list_checkpoints(
    name: str,
    request: HttpRequest,
    response: Response,
    lethe: Lethe,
    key: Reader,
    limit: Limit = 50,
    after: After = None,
) -> dict[str, Any]:
    """All versions in order: the model's lineage."""
    first = position(after)
    with lethe.store.read() as session:
        model = models.find(session, name)
        family = checkpoints.of_model(session, model.id) if model else []
    if model is None:
        raise NotFound("model")
    found = [each for each in family if each.number > first][: limit + 1]
    page = paged(found, limit, lambda checkpoint: str(checkpoint.number), request, response)
    return {**page, "data": [_out(lethe, model.name, checkpoint, family) for checkpoint in page["data"]]}


@router.get("/{number}", response_model=CheckpointOut)
def get_checkpoint(name: str, number: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One version: a number, `head`, or an alias such as `production`. The ETag is for If-Match on an override."""
    return shown(lethe, name, number, response)


def shown(lethe: Deployment, name: str, number: str, response: Response) -> dict[str, Any]:
    model, checkpoint, family = find_checkpoint(lethe, name, number)
    response.headers["ETag"] = etag(checkpoint)
    return _out(lethe, model.name, checkpoint, family)


@router.get("/{number}/report", response_model=Report, response_model_exclude_unset=True)
def get_report(name: str, number: str, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """What was measured before and after, with intervals, targets, thresholds, n, evaluators and the verdict. Its schema
    stands at /v1/schemas/report."""
    return _report(lethe, find_checkpoint(lethe, name, number)[1], key)


@router.get(
    "/{number}/report.html",
    response_class=HTMLResponse,
    responses={200: {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}},
)
def get_report_page(name: str, number: str, lethe: Lethe, key: Reader) -> Response:
    """The report as one page that needs nothing else: no script, no link, pictures within. What was asked is shown to the key
    that asked, and with requests:admin; pictures need the scope requests:concept besides."""
    model, checkpoint, family = find_checkpoint(lethe, name, number)
    document = _report(lethe, checkpoint, key)
    pictures, erased = _pictures(lethe, checkpoint) if _shows_concept(lethe, checkpoint, key) else (None, [])
    request = _request(lethe, checkpoint)
    with lethe.store.read() as session:
        job = session.get(Job, checkpoint.job_id) if checkpoint.job_id else None
    version = report_page.Version(
        model=model.name,
        family=model.family,
        number=checkpoint.number,
        parent={each.id: each.number for each in family}.get(checkpoint.parent_id or ""),
        status=checkpoint.status,
        created_at=moment(checkpoint.created_at) or "",
        digest=checkpoint.digest,
        changes=checkpoint.changes,
    )
    page = report_page.render(version, document, _asked(request, job, key), pictures, bool(erased))
    return HTMLResponse(page, headers={"Content-Security-Policy": report_page.POLICY, "Cache-Control": "no-store"})


def _asked(request: Request | None, job: Job | None, key: ApiKey) -> report_page.Asked | None:
    """What the key may know of the request behind a version, and of the job that made it."""
    if request is None or job is None or not _sees(request, key):
        return None
    return report_page.Asked(
        id=request.id,
        method=job.method,
        recipe=job.recipe,
        seed=request.seed,
        kind=request.forget_kind,
        count=request.forget_count,
        requested_at=moment(request.requested_at) or "",
    )


def _shows_concept(lethe: Deployment, checkpoint: Checkpoint, key: ApiKey) -> bool:
    """Whether the key may know what the version was to forget."""
    return "requests:concept" in key.scopes and _sees(_request(lethe, checkpoint), key)


def _sees(request: Request | None, key: ApiKey) -> bool:
    return "requests:admin" in key.scopes or (request is not None and request.created_by == key.actor)


def _request(lethe: Deployment, checkpoint: Checkpoint) -> Request | None:
    with lethe.store.read() as session:
        return session.get(Request, checkpoint.request_id) if checkpoint.request_id else None


def _report(lethe: Deployment, checkpoint: Checkpoint, key: ApiKey) -> dict[str, Any]:
    """As far as the key may know it."""
    report = checkpoint.report
    if not report:
        raise NotFound("report: version 1 is the base as registered")
    if checkpoint.override is not None:
        told = ("at", "code", "by", "reason") if "audit:read" in key.scopes else ("at", "code")
        override = {**checkpoint.override, "at": moment(checkpoint.override["at"])}
        report = {**report, "override": {name: override[name] for name in told}}
    if not _shows_concept(lethe, checkpoint, key):  # figures by label would tell which one was to be forgotten
        return label_figures.without(report)
    return label_figures.opened(lethe.keyring, checkpoint.request_id, report)


@router.get(
    "/{number}/pictures/{picture}",
    response_class=Response,
    responses={
        200: {
            "description": "The picture.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        **refusals(410),
    },
)
def get_picture(name: str, number: str, picture: str, lethe: Lethe, key: Concept) -> Response:
    """A PNG of the report. It shows what was to be forgotten, so it needs the scope requests:concept, and requests:admin where
    another key asked (404 without). One that shows images is erased once its version is superseded or retired, the version that
    it was made from is retired, or nobody can release it any more; curves stay."""
    checkpoint = find_checkpoint(lethe, name, number)[1]
    if not _shows_concept(lethe, checkpoint, key) or picture not in checkpoint.report.get("pictures", []):
        raise NotFound("picture")
    return Response(_picture(lethe, checkpoint, picture), media_type="image/png")


def _pictures(lethe: Deployment, checkpoint: Checkpoint) -> tuple[dict[str, bytes], list[str]]:
    """Those that are there, by name, and the names of the others."""
    found, erased = {}, []
    for picture in checkpoint.report.get("pictures", []):
        try:
            found[picture] = _picture(lethe, checkpoint, picture)
        except Gone:
            erased.append(picture)
    return found, erased


def _picture(lethe: Deployment, checkpoint: Checkpoint, picture: str) -> bytes:
    """Gone when it showed images and was erased."""
    if picture not in IMAGES:
        with lethe.blobs.open(f"pictures/{checkpoint.stem}/{picture}") as file:
            content: bytes = file.read()
        return content
    name = f"{checkpoint.images or checkpoints.images_folder(checkpoint.id)}/{picture}"
    try:
        key = lethe.keyring.key(checkpoints.images_key(checkpoint.id))
        with lethe.blobs.open(name) as file:
            return unseal(key, file.read(), name.encode())
    except (KeyGone, BlobMissing):
        raise Gone("The picture showed images and is erased. The report's figures stay.", "picture-erased") from None


def find_checkpoint(lethe: Deployment, name: str, number: str) -> tuple[Model, Checkpoint, list[Checkpoint]]:
    """By number, `head` or alias. The model, the version, and all versions of the model."""
    with lethe.store.read() as session:
        model = models.find(session, name)
        if model is None:
            raise NotFound("checkpoint")
        family = checkpoints.of_model(session, model.id)
        wanted = _number(session, model.id, number)
    checkpoint = next((each for each in family if each.number == wanted), None)
    if checkpoint is None:
        raise NotFound("checkpoint")
    return model, checkpoint, family


def _number(session: Session, model_id: str, reference: str) -> int | None:
    """What a reference to a version means now: a number, `head`, or an alias. None when it means nothing."""
    if reference == HEAD:
        return checkpoints.head(session, model_id).number
    if re.fullmatch(r"[0-9]{1,9}", reference):
        return int(reference)
    alias = aliases.find(session, model_id, reference)
    return alias.version if alias else None


def manifest_of(lethe: Deployment, checkpoint: Checkpoint) -> Manifest:
    """Gone when the version is retired. One that was stored anew since it was read has another manifest: then that one."""
    if checkpoint.status == Status.RETIRED:
        raise Gone("The version is retired: its weights are erased. Its report stays.", "version-retired")
    try:
        with lethe.blobs.open(checkpoint.manifest) as file:
            return weights.decode(file.read())
    except BlobMissing:
        with lethe.store.read() as session:
            present = session.get_one(Checkpoint, checkpoint.id)
        if present.manifest == checkpoint.manifest and present.status == checkpoint.status:
            raise
        return manifest_of(lethe, present)


def _retired(lethe: Deployment, checkpoint: Checkpoint) -> dict[str, Any] | None:
    if checkpoint.retired is None:
        return None
    with lethe.store.read() as session:
        left = erasures.unfinished(session, checkpoint.retired["retirement"]) or checkpoints.shown(
            session, checkpoint.id
        )
    return {**checkpoint.retired, "at": moment(checkpoint.retired["at"]), "erased": not left}


def _files(lethe: Deployment, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Of a retired version what it had."""
    if checkpoint.retired is not None:
        return list(checkpoint.retired["files"])
    return [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest_of(lethe, checkpoint).files]


def _out(lethe: Deployment, model_name: str, checkpoint: Checkpoint, family: list[Checkpoint]) -> dict[str, Any]:
    numbers = {each.id: each.number for each in family}
    try:
        files = _files(lethe, checkpoint)
    except Gone:  # retired since it was read
        with lethe.store.read() as session:
            present = session.get_one(Checkpoint, checkpoint.id)
        return _out(lethe, model_name, present, family)
    return {
        "id": checkpoint.id,
        "model": model_name,
        "number": checkpoint.number,
        "status": checkpoint.status,
        "parent": numbers.get(checkpoint.parent_id or ""),
        "request": checkpoint.request_id,
        "job": checkpoint.job_id,
        "digest": checkpoint.digest,
        "changes": checkpoint.changes,
        "files": files,
        "pictures": [each for each in checkpoint.report.get("pictures", []) if checkpoint.images or each not in IMAGES],
        "overridden": checkpoint.override is not None,
        "retired": _retired(lethe, checkpoint),
        "created_at": moment(checkpoint.created_at),
    }
