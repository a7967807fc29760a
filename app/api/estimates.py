"""/v1/requests/estimate: what a deletion request would select, change and cost, and nothing is stored."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.dependencies import Lethe
from app.api.once import Idempotent
from app.api.openapi import refusals
from app.api.problems import only_post
from app.api.requests import Poster, RequestIn, Source, wish_of
from app.estimate import Basis, Measured, RungEstimate, estimate
from app.records.checkpoint import Checkpoint

router = APIRouter(prefix="/v1/requests/estimate", tags=["requests"])
router.add_api_route("", only_post, methods=["GET", "PUT", "PATCH", "DELETE"], include_in_schema=False)
ABOUT = {
    "same_recipe": "{n} earlier job{s} of this model with this recipe",
    "same_method": "{n} earlier job{s} of this model with this method and another recipe",
    "none": "no earlier job of this model with this method",
}


class MeasuredOut(BaseModel):
    """What earlier jobs of the model took, as it was measured: a range, not a promise."""

    basis: Basis = Field(
        description="same_recipe: jobs with this method and recipe. same_method: with another recipe, of which nothing was scaled. none: there is no such job, or none measured it; then no figure is made up."
    )
    about: str = Field(description="The basis in words.")
    n: int = Field(description="Jobs behind it: at most the 50 newest that succeeded.")
    min: float | None
    median: float | None
    max: float | None


class MemoryOut(BaseModel):
    at_least: int = Field(description="The sum of what is counted. Activations, batches and libraries come on top.")
    weights: int = Field(description="The base and the copy that moves, both in float32.")
    gradients: int = Field(description="Of what the method may move, in float32.")
    optimizer: int = Field(description="Its moments, or what the method keeps in their place.")
    host_peak: MeasuredOut = Field(description="Most that earlier runners held in host memory while they unlearned.")
    device_peak: MeasuredOut = Field(description="The same of the device.")


class TouchedOut(BaseModel):
    """A bound: no run of the method changes more."""

    about: str = Field(description="What of the network may move.")
    tensors: int
    of_tensors: int
    elements: int
    of_elements: int


class ChangedOut(BaseModel):
    """What the method really changed in an earlier version of this model."""

    version: int
    tensors: int
    of_tensors: int
    elements: int
    of_elements: int


class RungOut(BaseModel):
    method: str
    recipe: dict[str, Any] = Field(description="Resolved: every hyper-parameter.")
    seconds: MeasuredOut = Field(description="Of the whole job: load, unlearn, evaluate, register; without waiting.")
    unlearning_seconds: MeasuredOut = Field(description="Of the method alone.")
    memory_bytes: MemoryOut
    tensors_touched: TouchedOut
    earlier_versions: list[ChangedOut] = Field(description="Newest first, at most 10.")


class EstimateOut(BaseModel):
    model: str
    version: int = Field(description="Number of the version that the job would start from: the head.")
    forget_kind: str
    forget_count: int = Field(description="As on the request.")
    forget_source: Source
    retain_count: int = Field(
        description="Samples of the retain set beside these, or that will be generated to be kept. Those that an earlier request forgot are counted, too, and no job keeps them: a count without them would tell whom others had forgotten."
    )
    method: str = Field(description="As asked: auto, or a method's name.")
    ladder: list[RungOut] = Field(
        description="What would run, in this order, until a version meets the policy: the first rung always does."
    )


@router.post("", response_model=EstimateOut, responses=refusals(404, 409))
def post_estimate(body: RequestIn, lethe: Lethe, key: Poster, once: Idempotent) -> dict[str, Any]:
    """What this request would select, change and cost. The body, the checks and the refusals are those of POST /v1/requests;
    nothing is stored, no forget set adopted and no history written. So nothing is done twice, and an Idempotency-Key is taken
    and not used up."""
    found = estimate(lethe, wish_of(body), key.actor, "requests:admin" in key.scopes)
    request, source = found.checked.request, found.checked.choice.source
    return {
        "model": found.checked.model.name,
        "version": found.head,
        "forget_kind": request.forget_kind,
        "forget_count": request.forget_count,
        "forget_source": "generated" if source is None else "uploaded" if source.sealed else "registered",
        "retain_count": found.checked.choice.retained,
        "method": request.method,
        "ladder": [_rung(each) for each in found.rungs],
    }


def _rung(rung: RungEstimate) -> dict[str, Any]:
    return {
        "method": rung.method,
        "recipe": rung.recipe,
        "seconds": _measured(rung.seconds),
        "unlearning_seconds": _measured(rung.unlearning_seconds),
        "memory_bytes": vars(rung.memory)
        | {
            "at_least": rung.memory.at_least,
            "host_peak": _measured(rung.host_bytes),
            "device_peak": _measured(rung.device_bytes),
        },
        "tensors_touched": {name: value for name, value in vars(rung.reach).items() if name != "candidates"},
        "earlier_versions": [_changed(version) for version in rung.earlier],
    }


def _measured(measured: Measured) -> dict[str, Any]:
    about = ABOUT[measured.basis].format(n=measured.n, s="" if measured.n == 1 else "s")
    return vars(measured) | {"about": about}


def _changed(version: Checkpoint) -> dict[str, Any]:
    counted = version.changes
    return {
        "version": version.number,
        "tensors": counted["tensors_changed"],
        "of_tensors": counted["tensors_total"],
        "elements": counted["elements_changed"],
        "of_elements": counted["elements_total"],
    }
