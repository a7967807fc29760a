"""/v1/models/{name}/checkpoints: versions, their lineage, reports, pictures and files."""

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app import weights
from app.api.dependencies import Lethe, moment, need
from app.deployment import Deployment
from app.errors import Forbidden, NotFound, RangeNotSatisfiable, Refused
from app.records import checkpoint as checkpoints
from app.records import history
from app.records import model as models
from app.records.api_key import ApiKey
from app.records.checkpoint import Checkpoint, Status
from app.weights import Manifest

router = APIRouter(prefix="/v1/models/{name}/checkpoints", tags=["checkpoints"])
Reader = Annotated[ApiKey, Depends(need("models:read"))]
Reason = Annotated[str | None, Query(max_length=500, description="Why a superseded or quarantined version is needed.")]
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class FileOut(BaseModel):
    path: str
    size: int
    sha256: str


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
    pictures: list[str]
    created_at: str


@router.get("", response_model=list[CheckpointOut])
def list_checkpoints(name: str, lethe: Lethe, key: Reader) -> list[dict[str, Any]]:
    """All versions in order: the model's lineage."""
    with lethe.store.read() as session:
        model = models.find(session, name)
        found = checkpoints.of_model(session, model.id) if model else []
    if model is None:
        raise NotFound("model")
    return [_out(lethe, model.name, checkpoint, found) for checkpoint in found]


@router.get("/{number}", response_model=CheckpointOut)
def get_checkpoint(name: str, number: str, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One version: a number, or `head`."""
    model_name, checkpoint, family = _find(lethe, name, number)
    return _out(lethe, model_name, checkpoint, family)


@router.get("/{number}/report")
def get_report(name: str, number: str, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """What was measured before and after, with targets, thresholds, n, evaluators and the verdict."""
    report = _find(lethe, name, number)[1].report
    if not report:
        raise NotFound("report: version 1 is the base as registered")
    return report


@router.get("/{number}/pictures/{picture}")
def get_picture(name: str, number: str, picture: str, lethe: Lethe, key: Reader) -> Response:
    """A PNG of the report."""
    checkpoint = _find(lethe, name, number)[1]
    if picture not in checkpoint.report.get("pictures", []):
        raise NotFound("picture")
    with lethe.blobs.open(f"pictures/{checkpoint.manifest.removeprefix('manifests/')}/{picture}") as file:
        return Response(file.read(), media_type="image/png")


@router.get("/{number}/files/{path:path}")
@router.head("/{number}/files/{path:path}", include_in_schema=False)
def get_file(
    name: str,
    number: str,
    path: str,
    lethe: Lethe,
    key: Reader,
    reason: Reason = None,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """One file, byte for byte what `save_pretrained` wrote, stitched from packs. Range, If-Range, If-None-Match and
    HEAD are honoured; the ETag is the file's SHA-256. Superseded and quarantined versions need the scope
    checkpoints:superseded and a reason, which goes into the history."""
    checkpoint = _find(lethe, name, number)[1]
    manifest = _manifest(lethe, checkpoint)
    found = next((file for file in manifest.files if file.path == path), None)
    if found is None:
        raise NotFound("file")
    _admit(lethe, key, checkpoint, reason)
    etag = f'"{found.sha256}"'
    digest = base64.b64encode(bytes.fromhex(found.sha256)).decode()
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Repr-Digest": f"sha-256=:{digest}:", "Cache-Control": "private, no-cache"}
    if if_none_match is not None and (if_none_match.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]):
        return Response(status_code=304, headers=headers)
    span = _span(range_, found.size) if range_ and (if_range is None or if_range == etag) else None
    start, end = span or (0, found.size)
    headers["Content-Length"] = str(end - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    stream = weights.open_range(manifest, lethe.blobs, path, start, end)
    return StreamingResponse(stream, status_code=206 if span else 200, headers=headers, media_type="application/octet-stream")


@router.get("/{number}/archive")
def get_archive(name: str, number: str, lethe: Lethe, key: Reader, reason: Reason = None) -> Response:
    """The whole directory as a zip, streamed; unpack it and open it with plain `from_pretrained`."""
    model_name, checkpoint, _ = _find(lethe, name, number)
    _admit(lethe, key, checkpoint, reason)
    headers = {"Content-Disposition": f'attachment; filename="{model_name}-{checkpoint.number}.zip"'}
    return StreamingResponse(_zip(lethe, _manifest(lethe, checkpoint)), headers=headers, media_type="application/zip")


def _find(lethe: Deployment, name: str, number: str) -> tuple[str, Checkpoint, list[Checkpoint]]:
    with lethe.store.read() as session:
        model = models.find(session, name)
        if model is None or not (number == "head" or (number.isdigit() and len(number) < 10)):
            raise NotFound("checkpoint")
        family = checkpoints.of_model(session, model.id)
        wanted = checkpoints.head(session, model.id).number if number == "head" else int(number)
    checkpoint = next((each for each in family if each.number == wanted), None)
    if checkpoint is None:
        raise NotFound("checkpoint")
    return model.name, checkpoint, family


def _manifest(lethe: Deployment, checkpoint: Checkpoint) -> Manifest:
    with lethe.blobs.open(checkpoint.manifest) as file:
        return weights.decode(file.read())


def _admit(lethe: Deployment, key: ApiKey, checkpoint: Checkpoint, reason: str | None) -> None:
    """Versions that still remember someone, or missed their policy, are given out knowingly or not at all."""
    if checkpoint.status == Status.RELEASED:
        return
    if "checkpoints:superseded" not in key.scopes:
        raise Forbidden("checkpoints:superseded")
    if not reason:
        raise Refused("reason-missing", "reason", f"This version is {checkpoint.status}.", "Add ?reason=... ; it is kept in the history.")
    with lethe.store.write() as session:
        history.write(session, key.actor, "checkpoint.downloaded", checkpoint.id, checkpoint.request_id, {"status": checkpoint.status, "reason": reason})


def _span(header: str, size: int) -> tuple[int, int] | None:
    """[start, end) of a single range; None for a header that is not one, which RFC 9110 says to ignore."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < int(first):
            return None
    if start >= size or start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def _zip(lethe: Deployment, manifest: Manifest) -> Iterator[bytes]:
    """A stored zip, written as it is read."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for file in manifest.files:
            info = zipfile.ZipInfo(file.path)
            info.file_size = file.size
            with archive.open(info, "w", force_zip64=file.size > 1 << 31) as member:
                for piece in weights.open_range(manifest, lethe.blobs, file.path, 0, file.size):
                    member.write(piece)
                    yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """An unseekable file that gives away what was written to it."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._held += piece
        return len(piece)

    def take(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held


def _out(lethe: Deployment, model_name: str, checkpoint: Checkpoint, family: list[Checkpoint]) -> dict[str, Any]:
    numbers = {each.id: each.number for each in family}
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
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in _manifest(lethe, checkpoint).files],
        "pictures": checkpoint.report.get("pictures", []),
        "created_at": moment(checkpoint.created_at),
    }
