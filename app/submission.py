"""Accept a deletion request: the one rule that spans records. Checked first, then stored in one transaction."""

import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select as sql_select

from app import catalog
from app.deployment import Deployment
from app.errors import NotFound, Refused
from app.privacy.sealing import seal, unseal
from app.privacy.selection import check, label_map, select
from app.recipe import resolve_recipe
from app.records import dataset as datasets
from app.records import job as jobs
from app.records import model as models
from app.records import outbox
from app.records import request as requests
from app.records import tombstone as tombstones
from app.records.base import new_id, now
from app.records.dataset import Dataset, Role
from app.records.model import Model


@dataclass(frozen=True)
class Wish:
    """A deletion request as it was posted; `forget` holds dataset, samples or class_label."""

    model: str
    concept: str | None
    dataset: str | None
    samples: list[str] | None
    class_label: str | None
    method: str
    recipe: dict[str, Any]
    seed: int
    reference: str | None
    external_id: str | None
    requested_at: float | None
    due_at: float | None


def submit(lethe: Deployment, wish: Wish, actor: str, sees_all: bool) -> str:
    """Returns the id of the request, durable once this returns. Raises Refused or NotFound; then nothing is stored."""
    with lethe.store.read() as session:
        model = models.find(session, wish.model)
        if model is None:
            raise NotFound("model")
        reference = models.find(session, wish.reference) if wish.reference else None
        source = _forget_source(session, wish, model, actor, sees_all)
        retain = session.get(Dataset, model.retain_id) if model.retain_id else None
        marks = tombstones.of_model(session, model.id)
    kind = _kind(wish, source)
    recipe = resolve_recipe(model.family, wish.method, kind, wish.recipe)
    if retain is None:
        raise Refused("no-retain-set", "model", "It has no retain set.", "PATCH the model with one, then ask again.")
    if wish.reference and (reference is None or reference.family != model.family):
        raise Refused("unknown-reference", "reference", "It must be a registered model of the same family.", "Register the retrained network first.")
    what = {"concept": wish.concept, "ids": wish.samples, "label": wish.class_label}
    index = read_index(lethe, source)
    label_map(index["labels"], model.labels, "forget", secret=True)
    _check_single_label(model, kind, index)
    selection = select(index, read_index(lethe, retain), what, marks)
    check(selection)
    request_id = new_id("req")
    sealed = seal(lethe.keyring.new_key(request_id), json.dumps(what).encode(), f"request/{request_id}".encode())
    job_id = new_id("job")
    lethe.keyring.new_key(job_id)
    try:
        with lethe.store.write() as session:
            clock = session.scalar(sql_select(now())) or time.time()
            requested = wish.requested_at or clock
            due = wish.due_at or requested + lethe.settings.deadline_days * 86400
            if source.sealed and not datasets.adopt(session, source, request_id):
                raise Refused("dataset-adopted", "forget.dataset", "Another request has this forget set.", "Upload it again.", 409)
            requests.add(
                session,
                requests.Request(
                    id=request_id,
                    external_id=wish.external_id,
                    model_id=model.id,
                    status=requests.Status.QUEUED,
                    sealed=sealed,
                    forget_kind=kind,
                    forget_count=len(selection.forget),
                    forget_dataset_id=source.id,
                    method=wish.method,
                    recipe=recipe,
                    seed=wish.seed,
                    reference_id=reference.id if reference else None,
                    requested_at=requested,
                    due_at=due,
                    created_by=actor,
                    created_at=clock,
                ),
            )
            jobs.add(session, new_job(job_id, request_id, model.id, due, clock))
            outbox.put(session, "ring")
    except BaseException:
        lethe.keyring.destroy(request_id)
        lethe.keyring.destroy(job_id)
        raise
    return request_id


def new_job(job_id: str, request_id: str, model_id: str, deadline: float, clock: float) -> jobs.Job:
    return jobs.Job(
        id=job_id,
        request_id=request_id,
        model_id=model_id,
        status=jobs.Status.QUEUED,
        deadline=deadline,
        progress={},
        created_at=clock,
    )


def retry(lethe: Deployment, request: requests.Request, actor: str) -> str:
    """Queue an ended request again with a new job. Refused when its forget set was purged."""
    if request.purged_at is not None:
        raise Refused("forget-set-purged", "request", "Its forget set was purged.", "Post a new request with a new upload.", 409)
    job_id = new_id("job")
    lethe.keyring.new_key(job_id)
    try:
        with lethe.store.write() as session:
            requests.move(session, request.id, requests.Status.QUEUED, actor, "retried")
            clock = session.scalar(sql_select(now())) or time.time()
            jobs.add(session, new_job(job_id, request.id, request.model_id, request.due_at, clock))
            outbox.put(session, "ring")
    except BaseException:
        lethe.keyring.destroy(job_id)
        raise
    return job_id


def read_index(lethe: Deployment, dataset: Dataset) -> dict[str, Any]:
    """Labels, sample ids and keyed digests of a set; a sealed one is opened in memory."""
    with lethe.blobs.open(dataset.index_blob) as file:
        raw = file.read()
    if dataset.key_id:
        raw = unseal(lethe.keyring.key(dataset.key_id), raw, f"dataset-index/{dataset.id}".encode())
    index: dict[str, Any] = json.loads(raw)
    return index


def _forget_source(session: Any, wish: Wish, model: Model, actor: str, sees_all: bool) -> Dataset:
    named = wish.dataset or model.train_id or model.retain_id
    source = datasets.find(session, named) if named else None
    if source is None or (source.sealed and source.created_by != actor and not sees_all):
        raise NotFound("data set")
    if wish.samples is None and wish.class_label is None and source.role != Role.FORGET:
        raise Refused("not-a-forget-set", "forget.dataset", "A whole set must have the role forget.", "Upload it with role=forget, or name samples or a class label.")
    return source


def _kind(wish: Wish, source: Dataset) -> str:
    if wish.samples is not None:
        return "samples"
    return "class_label" if wish.class_label is not None else "dataset"


def _check_single_label(model: Model, kind: str, index: dict[str, Any]) -> None:
    """A family that forgets by label needs an uploaded set of one label."""
    by_label_only = "samples" not in catalog.FAMILIES[model.family].forget_kinds
    if kind == "dataset" and by_label_only and len({sample["label"] for sample in index["samples"]}) != 1:
        raise Refused("many-labels", "forget.dataset", f"{model.family} forgets one label at a time.", "Upload images of one label.")


def unsealed(lethe: Deployment, request: requests.Request) -> dict[str, Any]:
    """Concept, sample ids and label of a request. Raises KeyGone when its key was destroyed."""
    raw = unseal(lethe.keyring.key(request.key_id), request.sealed, f"request/{request.id}".encode())
    what: dict[str, Any] = json.loads(raw)
    return what
