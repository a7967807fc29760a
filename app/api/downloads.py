"""A version's files and its archive: Range, ETag, If-None-Match, If-Range and HEAD, and who may have which version."""

import base64
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from app import weights
from app.api.aliases import Reason
from app.api.checkpoints import Reader, find_checkpoint, manifest_of
from app.api.conditional import names
from app.api.dependencies import Lethe
from app.api.openapi import refusals
from app.deployment import Deployment
from app.errors import Forbidden, NotFound, RangeNotSatisfiable, Refused
from app.records import history
from app.records.api_key import ApiKey
from app.records.checkpoint import Checkpoint, Status
from app.storage import BlobMissing
from app.weights import Manifest
from app.weights.manifest import File

router = APIRouter(prefix="/v1/models/{name}/checkpoints", tags=["checkpoints"])
WHY = "Why a superseded or quarantined version is needed; kept in the audit for ever, in plain: name no person."
Why = Annotated[Reason | None, Query(description=WHY)]
_RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)", re.IGNORECASE)
_DIGITS = 30  # no file is longer, and no conversion of a header is dear
_BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "/{number}/files/{path:path}",
    response_class=Response,
    responses={
        200: {"description": "The whole file.", **_BINARY},
        206: {"description": "The range of it that was asked for.", **_BINARY},
        304: {"description": "If-None-Match names its ETag."},
        **refusals(410, 416, 422),
    },
)
@router.head("/{number}/files/{path:path}", include_in_schema=False)
def get_file(
    request: Request,
    name: str,
    number: str,
    path: str,
    lethe: Lethe,
    key: Reader,
    reason: Why = None,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_none_match: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """One file, byte for byte what `save_pretrained` wrote, stitched from packs. Range, If-Range, If-None-Match and
    HEAD are honoured; the ETag is the file's SHA-256. Superseded and quarantined versions need the scope
    checkpoints:superseded and a reason, which goes into the audit."""
    checkpoint = find_checkpoint(lethe, name, number)[1]
    manifest = manifest_of(lethe, checkpoint)
    found = next((file for file in manifest.files if file.path == path), None)
    if found is None:
        raise NotFound("file")
    _admit(key, checkpoint, reason)
    headers = _file_headers(found)
    if if_none_match is not None and names(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":  # ranges are defined for GET alone
        return Response(headers=headers | {"Content-Length": str(found.size)}, media_type="application/octet-stream")
    span = _span(range_, found.size) if range_ and (if_range is None or if_range == headers["ETag"]) else None
    start, end = span or (0, found.size)
    headers["Content-Length"] = str(end - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
    _note_download(lethe, key, checkpoint, reason)
    stream = _stream(lethe, checkpoint, manifest, path, start, end)
    return StreamingResponse(
        stream, status_code=206 if span else 200, headers=headers, media_type="application/octet-stream"
    )


@router.get(
    "/{number}/archive",
    response_class=Response,
    responses={
        200: {
            "description": "The archive.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **refusals(410),
    },
)
def get_archive(name: str, number: str, lethe: Lethe, key: Reader, reason: Why = None) -> Response:
    """The whole directory as a zip, streamed; unpack it and open it with plain `from_pretrained`."""
    model, checkpoint, _ = find_checkpoint(lethe, name, number)
    manifest = manifest_of(lethe, checkpoint)
    _admit(key, checkpoint, reason)
    _note_download(lethe, key, checkpoint, reason)
    headers = {"Content-Disposition": f'attachment; filename="{model.name}-{checkpoint.number}.zip"'}
    return StreamingResponse(_zip(lethe, checkpoint, manifest), headers=headers, media_type="application/zip")


def _admit(key: ApiKey, checkpoint: Checkpoint, reason: str | None) -> None:
    """Versions that still remember someone, or missed their policy, are given out knowingly or not at all."""
    if checkpoint.status == Status.RELEASED:
        return
    if "checkpoints:superseded" not in key.scopes:
        raise Forbidden("checkpoints:superseded")
    if reason is None:
        raise Refused(
            "reason-missing",
            "reason",
            f"This version is {checkpoint.status}.",
            "Add ?reason=... ; it is kept in the audit; name no person.",
        )


def _note_download(lethe: Deployment, key: ApiKey, checkpoint: Checkpoint, reason: str | None) -> None:
    """Who got bytes of a version that is not given out to everybody, and why."""
    if checkpoint.status == Status.RELEASED:
        return
    with lethe.store.write() as session:
        history.write(
            session,
            key.actor,
            "checkpoint.downloaded",
            checkpoint.id,
            checkpoint.request_id,
            {"status": checkpoint.status, "reason": reason},
        )


def _file_headers(file: File) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    return {
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",
    }


def _span(header: str, size: int) -> tuple[int, int] | None:
    """[start, end) of a single range; None for a header that is not one, which RFC 9110 says to ignore."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = (None if digits == "" else int(digits[:_DIGITS]) for digits in match.groups())
    if first is None:
        start, end = max(0, size - (last or 0)), size
    else:
        start, end = first, size if last is None else min(last + 1, size)
        if last is not None and last < first:
            return None
    if start >= size or start >= end:
        raise RangeNotSatisfiable(size)
    return start, end


def _stream(
    lethe: Deployment, checkpoint: Checkpoint, manifest: Manifest, path: str, start: int, end: int
) -> Iterator[bytes]:
    """The bytes. Where a retirement stores the version anew meanwhile, they go on from there: they are the same. Where it
    retires the version, the stream breaks off, short of the length that was said."""
    try:
        for piece in weights.open_range(manifest, lethe.blobs, path, start, end):
            yield piece
            start += len(piece)
    except BlobMissing:
        with lethe.store.read() as session:
            present = session.get_one(Checkpoint, checkpoint.id)
        if present.manifest == checkpoint.manifest:
            raise
        yield from _stream(lethe, present, manifest_of(lethe, present), path, start, end)


def _zip(lethe: Deployment, checkpoint: Checkpoint, manifest: Manifest) -> Iterator[bytes]:
    """A stored zip, written as it is read."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for file in manifest.files:
            info = zipfile.ZipInfo(file.path)
            info.file_size = file.size
            with archive.open(info, "w", force_zip64=file.size > 1 << 31) as member:
                for piece in _stream(lethe, checkpoint, manifest, file.path, 0, file.size):
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
