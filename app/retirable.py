"""Which versions of a model may be retired now, which stay, and against which of those each is stored.

Never the head, nor what an alias, a running job or a queued attack needs, nor any while a request is under legal hold; a quarantined version only by name or on request,
and while its request can still be retried or overruled only on request.
"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import catalog
from app.errors import Refused
from app.records import alias as aliases
from app.records import checkpoint as checkpoints
from app.records import request as requests
from app.records.checkpoint import Checkpoint, Status
from app.records.job import Job, Kind
from app.records.job import Status as JobStatus
from app.records.model import Model
from app.records.request import Request

RETRIABLE = (requests.Status.QUEUED, requests.Status.RUNNING, requests.Status.EVALUATION_FAILED)
WHY = {
    "version-released": ("It is released.", "Only superseded and quarantined versions are retired."),
    "version-retired": ("It is retired already.", "There is nothing left to do."),
    "version-held": (
        "A request of the model is under legal hold, and its versions may be evidence.",
        "Lift the hold first.",
    ),
    "version-aliased": ("An alias points at it.", "Move the alias to a released version first."),
    "version-in-use": ("A queued attack needs it.", "Wait for the attack, or cancel its job."),
    "version-retriable": (
        "Its request can still be retried, or the verdict overruled.",
        "Send quarantined: true if it is to go all the same.",
    ),
    "not-asked": ("It is quarantined.", "Send quarantined: true if it is to go."),
}


@dataclass(frozen=True)
class Choice:
    """`staying`: in the order in which they are stored, the head's line first. `bases`: which each is stored against."""

    model: Model
    going: list[Checkpoint]
    staying: list[Checkpoint]
    bases: dict[int, int | None]
    skipped: dict[int, str]  # number: code; without versions that are released or retired

    @property
    def seen(self) -> list[tuple[object, ...]]:
        """What must not have changed when it is recorded."""
        return [(each.id, each.status, each.manifest, each.pack) for each in (*self.going, *self.staying)]


def chosen(session: Session, model: Model, named: Checkpoint | None, quarantined: bool) -> Choice:
    """All that may go, or the named one; Refused with why it may not, or because a job is running."""
    versions = checkpoints.of_model(session, model.id)
    codes = {each.number: _why_not(session, each, versions, quarantined, named is not None) for each in versions}
    if named is not None and (code := codes[named.number]):
        raise Refused(code, "version", *WHY[code], 409)
    _refuse_while_running(session, model)
    going = [each for each in versions if codes[each.number] is None and named in (None, each)]
    staying = [each for each in versions if each.status != Status.RETIRED and each not in going]
    order, bases = _order(staying, versions, checkpoints.head(session, model.id))
    passed = ("version-released", "version-retired")
    skipped = {number: code for number, code in codes.items() if code and code not in passed}
    return Choice(model, going, order, bases, skipped)


def _why_not(
    session: Session, version: Checkpoint, versions: list[Checkpoint], quarantined: bool, by_name: bool
) -> str | None:
    if version.status in (Status.RELEASED, Status.RETIRED):
        return f"version-{version.status}"
    if requests.any_held(session, version.model_id):
        return "version-held"
    if version.number in {alias.version for alias in aliases.of_model(session, version.model_id)}:
        return "version-aliased"
    parents = {each.id: each.parent_id for each in versions}
    waiting = (Job.model_id == version.model_id) & (Job.kind == Kind.ATTACK) & (Job.status == JobStatus.QUEUED)
    attacked = set(session.scalars(select(Job.checkpoint_id).where(waiting)))
    if version.id in attacked | {parents.get(each or "") for each in attacked}:
        return "version-in-use"
    if version.status == Status.QUARANTINED and not quarantined:
        request = session.get(Request, version.request_id) if version.request_id else None
        if not by_name:
            return "not-asked"
        if request is not None and request.status in RETRIABLE and request.purged_at is None:
            return "version-retriable"
    return None


def _refuse_while_running(session: Session, model: Model) -> None:
    """Of the model, or of another one that is compared with this one's head, judged by it or shadowed by it."""
    running = session.execute(
        select(Job, Request, Model).join(Request, Request.id == Job.request_id).join(Model, Model.id == Job.model_id)
        .where(Job.status == JobStatus.RUNNING)
    ).all()  # fmt: skip
    for job, request, other in running:
        evaluation = {"attacks": job.recipe} if job.kind == Kind.ATTACK else other.evaluation
        used = {other.id, other.judge_id, request.reference_id, *other.evaluators.values()}
        if model.id in used or model.name in catalog.shadow_names(evaluation):
            rule = "A job that reads its versions is running."
            raise Refused("model-busy", "version", rule, "Wait for its end, or cancel it.", 409)


def _order(
    staying: list[Checkpoint], versions: list[Checkpoint], head: Checkpoint
) -> tuple[list[Checkpoint], dict[int, int | None]]:
    """The head's line, oldest first, then the others; each against its nearest ancestor that stays, else the head."""
    known, stay = {each.id: each for each in versions}, {each.id for each in staying}

    def line(version: Checkpoint) -> list[Checkpoint]:
        above, at = [], known.get(version.parent_id or "")
        while at is not None:
            above += [at] if at.id in stay else []
            at = known.get(at.parent_id or "")
        return above

    first = [*line(head)[::-1], head]
    order = first + [each for each in staying if each not in first]
    above = {each.number: line(each) for each in order}
    bases = {
        n: found[0].number if found else None if n == order[0].number else head.number for n, found in above.items()
    }
    return order, bases
