"""/v1/models/{name}/retire and .../checkpoints/{number}/retire: erase what superseded and quarantined versions alone hold."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from app import retirement
from app.api.checkpoints import CheckpointOut, find_checkpoint, shown
from app.api.dependencies import Lethe, need_own
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.errors import NotFound
from app.preconditions import precondition_required
from app.records import erasure as erasures
from app.records import model as models
from app.records.api_key import ApiKey
from app.retirable import chosen
from app.retirement import RETIRE, Code, Order

router = APIRouter(prefix="/v1/models/{name}", tags=["checkpoints"])
Retirer = Annotated[ApiKey, Depends(need_own(RETIRE))]


class RetireIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"code": "erasure"}]})
    code: Code = Field(description="The kind of reason, for whoever counts them.")
    quarantined: bool = Field(
        False,
        strict=True,
        description="Also quarantined versions, even if their request could be retried or overruled.",
    )


class VersionGone(BaseModel):
    number: int
    was: str = Field(description="Its status before.")
    tensors: int
    tensors_erased: int = Field(description="Tensors of which no version that stays has the values.")


class Skipped(BaseModel):
    number: int
    code: str = Field(description="Why it stays: what naming it would be refused with.")


class RetirementOut(BaseModel):
    id: str | None = Field(description="Null when nothing could be retired.")
    model: str
    versions: list[VersionGone]
    skipped: list[Skipped] = Field(description="Superseded and quarantined versions that stay, as things are now.")
    bytes_erased: int = Field(description="Of the packs that are deleted.")
    bytes_kept: int = Field(description="Of the new packs that hold what versions that stay need of the deleted ones.")
    erased: bool = Field(description="Whether all is deleted; the sweeper deletes what a crash left.")


@router.post("/checkpoints/{number}/retire", response_model=CheckpointOut, responses=refusals(409, 412, 428, 507))
def retire_version(
    name: str,
    number: str,
    body: RetireIn,
    response: Response,
    lethe: Lethe,
    key: Retirer,
    once: Idempotent,
    if_match: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Erase what a superseded or quarantined version alone holds, for ever. What versions that stay need of it moves to a
    pack of theirs, and their files stay as they are, byte for byte. Its report stays; its files answer 410. It may take
    minutes for large models; sent again, it goes on. Needs If-Match with the version's ETag. 409 when it is released or
    retired, an alias points at it, a job that reads the model runs, a queued attack needs it, or its request could still be retried or overruled
    and `quarantined` is not true; 403 `not-owner` for a model of another key."""
    if if_match is None:
        raise precondition_required("version")
    model, version, _ = find_checkpoint(lethe, name, number)
    order = Order(model.id, version.number, body.code, body.quarantined, key.actor, if_match)
    once.made(lambda: retirement.retire(lethe, order, once))
    tell(once, response)
    return shown(lethe, name, str(version.number), response)


@router.post("/retire", response_model=RetirementOut, responses=refusals(409, 507))
def retire_model(
    name: str, body: RetireIn, response: Response, lethe: Lethe, key: Retirer, once: Idempotent
) -> dict[str, Any]:
    """The same of every superseded version of the model at once, and with `quarantined` of every quarantined one. Those
    that cannot go now are skipped, with the code that naming them would be refused with."""
    with lethe.store.read() as session:
        model = models.find(session, name)
    if model is None:
        raise NotFound("model")
    order = Order(model.id, None, body.code, body.quarantined, key.actor)
    made = once.made(lambda: retirement.retire(lethe, order, once))
    tell(once, response)
    with lethe.store.read() as session:
        gone = [{"number": each.number, **(each.retired or {})} for each in retirement.of(session, model, made)]
        skipped = chosen(session, model, None, body.quarantined).skipped
        erased = not erasures.unfinished(session, made)
    return {
        "id": made if gone else None,
        "model": model.name,
        "versions": gone,
        "skipped": [{"number": number, "code": code} for number, code in skipped.items()],
        **{name: gone[0][name] if gone else 0 for name in ("bytes_erased", "bytes_kept")},
        "erased": erased,
    }
