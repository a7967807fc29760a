"""/v1/datasets: image sets, uploaded as one archive and streamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field

from app.api.dependencies import (
    MODELS_ADMIN,
    After,
    Lethe,
    Limit,
    Page,
    last_seen,
    moment,
    need,
    paged,
    position,
)
from app.api.once import IdempotentStream, tell
from app.api.openapi import refusals
from app.deployment import Deployment
from app.errors import Conflict, NotFound, NotOwner, TooLarge, UnsupportedMedia
from app.idempotency import UNKEYED, Once
from app.privacy import purge
from app.privacy.selection import read_index
from app.records import dataset as datasets
from app.records import model as models
from app.records.api_key import ApiKey
from app.records.dataset import Dataset, Role
from app.registration import check_name, register_dataset, scratch

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
ARCHIVES = (
    "application/zip",
    "application/x-zip-compressed",
    "application/x-tar",
    "application/gzip",
    "application/octet-stream",
)
ARCHIVE_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in ARCHIVES},
    }
}
Name = Annotated[str | None, Query(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Writer = Annotated[ApiKey, Depends(need("datasets:write"))]
Reader = Annotated[ApiKey, Depends(need("datasets:read"))]


class DatasetOut(BaseModel):
    id: str
    name: str | None = Field(description="Null for role forget.")
    role: Role
    labels: list[str] = Field(description="Class names in label order; empty for role forget, whose names stay sealed.")
    count: int = Field(description="Number of images.")
    bytes: int = Field(description="Stored size after lossless re-encoding.")
    sealed: bool = Field(description="Encrypted under a key of its own (role forget).")
    adopted_by: str | None = Field(description="The request that a sealed set belongs to.")
    created_at: str
    purged_at: str | None


class SampleOut(BaseModel):
    position: int
    id: str = Field(description="What `forget.samples` of a request may name.")
    label: str
    text: str | None = Field(description="Its own caption.")


@router.post("", status_code=201, response_model=DatasetOut, openapi_extra=ARCHIVE_BODY, responses=refusals(409, 507))
async def upload(
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Writer,
    once: IdempotentStream,
    role: Role,
    name: Name = None,
) -> dict[str, Any]:
    """Upload an image set: the body is a zip, tar or tar.gz imagefolder (one folder per label, or
    `metadata.jsonl`/`metadata.csv` with `file_name`, `label`, and a caption `text` if there is one). Images are re-encoded without metadata. A set of
    role `forget` is sealed before anything reaches the disk, has no name, and is purged after 24 hours unless a
    request adopts it."""
    if once is UNKEYED:  # else the name is taken when this is sent again
        await run_in_threadpool(check_name, lethe, role, name)
    limit = lethe.settings.max_forget_bytes if role == Role.FORGET else lethe.settings.max_upload_bytes
    with _memory(lethe) if role == Role.FORGET else tempfile.TemporaryFile(dir=scratch(lethe)) as body:
        with lethe.bodies.in_time(lethe.bodies.seconds) if role == Role.FORGET else nullcontext():
            await receive(request, body, limit, once)

        def register() -> str:
            check_name(lethe, role, name)
            return register_dataset(lethe, body, role, name, key.actor, once)

        dataset_id = await run_in_threadpool(once.made, register)
    tell(once, response)
    response.headers["Location"] = f"/v1/datasets/{dataset_id}"
    return await run_in_threadpool(get_dataset, dataset_id, lethe, key)


@contextmanager
def _memory(lethe: Deployment) -> Iterator[BinaryIO]:
    """A file that is on no disk, and that the decoding process can be given; Busy when there are as many as may be."""
    with lethe.bodies.slot(), open(os.memfd_create("upload"), "w+b") as body:
        yield body


async def receive(request: Request, body: BinaryIO, limit: int, once: Once) -> int:
    """The archive in the request's body into a file, in pieces; TooLarge as soon as it passes the limit."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in ARCHIVES:
        raise UnsupportedMedia("a zip or tar archive, sent as " + ", ".join(ARCHIVES))
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise TooLarge("body", limit)
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise TooLarge("body", limit)
        once.read(piece)
        await run_in_threadpool(body.write, piece)
    body.seek(0)
    return size


