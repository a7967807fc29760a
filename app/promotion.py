"""Which version serves: the rule that spans aliases, versions and requests. Each move is one transaction.

An alias is set to a released version only. A rollback may also go to a superseded one; behind a completed request it
needs a key that may reopen it, and the request stays reopened until no alias points at a version that lacks what it
forgot. The head never goes back, so no later version forgets less.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.errors import Forbidden, NotFound, PreconditionFailed, Refused
from app.idempotency import UNKEYED, Once
from app.preconditions import matches
from app.records import alias as aliases
from app.records import alias_move
from app.records import checkpoint as checkpoints
from app.records import model as models
from app.records import request as requests
from app.records.alias import Alias
from app.records.alias_move import Kind
from app.records.checkpoint import Checkpoint, Status

NAME = re.compile(r"[a-z][a-z0-9-]{0,49}")
HEAD = "head"  # always the newest released version, so no alias has this name
REOPEN = "requests:reopen"


@dataclass(frozen=True)
class Step:
    """Who moves which alias, and why. `if_match`: what the caller believes it to be; None for one that is to be new."""

    model: str
    alias: str
    reason: str
    actor: str
    if_match: str | None


def set_alias(lethe: Deployment, step: Step, version: int, only_new: bool) -> bool:
    """Create it, or move it. Returns whether it is new. `only_new`: PreconditionFailed when it is there already."""
    _check_name(step.alias)
    with _locked(lethe, step) as (session, model_id, alias):
        if alias is None and step.if_match is not None:
            raise PreconditionFailed
        if alias is not None and only_new:
            raise PreconditionFailed("The alias exists: read it, then move it with If-Match.")
        target = _held(session, model_id, version)
        if alias is None or alias.version != version:
            _refuse_unreleased(target)
            kind = Kind.CREATED if alias is None else Kind.MOVED
            aliases.point(session, model_id, step.alias, version, kind, step.actor, step.reason)
            _close_again(session, model_id, step.actor)
    return alias is None


def remove_alias(lethe: Deployment, step: Step) -> None:
    with _locked(lethe, step) as (session, model_id, alias):
        if alias is None:
            raise NotFound("alias")
        aliases.point(session, model_id, step.alias, None, Kind.REMOVED, step.actor, step.reason)
        _close_again(session, model_id, step.actor)


def roll_back(lethe: Deployment, step: Step, version: int | None, may_reopen: bool, once: Once = UNKEYED) -> str:
    """To `version`, or to where the alias was before. Returns the id of its move, which names the requests it reopened."""
    with _locked(lethe, step, once) as (session, model_id, alias):
        if alias is None:
            raise NotFound("alias")
        target = _held(session, model_id, _earlier(session, alias) if version is None else version)
        _refuse_no_rollback(alias, target)
        behind = checkpoints.lacking(session, target)
        if behind and not may_reopen:
            raise Forbidden(REOPEN)
        opened = requests.with_status(session, behind, requests.Status.COMPLETED)
        for request_id in opened:
            why = {"alias": alias.name, "version": target.number, "why": step.reason}
            requests.move(session, request_id, requests.Status.REOPENED, step.actor, "rolled_back", why)
        move = aliases.point(
            session, model_id, step.alias, target.number, Kind.ROLLED_BACK, step.actor, step.reason, reopened=opened
        )
        _close_again(session, model_id, step.actor)
        once.settle(str(move.id))
    return str(move.id)


def etag(move_id: int, status: str) -> str:
    """Another one after each move, and when a completed request superseded the version meanwhile."""
    return f'"{move_id}-{status}"'


@contextmanager
def _locked(lethe: Deployment, step: Step, once: Once = UNKEYED) -> Iterator[tuple[Session, str, Alias | None]]:
    """The alias under its model's lock: a move that comes at the same time waits, and then finds another ETag."""
    with lethe.store.write() as session:
        once.claim(session)
        model = models.lock(session, step.model)
        if model is None:
            raise NotFound("model")
        alias = aliases.find(session, model.id, step.alias)
        if alias is not None and step.if_match is not None:
            present = etag(alias.move_id, checkpoints.statuses(session, model.id)[alias.version])
            if not matches(step.if_match, present):
                raise PreconditionFailed
        yield session, model.id, alias


def _held(session: Session, model_id: str, number: int) -> Checkpoint:
    found = checkpoints.hold(session, model_id, number)
    if found is None:
        raise NotFound("checkpoint")
    return found


def _earlier(session: Session, alias: Alias) -> int:
    before = alias_move.version_before(session, alias.model_id, alias.name, alias.version)
    if before is None:
        raise Refused(
            "no-earlier-version", "alias", "It pointed nowhere before this version.", "Name one in to_version.", 409
        )
    return before


def _close_again(session: Session, model_id: str, actor: str) -> None:
    """Reopened requests are completed again as soon as every alias has a version that forgot."""
    reopened = requests.reopened(session, model_id)
    if not reopened:
        return
    pointed = {alias.version for alias in aliases.of_model(session, model_id)}
    versions = [each for each in checkpoints.of_model(session, model_id) if each.number in pointed]
    still = {request_id for version in versions for request_id in checkpoints.lacking(session, version)}
    for request_id in reopened:
        if request_id not in still:
            requests.move(session, request_id, requests.Status.COMPLETED, actor)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name) or name == HEAD:
        raise Refused(
            "bad-alias-name",
            "alias",
            "It must be 1 to 50 of a-z, 0-9 and -, begin with a letter, and not be head.",
            "Choose another name, such as production.",
        )


def _refuse_unreleased(target: Checkpoint) -> None:
    _refuse_retired(target, "version")
    if target.status == Status.SUPERSEDED:
        raise Refused(
            "version-superseded",
            "version",
            "An alias is set to released versions only, and a completed request superseded this one.",
            "Name a released version, or POST the alias's rollback with a reason.",
            409,
        )
    _refuse_quarantined(target, "version")


def _refuse_retired(target: Checkpoint, field: str) -> None:
    if target.status == Status.RETIRED:
        raise Refused("version-retired", field, "Its weights are erased.", "Name a released version.", 409)


def _refuse_quarantined(target: Checkpoint, field: str) -> None:
    if target.status == Status.QUARANTINED:
        raise Refused(
            "version-quarantined",
            field,
            "This version missed its policy, so no alias points at it.",
            "Name a released version.",
            409,
        )


def _refuse_no_rollback(alias: Alias, target: Checkpoint) -> None:
    _refuse_quarantined(target, "to_version")
    _refuse_retired(target, "to_version")
    if target.number == alias.version:
        raise Refused(
            "alias-there-already", "to_version", "The alias points at this version.", "Name another one.", 409
        )
