"""Attacks on the version that a request made, after the fact: checked first, then queued as a job of its own."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import catalog
from app.deployment import Deployment
from app.errors import Conflict, Refused
from app.idempotency import UNKEYED, Once
from app.recipe import check_attacks
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records import model as models
from app.records.base import now
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.registration import check_shadows
from app.submission import DAY


def attack(lethe: Deployment, request: Request, attacks: dict[str, Any], actor: str, once: Once = UNKEYED) -> str:
    """Returns the id of the queued job. Refused for what is no attack on the family, and when the forget set is gone; Conflict
    when there is no version. Then nothing is stored.

    Its deadline is that of a request posted now: attacks overtake no request that is due sooner."""
    with lethe.store.read() as session:
        model = session.get_one(Model, request.model_id)
    named = check_attacks(model.family, attacks, "attacks")
    if not named:
        raise Refused("nothing-to-attack", "attacks", "It names no attack.", 'Such as {"relearning": {"steps": 20}}.')
    check_shadows(lethe, model.family, model.labels, {"attacks": named}, "attacks")
    with lethe.store.write() as session:
        once.claim(session)
        models.share(session, request.model_id)  # a retirement at the same time waits, or was first
        version = _version(session, request)
        _refuse_if_forget_set_is_gone(lethe, session, request, model)
        deadline = (session.scalar(select(now())) or 0.0) + lethe.settings.deadline_days * DAY
        job = jobs.of_attacks(request, version.id, named, deadline, actor)
        jobs.add(session, job)
        once.settle(job.id)
    return job.id


def _version(session: Session, request: Request) -> Checkpoint:
    """The newest that the request made, whose weights and whose parent's are still there."""
    made = checkpoints.of_request(session, request.id)
    if not made:
        raise Conflict("The request has no version that could be attacked.", code="no-version")
    parent = session.get_one(Checkpoint, made[-1].parent_id)
    if checkpoints.Status.RETIRED in (made[-1].status, parent.status):
        raise Conflict("Its version, or the one that it was made from, is retired.", code="version-retired")
    return made[-1]


def _refuse_if_forget_set_is_gone(lethe: Deployment, session: Session, request: Request, model: Model) -> None:
    """What a label or samples of a registered set named can be asked again; so can what the base model draws."""
    source = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
    drawn = request.forget_dataset_id is None and catalog.FAMILIES[model.family].generates
    there = source is not None and source.purged_at is None
    named = bool(request.sealed) and lethe.keyring.exists(request.key_id)
    if not (there or drawn) or not named:
        raise Refused(
            "forget-set-purged",
            "request",
            f"{'Its forget set was purged' if named else 'What it named was erased'}, so nobody can ask for it again.",
            "Name the attacks in the model's evaluation, and they run before the next request's set is purged.",
            409,
        )
