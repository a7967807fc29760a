"""/v1/history: who did what, when; for admins and auditors."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from app.api.dependencies import After, Lethe, Limit, Moment, Page, moment, need, paged, position
from app.records import history
from app.records.api_key import ApiKey

router = APIRouter(prefix="/v1/history", tags=["history"])


class EntryOut(BaseModel):
    id: int = Field(description="Rises with every entry.")
    at: str
    actor: str = Field(description="`key:<id>`, a worker, `sweeper`, `system` or `operator`.")
    action: str = Field(description="`<thing>.<what happened>`, such as request.received or checkpoint.downloaded.")
    resource: str = Field(description="Id of what it happened to.")
    request: str | None = Field(description="The deletion request that it belongs to.")
    details: dict[str, Any]


@router.get("", response_model=Page[EntryOut])
def list_history(
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Annotated[ApiKey, Depends(need("history:read"))],
    limit: Limit = 50,
    after: After = None,
    request_id: Annotated[str | None, Query(alias="request", max_length=64)] = None,
    actor: Annotated[str | None, Query(max_length=200)] = None,
    action: Annotated[str | None, Query(max_length=100)] = None,
    resource: Annotated[str | None, Query(max_length=100)] = None,
    since: Moment | None = None,
    until: Moment | None = None,
) -> dict[str, Any]:
    """Every transition, oldest first, filtered by request, actor, action, resource and time. Append-only: the database
    refuses changes."""
    with lethe.store.read() as session:
        found = history.page(
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
    page = paged(found, limit, lambda entry: str(entry.id), request, response)
    return {**page, "data": [_out(entry) for entry in page["data"]]}


def _out(entry: history.HistoryEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "at": moment(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "resource": entry.resource,
        "request": entry.request_id,
        "details": entry.details,
    }
