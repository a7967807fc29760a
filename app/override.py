"""Release a quarantined version against its verdict: a person's decision, kept beside the report that it overrules.

One transaction does all that passing would have done: the version is released and the head, its request completed, earlier
versions superseded, tombstones laid. The report stays as it was written. Only a child of the present head is released, and
only while no job of the model that unlearns runs: else a version would lead the line that lacks what another one forgot.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.errors import NotFound, PreconditionFailed, Refused
from app.idempotency import UNKEYED, Once
from app.preconditions import matches
from app.privacy import purge
from app.records import checkpoint as checkpoints
from app.records import held_tombstone as held_tombstones
from app.records import job as jobs
from app.records import model as models
from app.records import request as requests
from app.records import tombstone as tombstones
from app.records.base import now
from app.records.checkpoint import Checkpoint, Status
from app.records.request import Request

OVERRIDE = "checkpoints:override"


class Code(StrEnum):
    JUDGE_WRONG = "judge_wrong"
    TOO_FEW_SAMPLES = "too_few_samples"
    POLICY_TOO_STRICT = "policy_too_strict"
    RISK_ACCEPTED = "risk_accepted"
    OTHER = "other"


@dataclass(frozen=True)
class Decision:
    """Who releases which version, and why. `if_match`: what the caller believes the version to be."""

    model: str
    version: int
    code: Code
    reason: str
    actor: str
    if_match: str


def override(lethe: Deployment, decision: Decision, once: Once = UNKEYED) -> str:
    """Returns the version's id."""
    with lethe.store.write() as session:
        once.claim(session)
        version, request = _held(session, decision.model, decision.version)
        if not matches(decision.if_match, etag(version)):
            raise PreconditionFailed
        _refuse_unless_quarantined(version, request)
        assert request is not None
        _refuse_stale(session, version)
        fingerprints = held_tombstones.of_checkpoint(session, version.id)
        if request.purged_at is not None or (request.forget_dataset_id is not None and not fingerprints):
            raise _refused(
                "forget-set-purged",
                "Its forget set was purged, so later retain sets could not be kept clean of it.",
                "Post a new request.",
            )
        _release(session, version, request, decision)
        tombstones.lay(session, version.model_id, request.id, fingerprints)
        once.settle(version.id)
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request.id, lethe.settings)
    return version.id


def etag(version: Checkpoint) -> str:
    """Of a version, whose status is all of it that changes."""
    return f'"{version.number}-{version.status}"'


def _release(session: Session, version: Checkpoint, request: Request, decision: Decision) -> None:
    verdict = {name: version.report.get(name) for name in ("verdict", "reasons")}
    why = {"code": decision.code, "reason": decision.reason}
    version.override = {"at": session.scalar(select(now())), "by": decision.actor, **why}
    details = {"number": version.number, **verdict, **why}
    checkpoints.release(session, version, decision.actor, details)
    requests.move(session, request.id, requests.Status.COMPLETED, decision.actor, "overridden", why)
    checkpoints.supersede_before(session, version, decision.actor)


def _held(session: Session, name: str, number: int) -> tuple[Checkpoint, Request | None]:
    """The version and its request. Until the transaction ends no job of the model is claimed, posted or registered, so
    the head stays the head.

    Rows are locked in the order in which workers and retries do: jobs, request, model. Then jobs again: one may have been
    posted meanwhile.
    """
    model = models.find(session, name)
    found = checkpoints.find(session, model.id, number) if model else None
    if model is None or found is None:
        raise NotFound("checkpoint")
    jobs.hold_active(session, model.id)
    request = requests.hold(session, found.request_id) if found.request_id else None
    models.lock(session, model.id, whole=True)
    active = jobs.hold_active(session, model.id)
    if any(job.status == jobs.Status.RUNNING and job.kind == jobs.Kind.UNLEARN for job in active):
        raise _refused(
            "model-busy",
            "A job of the model is running, from the version that is the head now.",
            "Wait for its end, or cancel its request.",
        )
    session.refresh(found)
    return found, request


def _refuse_unless_quarantined(version: Checkpoint, request: Request | None) -> None:
    if version.status != Status.QUARANTINED or request is None:
        raise _refused(
            "version-not-quarantined", f"It is {version.status}.", "Only a quarantined version is overruled."
        )
    if request.status != requests.Status.EVALUATION_FAILED:
        raise _refused(
            "request-ended-otherwise",
            f"Its request is {request.status}, not evaluation_failed.",
            "A request that was retried, or completed with another version, needs no override of this one.",
        )


def _refuse_stale(session: Session, version: Checkpoint) -> None:
    head = checkpoints.head(session, version.model_id)
    if version.parent_id != head.id:
        raise _refused(
            "head-moved",
            f"It was not made from the head, version {head.number}, so it remembers what that one forgot.",
            "Retry the request: its next version starts from the head.",
        )


def _refused(code: str, rule: str, remedy: str) -> Refused:
    return Refused(code, "version", rule, remedy, 409)
