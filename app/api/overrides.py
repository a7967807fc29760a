"""/v1/models/{name}/checkpoints/{number}/override: a person releases a version against its verdict."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Response
from pydantic import BaseModel, ConfigDict, Field

from app import override
from app.api.aliases import Reason
from app.api.checkpoints import CheckpointOut, find_checkpoint, shown
from app.api.dependencies import Lethe, need
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.override import OVERRIDE, Code, Decision
from app.preconditions import precondition_required
from app.records.api_key import ApiKey

router = APIRouter(prefix="/v1/models/{name}/checkpoints", tags=["checkpoints"])
Overrider = Annotated[ApiKey, Depends(need(OVERRIDE))]


class OverrideIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"code": "too_few_samples", "reason": "2 of 20 images, both unclear"}]},
    )
    code: Code = Field(description="The kind of reason, for whoever counts them.")
    reason: Reason = Field(
        description="Why it is released; kept in the audit for ever, in plain, so it must not name the person."
    )


@router.post("/{number}/override", response_model=CheckpointOut, responses=refusals(409, 412, 428))
def override_verdict(
    name: str,
    number: str,
    body: OverrideIn,
    response: Response,
    lethe: Lethe,
    key: Overrider,
    once: Idempotent,
    if_match: Annotated[str | None, Header()] = None,
) -> dict[str, Any]:
    """Release a quarantined version against its verdict. All happens that passing would have done: it becomes the head,
    its request `completed` with the reason `overridden`, earlier versions superseded, tombstones laid, the forget set purged.
    The report keeps its verdict and shows the override beside it. Needs If-Match with the version's ETag. 409 when it is not
    quarantined, its request ended otherwise, the head is no more its parent, a job of the model runs, or the forget set was
    purged."""
    if if_match is None:
        raise precondition_required("version")
    model, version, _ = find_checkpoint(lethe, name, number)
    decision = Decision(model.id, version.number, body.code, body.reason, key.actor, if_match)
    once.made(lambda: override.override(lethe, decision, once))
    tell(once, response)
    return shown(lethe, name, str(version.number), response)
