"""/v1/audit: who did what, when, in one order that can be checked offline; for admins and auditors."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select

from app.api.dependencies import After, Lethe, Limit, Moment, Page, moment, need, paged, position
from app.audit import chain
from app.audit.chain import Head
from app.deployment import Deployment
from app.errors import Refused
from app.records import audit_entry
from app.records.api_key import ApiKey
from app.records.audit_entry import AuditEntry
from app.records.base import now
from app.records.history import HistoryEntry

router = APIRouter(prefix="/v1/audit", tags=["audit"])
Auditor = Annotated[ApiKey, Depends(need("audit:read"))]
_EXPORTED_AT_ONCE = 500
_HASH = "SHA-256 in hexadecimal; docs/audit.md says of what."


class EntryOut(BaseModel):
    v: int = Field(description="Version of the entry's form.")
    seq: int = Field(description="Its number: from 1, without gaps.")
    at: str
    actor: str = Field(description="`key:<id>`, a worker, `sweeper`, `system` or `operator`.")
    action: str = Field(description="`<thing>.<what happened>`, such as request.received or checkpoint.downloaded.")
    resource: str = Field(description="Id of what it happened to.")
    request: str | None = Field(description="The deletion request that it belongs to.")
    details: dict[str, Any]
    leaf: str = Field(description=f"Hash of the entry. {_HASH}")
    link: str = Field(description=f"Hash of the link before and the leaf, and so of all entries so far. {_HASH}")


class HeadOut(BaseModel):
    format: str = Field(description="Version of the log's format.")
    size: int = Field(description="How many entries there are.")
    link: str = Field(description="Link of the last one.")
    time: str = Field(description="When it was asked for.")


@router.get("", response_model=Page[EntryOut])
def list_audit(
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Auditor,
    limit: Limit = 50,
    after: After = None,
    request_id: Annotated[str | None, Query(alias="request", max_length=64)] = None,
    actor: Annotated[str | None, Query(max_length=200)] = None,
    action: Annotated[str | None, Query(max_length=100)] = None,
    resource: Annotated[str | None, Query(max_length=100)] = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> dict[str, Any]:
    """Every transition, by number, filtered by request, actor, action, resource and time. What was just committed is here
    within a second. The database refuses changes."""
    with lethe.store.read() as session:
        found = audit_entry.page(
            session,
            after=position(after),
            limit=limit + 1,
            actor=actor,
            action=action,
            resource=resource,
            request_id=request_id,
            since=since.timestamp() if since else None,
            until=until.timestamp() if until else None,
        )
    page = paged(found, limit, lambda each: str(each[0].seq), request, response)
    return {**page, "data": [_out(entry, row) for entry, row in page["data"]]}


@router.get("/head", response_model=HeadOut)
def get_head(lethe: Lethe, key: Auditor) -> dict[str, Any]:
    """The log's head. Keep it outside this deployment: a later export that does not contain it was rewritten or cut."""
    with lethe.store.read() as session:
        head, clock = audit_entry.head(session), session.scalar(select(now()))
    return {"format": chain.FORMAT, "size": head.size, "link": head.link.hex(), "time": moment(clock)}


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={200: {"description": "A header line, then one line per entry.", "content": {"application/jsonl": {}}}},
)
def export_audit(
    lethe: Lethe,
    key: Auditor,
    first: Annotated[int, Query(alias="from", ge=1, description="Number of the first entry.")] = 1,
    last: Annotated[
        int | None, Query(alias="to", ge=0, description="Number of the last entry; by default, all.")
    ] = None,
) -> StreamingResponse:
    """The log as JSON lines, with the head that it ends with, for `lethe audit verify`. To go on from a head, ask from its
    size + 1."""
    with lethe.store.read() as session:
        head = audit_entry.head(session)
        for field, asked, most in (("to", last, head.size), ("from", first, (head.size if last is None else last) + 1)):
            if asked is not None and asked > most:
                rule = f"It must not be beyond {most}."
                raise Refused(
                    "out-of-bounds", field, rule, "Ask for entries that the log has; /v1/audit/head says how many."
                )
        head = head if last is None else audit_entry.head(session, last)
        before = audit_entry.head(session, first - 1).link
    headers = {"Content-Disposition": f'attachment; filename="audit-{first}-{head.size}.jsonl"'}
    return StreamingResponse(_lines(lethe, first, before, head), media_type="application/jsonl", headers=headers)


def _lines(lethe: Deployment, first: int, before: bytes, head: Head) -> Iterator[bytes]:
    yield chain.header(first, before, head)
    for start in range(first, head.size + 1, _EXPORTED_AT_ONCE):
        with lethe.store.read() as session:
            found = audit_entry.between(session, start, min(start + _EXPORTED_AT_ONCE - 1, head.size))
        yield b"".join(chain.line(audit_entry.document(entry.seq, row), entry.leaf, entry.link) for entry, row in found)


def _out(entry: AuditEntry, row: HistoryEntry) -> dict[str, Any]:
    return {**audit_entry.document(entry.seq, row), "leaf": entry.leaf.hex(), "link": entry.link.hex()}