@router.get("", response_model=Page[DatasetOut])
def list_datasets(
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Reader,
    limit: Limit = 50,
    after: After = None,
    role: Role | None = None,
) -> dict[str, Any]:
    """Data sets, newest first. Forget sets of other keys are not shown."""
    owner = None if "requests:admin" in key.scopes else key.actor
    with lethe.store.read() as session:
        found = datasets.page(session, owner=owner, role=role, after=last_seen(after), limit=limit + 1)
    page = paged(found, limit, lambda dataset: dataset.id, request, response)
    return {**page, "data": [_out(dataset) for dataset in page["data"]]}


@router.get("/{name}", response_model=DatasetOut)
def get_dataset(name: str, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One data set, by id or name; a purged one by its id, so that its owner can see that it is gone."""
    with lethe.store.read() as session:
        purged = session.get(Dataset, name)
    if purged is not None and purged.purged_at is not None and _may_see(purged, key):
        return _out(purged)
    return _one(lethe, name, key)


@router.get("/{name}/samples", response_model=Page[SampleOut])
def list_samples(
    name: str, request: Request, response: Response, lethe: Lethe, key: Reader, limit: Limit = 200, after: After = None
) -> dict[str, Any]:
    """Ids, labels and captions of a registered set's samples, in order: what a request may name. Not for forget sets."""
    dataset = _find(lethe, name, key)
    if dataset.sealed:
        raise NotFound("sample list")
    index = read_index(dataset, lethe.keyring, lethe.blobs)
    first = position(after)
    found = [
        {
            "position": first + at,
            "id": sample["id"],
            "label": index["labels"][sample["label"]],
            "text": sample.get("text"),
        }
        for at, sample in enumerate(index["samples"][first : first + limit + 1])
    ]
    return paged(found, limit, lambda sample: str(sample["position"] + 1), request, response)


@router.delete("/{name}", status_code=204, responses=refusals(409))
def delete_dataset(name: str, lethe: Lethe, key: Writer) -> None:
    """Erase a set: its key, if sealed, then its bytes. Refused while a model or a request uses it. Of other keys'
    sets a forget set needs the scope requests:admin, and a registered one models:admin (403 `not-owner`)."""
    dataset = _find(lethe, name, key)
    if not dataset.sealed and dataset.created_by != key.actor and MODELS_ADMIN not in key.scopes:
        raise NotOwner("data set")
    with lethe.store.write() as session:
        if not datasets.withdraw(session, dataset.id) or models.uses_dataset(session, dataset.id):  # asked with it held
            raise Conflict("A model or a request uses this data set.", code="dataset-in-use")
    purge.purge_withdrawn(lethe.store, lethe.keyring, lethe.blobs, dataset.id, "deleted by its owner")


def _find(lethe: Deployment, name: str, key: ApiKey) -> Dataset:
    with lethe.store.read() as session:
        dataset = datasets.find(session, name)
    if dataset is None or not _may_see(dataset, key):
        raise NotFound("data set")
    return dataset


def _may_see(dataset: Dataset, key: ApiKey) -> bool:
    return not dataset.sealed or dataset.created_by == key.actor or "requests:admin" in key.scopes


def _one(lethe: Deployment, name: str, key: ApiKey) -> dict[str, Any]:
    return _out(_find(lethe, name, key))


def _out(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "name": dataset.name,
        "role": dataset.role,
        "labels": dataset.labels,
        "count": dataset.count,
        "bytes": dataset.bytes,
        "sealed": dataset.sealed,
        "adopted_by": None if dataset.adopted_by == datasets.WITHDRAWN else dataset.adopted_by,
        "created_at": moment(dataset.created_at),
        "purged_at": moment(dataset.purged_at),
    }
