"""Accept a deletion request: the one rule that spans records. Checked first, then stored in one transaction."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import select as sql_select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import catalog
from app.curation import Choice, Found, Wish, choose, kind_of
from app.deadlines import first_due
from app.deployment import Deployment
from app.errors import Conflict, NotFound, Refused
from app.fingerprint_keys import KeyLost, use
from app.idempotency import UNKEYED, Once
from app.privacy.fingerprints import request_fingerprint
from app.privacy.sealing import seal
from app.recipe import resolve_ladder
from app.records import dataset as datasets
from app.records import intent as intents
from app.records import job as jobs
from app.records import model as models
from app.records import named_key as named_keys
from app.records import request as requests
from app.records import tombstone as tombstones
from app.records.base import new_id, now
from app.records.dataset import Dataset, Role
from app.records.model import Model

DAY = 86400.0
CLOCK_SKEW = 300.0  # seconds that a client's clock may be ahead
LONGEST_DEADLINE = 3653 * DAY


@dataclass(frozen=True)
class Checked:
    """A wish that breaks no rule: the request as it would be stored, and what it names."""

    request: requests.Request
    model: Model
    choice: Choice


def submit(lethe: Deployment, wish: Wish, actor: str, sees_all: bool, once: Once = UNKEYED) -> str:
    """Returns the id of the request, durable once this returns. Raises Refused or NotFound; then nothing is stored."""
    return _store(lethe, check(lethe, wish, actor, sees_all), once)


def check(lethe: Deployment, wish: Wish, actor: str, sees_all: bool) -> Checked:
    """Every rule that a request must keep to, and nothing stored. Raises Refused or NotFound."""
    kind = kind_of(wish)
    with lethe.store.read() as session:
        found = _look_up(session, wish, kind, actor, sees_all)
        clock = session.scalar(sql_select(now())) or time.time()
    ladder = resolve_ladder(found.model.family, found.model.ladder, kind, wish.method, wish.recipe)
    requested, due = _dates(wish, clock, lethe.settings.deadline_days)
    needs = _steps(found.model, due, clock)
    choice = choose(lethe, found, kind, wish)
    if choice.source and choice.source.sealed and choice.source.adopted_by is not None:
        raise _adopted()
    request = requests.Request(
        id=new_id("req"),
        external_id=wish.external_id,
        model_id=found.model.id,
        status=requests.awaited(needs),
        needs=needs,
        forget_kind=kind,
        forget_count=choice.count,
        forget_dataset_id=choice.source.id if choice.source else None,
        method=wish.method,
        ladder=ladder,
        seed=wish.seed,
        reference_id=found.reference.id if found.reference else None,
        regime=wish.regime,
        requested_at=requested,
        due_at=due,
        created_by=actor,
        created_at=clock,
    )
    return Checked(request, found.model, choice)


def _steps(model: Model, due: float, clock: float) -> list[str]:
    """What the request needs before it is queued. Refused where it would expire before anybody could say so."""
    needs = models.steps(model)
    if needs and due <= clock:
        raise Refused(
            "out-of-bounds",
            "due_at",
            "It has passed, and the model's requests wait for a person first: this one would expire at once.",
            "Ask the model's owner to change its process, or name a later date under the regime other.",
        )
    return needs


def _look_up(session: Session, wish: Wish, kind: str, actor: str, sees_all: bool) -> Found:
    model = models.find(session, wish.model)
    if model is None:
        raise NotFound("model")
    retain = session.get(Dataset, model.retain_id) if model.retain_id else None
    train = session.get(Dataset, model.train_id) if model.train_id else None
    if retain is None and not catalog.FAMILIES[model.family].generates:
        raise Refused("no-retain-set", "model", "It has no retain set.", "PATCH the model with one, then ask again.")
    if catalog.FAMILIES[model.family].needs_judge and model.judge_id is None:
        raise Refused(
            "no-judge",
            "model",
            "Its outputs are measured by a judge, and it has none.",
            "PATCH the model with one, then ask again.",
        )
    return Found(
        model=model,
        reference=_reference(session, wish, model),
        sources=[each for each in (train, retain) if each]
        if kind == "concept"
        else [_forget_source(session, wish, model, actor, sees_all)],
        retain=retain,
        train=train,
        judge=session.get(Model, model.judge_id) if model.judge_id else None,
        marks=tombstones.of_model(session, model.id),
    )


def _reference(session: Session, wish: Wish, model: Model) -> Model | None:
    if wish.reference is None:
        return None
    reference = models.find(session, wish.reference)
    if (
        reference is None
        or reference.id == model.id
        or (reference.family, reference.labels) != (model.family, model.labels)
    ):
        raise Refused(
            "unknown-reference",
            "reference",
            "It must be another registered model of the same family and labels.",
            "Register the network that was retrained without the forget set first.",
        )
    return reference


def _dates(wish: Wish, clock: float, deadline_days: int) -> tuple[float, float]:
    """When the person asked, and until when it must be done."""
    requested = clock if wish.requested_at is None else wish.requested_at
    if not 0 <= requested <= clock + CLOCK_SKEW:
        raise Refused(
            "out-of-bounds", "requested_at", "It must not lie in the future, nor before 1970.", "Leave it out for now."
        )
    latest = first_due(wish.regime, requested)
    due = (latest or requested + deadline_days * DAY) if wish.due_at is None else wish.due_at
    if latest is not None and due > latest:
        raise Refused(
            "out-of-bounds", "due_at", "It lies after what the regime gives.", "Name an earlier date, or leave it out."
        )
    if not requested < due <= clock + LONGEST_DEADLINE:
        raise Refused(
            "out-of-bounds",
            "due_at",
            "It must lie after requested_at, at most ten years away.",
            "Leave it out for the default.",
        )
    return requested, due


def _adopted() -> Refused:
    return Refused("dataset-adopted", "forget.dataset", "Another request has this forget set.", "Upload it again.", 409)


def _store(lethe: Deployment, checked: Checked, once: Once) -> str:
    """One transaction: the set is adopted, the request received, and, if it need not wait for a person, its first job queued
    and the bell ordered. Whether it waits is for the model to say as it is now: it may have changed while sets were read."""
    request, source, choice = checked.request, checked.choice.source, checked.choice
    intent = [f"requests/{request.id}"]  # of its key alone: nothing lies under this name
    with lethe.store.write() as session:
        intents.declare(session, intent)
    try:
        key = lethe.keyring.new_key(request.key_id)
        request.sealed = seal(key, json.dumps(choice.what).encode(), f"request/{request.id}".encode())
        with lethe.store.write() as session:
            once.claim(session, request.id)
            model = models.share(session, request.model_id)
            request.needs = _steps(model, request.due_at, session.scalar(sql_select(now())) or 0.0)
            request.status = requests.awaited(request.needs)
            if source and source.sealed and not datasets.adopt(session, source, request.id):
                raise _adopted()
            if source and not source.sealed and not datasets.keep(session, source.id):
                raise NotFound("data set")
            request.fingerprint = _fingerprint(lethe, session, request, choice.asked)
            requests.add(session, request)
            if request.status == requests.Status.QUEUED:
                jobs.start(session, request)
            if not intents.fulfil(session, intent):
                raise Conflict("It took longer than LETHE_PACK_GRACE_HOURS: send it again.", code="request-changed")
    except OperationalError:  # the commit may have happened, and then the key is needed: the sweeper finds out
        raise
    except BaseException:
        if lethe.keyring.exists(request.key_id):  # not where it could not be made
            lethe.keyring.destroy(request.key_id)
        with suppress(OperationalError), lethe.store.write() as session:
            intents.fulfil(session, intent)
        raise
    return request.id


def _fingerprint(lethe: Deployment, session: Session, request: requests.Request, asked: list[str]) -> str | None:
    """None while the key is lost: whoever asks the same again is not told, and is not kept from asking."""
    try:
        key = use(lethe, named_keys.of_duplicates(session))
    except KeyLost:
        return None
    return request_fingerprint(key, request.model_id, request.forget_kind, asked)


def retry(lethe: Deployment, request: requests.Request, actor: str, once: Once = UNKEYED) -> str:
    """Queue a failed request again with a new job: with auto the first rung of the ladder that the model has now. Refused
    when its forget set is gone; Conflict when it did not fail."""
    with lethe.store.write() as session:
        once.claim(session, request.id)
        present = session.get_one(requests.Request, request.id, with_for_update=True)
        if present.status not in requests.RETRIABLE:
            raise Conflict("Only a request that failed can be retried.", code="illegal-transition")
        source = session.get(Dataset, present.forget_dataset_id) if present.forget_dataset_id else None
        lost = present.forget_dataset_id is not None and (
            source is None
            or source.purged_at is not None
            or source.adopted_by != (request.id if source.sealed else None)  # withdrawn, or another's
        )
        if present.purged_at is not None or lost:
            raise Refused(
                "forget-set-purged",
                "request",
                "Its forget set was purged.",
                "Post a new request with a new upload.",
                409,
            )
        requests.move(session, request.id, requests.Status.QUEUED, actor, "retried")
        if present.method == catalog.AUTO:
            model = session.get_one(Model, present.model_id)
            present.ladder = resolve_ladder(model.family, model.ladder, present.forget_kind, present.method)
        jobs.start(session, present)
    return request.id


def _forget_source(session: Session, wish: Wish, model: Model, actor: str, sees_all: bool) -> Dataset:
    named = wish.dataset or model.train_id or model.retain_id
    source = datasets.find(session, named) if named else None
    if source is None or (source.sealed and source.created_by != actor and not sees_all):
        raise NotFound("data set")
    if wish.samples is None and wish.class_label is None and source.role != Role.FORGET:
        raise Refused(
            "not-a-forget-set",
            "forget.dataset",
            "A whole set must have the role forget.",
            "Upload it with role=forget, or name samples or a class label.",
        )
    return source
