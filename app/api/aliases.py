"""/v1/models/{name}/aliases: which version serves; set, rolled back, and every move kept."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from app import promotion
from app.api.dependencies import After, Lethe, Limit, Page, Text, moment, need, need_own, paged, position
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.deployment import Deployment
from app.errors import NotFound
from app.preconditions import precondition_required
from app.promotion import REOPEN, Step
from app.records import alias as aliases
from app.records import alias_move
from app.records import checkpoint as checkpoints
from app.records import model as models
from app.records.alias import Alias
from app.records.alias_move import AliasMove, Kind
from app.records.api_key import ApiKey
from app.records.checkpoint import Status
from app.records.model import Model

router = APIRouter(prefix="/v1/models/{name}/aliases", tags=["aliases"])
Reader = Annotated[ApiKey, Depends(need("models:read"))]
Writer = Annotated[ApiKey, Depends(need_own("models:write"))]
Roller = Annotated[ApiKey, Depends(need_own("models:write", REOPEN))]
Auditor = Annotated[ApiKey, Depends(need("audit:read"))]
IfMatch = Annotated[str | None, Header()]
WHY = "Why it moves; kept in the audit for ever, in plain, so it must not name the person."


def _said(reason: str) -> str:
    if not reason.strip():
        raise ValueError("it must say something")
    return reason.strip()


Reason = Annotated[Text, StringConstraints(max_length=500), AfterValidator(_said)]


class AliasIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"version": 3, "reason": "release 12"}]})
    version: int = Field(ge=1, lt=2**31, strict=True, description="Number of a released version of the model.")
    reason: Reason = Field(description=WHY)


class RollbackIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "wrong answers since noon"}]})
    to_version: int | None = Field(
        None, ge=1, lt=2**31, strict=True, description="Default: the version before the present one."
    )
    reason: Reason = Field(description=WHY)


class AliasOut(BaseModel):
    model: str
    name: str
    version: int
    status: Status = Field(description="Of the version; superseded: a request completed since, and it still remembers.")
    moved_at: str


class RollbackOut(AliasOut):
    reopened: list[str] = Field(description="Requests that were completed and that this rollback went behind.")


class MoveOut(BaseModel):
    id: int = Field(description="Rises with every move.")
    at: str
    actor: str
    kind: Kind
    from_version: int | None = Field(description="Null when the alias was created.")
    to_version: int | None = Field(description="Null when it was removed.")
    reason: str
    reopened: list[str] = Field(description="Requests that a rollback reopened.")


@router.get("", response_model=list[AliasOut])
def list_aliases(name: str, lethe: Lethe, key: Reader) -> list[dict[str, Any]]:
    """All aliases of a model, by name."""
    with lethe.store.read() as session:
        model = models.find(session, name)
        found = aliases.of_model(session, model.id) if model else []
        statuses = checkpoints.statuses(session, model.id) if model else {}
    if model is None:
        raise NotFound("model")
    return [_out(model, alias, statuses[alias.version]) for alias in found]


@router.get("/{alias}", response_model=AliasOut)
def get_alias(name: str, alias: str, response: Response, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """One alias. The ETag is for If-Match on PUT, DELETE and rollback; it changes with each move, and when the version is
    superseded."""
    return _one(lethe, name, alias, response)


@router.put(
    "/{alias}",
    response_model=AliasOut,
    responses={201: {"description": "The alias is new.", "model": AliasOut}, **refusals(409, 412, 428)},
)
def set_alias(
    name: str,
    alias: str,
    body: AliasIn,
    response: Response,
    lethe: Lethe,
    key: Writer,
    if_match: IfMatch = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Point an alias at a released version; quarantined and superseded ones are refused (409). To create it, send
    `If-None-Match: *`; to move it, If-Match with its ETag. A name is 1 to 50 of `a-z`, `0-9` and `-`, begins with a letter
    and is not `head`. Setting it to the version that it has changes nothing. 403 `not-owner` for a model of another key."""
    only_new = if_none_match is not None and if_none_match.strip() == "*"
    if if_match is None and not only_new:
        raise precondition_required("alias", ", or If-None-Match: * must create it")
    step = Step(name, alias, body.reason, key.actor, if_match)
    if promotion.set_alias(lethe, step, body.version, only_new):
        response.status_code = 201
        response.headers["Location"] = f"/v1/models/{name}/aliases/{alias}"
    return _one(lethe, name, alias, response)


