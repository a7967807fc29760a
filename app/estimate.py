"""What a request would select and cost, said before it is asked: by the same checks, and nothing is stored.

Every figure is counted, bounded or measured. Time is that of jobs which ran on the same model; without one there is none.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from app import weights
from app.curation import Wish
from app.deployment import Deployment
from app.reach import Memory, Reach, memory, reach
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records.checkpoint import Checkpoint
from app.records.job import Job
from app.submission import Checked, check

Basis = Literal["same_recipe", "same_method", "none"]
MOST_JOBS = 50
MOST_VERSIONS = 10
MEGABYTE = 1e6  # the unit of the report's figures


@dataclass(frozen=True)
class Measured:
    """Of `n` earlier jobs of the model; without one there are no figures."""

    basis: Basis
    n: int
    min: float | None
    median: float | None
    max: float | None


@dataclass(frozen=True)
class RungEstimate:
    method: str
    recipe: dict[str, Any]
    seconds: Measured  # of the whole job
    unlearning_seconds: Measured  # of the method alone
    memory: Memory
    host_bytes: Measured
    device_bytes: Measured
    reach: Reach
    earlier: list[Checkpoint]  # versions that the method made of this model


@dataclass(frozen=True)
class Estimate:
    checked: Checked
    head: int  # the version that the job would start from
    rungs: list[RungEstimate]


def estimate(lethe: Deployment, wish: Wish, actor: str, sees_all: bool) -> Estimate:
    """Raises Refused or NotFound as `submit` would."""
    checked = check(lethe, wish, actor, sees_all)
    with lethe.store.read() as session:
        head = checkpoints.head(session, checked.model.id)
    with lethe.blobs.open(head.manifest) as file:
        manifest = weights.decode(file.read())
    rungs = [_rung(lethe, checked, manifest, **rung) for rung in checked.request.ladder]
    return Estimate(checked, head.number, rungs)


def _rung(
    lethe: Deployment, checked: Checked, manifest: weights.Manifest, method: str, recipe: dict[str, Any]
) -> RungEstimate:
    model = checked.model
    with lethe.store.read() as session:
        ran = jobs.succeeded(session, model.id, method, MOST_JOBS)
        basis, alike = _alike(ran, recipe)
        made = checkpoints.made_by(session, [job.id for job in ran])
    like = {job.id for job in alike}
    reports = [version.report for version in made if version.job_id in like]
    return RungEstimate(
        method=method,
        recipe=recipe,
        seconds=_measured(basis, [job.seconds for job in alike]),
        unlearning_seconds=_measured(basis, [job.unlearning_seconds for job in alike]),
        memory=memory(model.family, method, recipe, manifest),
        host_bytes=_measured(basis, [_bytes(report, "peak_memory") for report in reports]),
        device_bytes=_measured(basis, [_bytes(report, "peak_device_memory") for report in reports]),
        reach=reach(model.family, method, recipe, manifest, checked.choice.labels),
        earlier=[version for version in made if version.changes][:MOST_VERSIONS],
    )


def _alike(ran: list[Job], recipe: dict[str, Any]) -> tuple[Basis, list[Job]]:
    """Jobs with the very recipe, where there are any; else those of the method with another one."""
    same = [job for job in ran if job.recipe == recipe]
    if same:
        return "same_recipe", same
    return ("same_method", ran) if ran else ("none", [])


def _measured(basis: Basis, told: list[float | None]) -> Measured:
    values = [value for value in told if value is not None]
    if not values:
        return Measured("none", 0, None, None, None)
    return Measured(basis, len(values), min(values), median(values), max(values))


def _bytes(report: dict[str, Any], metric: str) -> float | None:
    """What the report measured, in bytes; None where it could not."""
    values = (figure["value"] for figure in report.get("figures", ()) if figure["metric"] == metric)
    value = next(values, None)
    return None if value is None else round(value * MEGABYTE)