@router.delete("/{alias}", status_code=204, responses=refusals(412, 428))
def remove_alias(
    name: str,
    alias: str,
    lethe: Lethe,
    key: Writer,
    reason: Annotated[Reason, Query(description=WHY)],
    if_match: IfMatch = None,
) -> None:
    """Take an alias away. Needs If-Match with its ETag; its moves stay. 403 `not-owner` for a model of another key."""
    if if_match is None:
        raise precondition_required("alias")
    promotion.remove_alias(lethe, Step(name, alias, reason, key.actor, if_match))


@router.post("/{alias}/rollback", response_model=RollbackOut, responses=refusals(409, 412, 428))
def roll_back(
    name: str,
    alias: str,
    body: RollbackIn,
    response: Response,
    lethe: Lethe,
    key: Roller,
    once: Idempotent,
    if_match: IfMatch = None,
) -> dict[str, Any]:
    """Move an alias back, also to a superseded version; the head stays, so that no later version forgets less. Where the
    version lacks what a completed request forgot, the key needs the scope requests:reopen too, and each such request is
    `reopened` until no alias points at a version that lacks it. Needs If-Match with the alias's ETag: of two rollbacks at once
    one is refused (412). `If-Match: *` takes it back wherever it stands."""
    if if_match is None:
        raise precondition_required("alias", ", or be * to roll back wherever it stands")
    step = Step(name, alias, body.reason, key.actor, if_match)
    may_reopen = REOPEN in key.scopes
    move_id = once.made(lambda: promotion.roll_back(lethe, step, body.to_version, may_reopen, once))
    tell(once, response)
    return _rolled_back(lethe, int(move_id), response)


@router.get("/{alias}/history", response_model=Page[MoveOut])
def list_moves(
    name: str,
    alias: str,
    request: Request,
    response: Response,
    lethe: Lethe,
    key: Auditor,
    limit: Limit = 50,
    after: After = None,
) -> dict[str, Any]:
    """Every move of an alias, oldest first: who, when, from where to where, and why. They stay when it is removed."""
    with lethe.store.read() as session:
        model = models.find(session, name)
        found = alias_move.page(session, model.id, alias, after=position(after), limit=limit + 1) if model else []
        known = model is not None and bool(alias_move.page(session, model.id, alias, after=0, limit=1))
    if not known:
        raise NotFound("alias")
    page = paged(found, limit, lambda move: str(move.id), request, response)
    return {**page, "data": [_moved(move) for move in page["data"]]}


def _one(lethe: Deployment, name: str, alias_name: str, response: Response) -> dict[str, Any]:
    with lethe.store.read() as session:
        model = models.find(session, name)
        alias = aliases.find(session, model.id, alias_name) if model else None
        version = checkpoints.find(session, alias.model_id, alias.version) if alias else None
    if model is None or alias is None or version is None:
        raise NotFound("alias")
    response.headers["ETag"] = promotion.etag(alias.move_id, version.status)
    return _out(model, alias, version.status)


def _rolled_back(lethe: Deployment, move_id: int, response: Response) -> dict[str, Any]:
    """Rendered from the move, so that a repeated answer tells the same whatever the alias did since."""
    with lethe.store.read() as session:
        move = session.get_one(AliasMove, move_id)
        model = session.get_one(Model, move.model_id)
        version = checkpoints.find(session, model.id, move.to_version or 0)
    assert version is not None
    response.headers["ETag"] = promotion.etag(move.id, version.status)
    return {
        "model": model.name,
        "name": move.name,
        "version": version.number,
        "status": version.status,
        "moved_at": moment(move.at),
        "reopened": move.reopened,
    }


def _out(model: Model, alias: Alias, status: str) -> dict[str, Any]:
    return {
        "model": model.name,
        "name": alias.name,
        "version": alias.version,
        "status": status,
        "moved_at": moment(alias.moved_at),
    }


def _moved(move: AliasMove) -> dict[str, Any]:
    return {
        "id": move.id,
        "at": moment(move.at),
        "actor": move.actor,
        "kind": move.kind,
        "from_version": move.from_version,
        "to_version": move.to_version,
        "reason": move.reason,
        "reopened": move.reopened,
    }
