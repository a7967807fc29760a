"""What the runner is told of a job: everything it needs, and no more.

It gets blob locations, the positions of samples, the labels' names and the data keys of this one job, over a pipe that
nothing logs; never the database, the master key or another job.
"""

import base64
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app import catalog
from app.errors import JobError
from app.privacy.concept import naming
from app.privacy.sealing import KeyGone, Keyring, SealBroken
from app.privacy.selection import (
    Index,
    Selection,
    by_caption,
    check,
    concept_number,
    job_labels,
    label_map,
    read_index,
    read_wish,
    select,
)
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records import model as models
from app.records import tombstone as tombstones
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.records.session import Store
from app.settings import Settings
from app.storage import BlobMissing, LocalBlobs
from worker.lease import Lease

ANYTHING = (
    "something"  # what a prompt of prior preservation speaks of when neither model nor judge know a label to keep
)


@dataclass(frozen=True)
class Specification:
    message: dict[str, Any]  # for the runner's pipe
    parent_id: str
    fingerprints: set[str]  # of the forget set, for tombstones
    left_out: int  # samples of the retain set that an earlier request forgot


@dataclass(frozen=True)
class _Rows:
    """The records that a job is made of, read in one transaction."""

    job: jobs.Job
    request: Request
    model: Model
    parent: Checkpoint
    sets: dict[str, Dataset]
    others: dict[str, tuple[Model, Checkpoint]]  # judge, reference
    tombstones: set[str]
    shadows: list[tuple[Model, Checkpoint, Dataset, set[str]]]  # the last: what it has forgotten since


def specify(
    store: Store, lease: Lease, keyring: Keyring, blobs: LocalBlobs, settings: Settings, scratch: Path
) -> Specification:
    """Raises JobError when a key is gone, and Refused when nothing is left to keep."""
    rows = _read(store, lease)
    job, request, model = rows.job, rows.request, rows.model
    if "retain" not in rows.sets and not catalog.FAMILIES[model.family].generates:
        raise JobError("no_retain_set", "The model has no retain set any more. PATCH it, then retry.")
    try:
        what = read_wish(request, keyring)
        indexes = {name: read_index(dataset, keyring, blobs) for name, dataset in rows.sets.items()}
        keys = {name: keyring.key(dataset.key_id) for name, dataset in rows.sets.items() if dataset.key_id}
        job_key = keyring.key(job.key_id)
        trained_on = [read_index(dataset, keyring, blobs) for _, _, dataset, _ in rows.shadows]
    except (KeyGone, BlobMissing, SealBroken):
        raise JobError("forget_set_purged", "The forget set is gone. Upload it again with a new request.") from None
    names = job_labels(model, indexes.get("forget"), what)
    chosen = select(indexes.get("forget"), indexes.get("retain"), what, rows.tombstones, names)
    check(chosen)  # requests that completed since the POST may have taken the rest of the retain set
    shadows = [
        _network_message(other, head) | _membership(trained, gone, indexes, chosen)
        for (other, head, _, gone), trained in zip(rows.shadows, trained_on, strict=True)
    ]
    concept = concept_number(names, what)
    generate = _generate(model, indexes.get("forget"), what, chosen, names)
    message = {
        "job": job.id,
        "token": lease.token,
        "method": request.method,
        "recipe": request.recipe,
        "seed": request.seed,
        "kind": policy_kind(model.family, request.forget_kind),
        "policy": model.policy,
        "evaluation": model.evaluation,
        "device": settings.device,
        "threads": settings.threads,
        "resume_seconds": settings.resume_seconds,
        "blob_root": str(settings.blob_root),
        "scratch": str(scratch),
        "sets": {
            name: _set_message(name, dataset, indexes[name], names, keys.get(name), chosen)
            | {"by_caption": [] if concept is None else by_caption(indexes[name], what)}
            for name, dataset in rows.sets.items()
        },
        "names": names,
        "concept": concept,
        "generate": generate,
        "base": _network_message(model, rows.parent),
        "shadows": shadows,
        **{name: _network_message(*other) for name, other in rows.others.items()},
        "job_key": base64.b64encode(job_key).decode(),
        "resume": job.resume_blob,
    }
    return Specification(message, rows.parent.id, chosen.fingerprints, chosen.left_out)


def _read(store: Store, lease: Lease) -> _Rows:
    with store.read() as session:
        request = session.get_one(Request, lease.request_id)
        model = session.get_one(Model, lease.model_id)
        named = {"judge": model.judge_id, "reference": request.reference_id}
        others = {name: session.get_one(Model, other) for name, other in named.items() if other}
        sets = {
            "forget": request.forget_dataset_id,
            "retain": model.retain_id,
            "test": model.test_id,
        }
        return _Rows(
            job=session.get_one(jobs.Job, lease.job_id),
            request=request,
            model=model,
            parent=checkpoints.head(session, model.id),
            sets={name: session.get_one(Dataset, set_id) for name, set_id in sets.items() if set_id},
            others={name: (other, checkpoints.head(session, other.id)) for name, other in others.items()},
            tombstones=tombstones.of_model(session, model.id),
            shadows=_shadows(session, model),
        )


def _shadows(session: Session, model: Model) -> list[tuple[Model, Checkpoint, Dataset, set[str]]]:
    """The shadow models that the evaluation names; one that has lost its train set tells nothing any more."""
    found = (models.find(session, name) for name in catalog.shadow_names(model.evaluation))
    return [
        (each, checkpoints.head(session, each.id), session.get_one(Dataset, each.train_id),
         tombstones.of_model(session, each.id))
        for each in found if each is not None and each.train_id is not None
    ]  # fmt: skip


def policy_kind(family: str, forget_kind: str) -> str:
    """Which of a policy's lists applies: families that forget by label do so for an uploaded set, too, and a concept is
    forgotten as a label is."""
    kinds = catalog.FAMILIES[family].default_policy
    if forget_kind == "concept" and "class_label" in kinds and "concept" not in kinds:
        return "class_label"
    return forget_kind if forget_kind in kinds else ("samples" if "samples" in kinds else "class_label")


def _generate(
    model: Model, source: Index | None, what: dict[str, Any], chosen: Selection, names: list[str]
) -> dict[str, Any] | None:
    """What the runner has to make with the base, in memory, of a set that nobody registered: of which labels, and how
    many. May append to `names`. None when every set is there."""
    if chosen.forget is not None and chosen.retain is not None:
        return None
    concept = concept_number(names, what)
    gone = {concept}
    if source is not None and chosen.forget is not None:
        numbers, spoken = label_map(source["labels"], names, "forget", secret=True), set(by_caption(source, what))
        gone |= {numbers[source["samples"][at]["label"]] for at in chosen.forget if at not in spoken}
    named = naming(what["named"]) if what.get("named") else None
    kept = [number for number, name in enumerate(names) if number not in gone and not (named and named(name))]
    if not kept and catalog.FAMILIES[model.family].texts:
        known = {name.lower() for name in names}
        more = [name for name in what.get("keep", ()) if name.lower() not in known] or [ANYTHING]
        kept = list(range(len(names), len(names) + len(more)))
        names += more
    if not kept:
        check(replace(chosen, retain=[]))
    wanted = what["generate"]
    return {
        "forget": [concept] * wanted["forget"] if chosen.forget is None else [],
        "retain": [kept[at % len(kept)] for at in range(wanted["retain"])] if chosen.retain is None else [],
    }


def _membership(trained: Index, gone: set[str], indexes: dict[str, Index], chosen: Selection) -> dict[str, list[bool]]:
    """Of each sample of the forget and the test set, whether a shadow was trained on it, by keyed digests."""
    known = {sample["fingerprint"] for sample in trained["samples"]} - gone
    marks = {name: [sample["fingerprint"] for sample in index["samples"]] for name, index in indexes.items()}
    forget = [marks["forget"][at] in known for at in chosen.forget or ()]
    return {"knows_forget": forget, "knows_test": [mark in known for mark in marks.get("test", ())]}


def _network_message(model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"manifest": checkpoint.manifest, "digest": checkpoint.digest, "family": model.family}


def _set_message(
    name: str, dataset: Dataset, index: Index, names: list[str], key: bytes | None, chosen: Selection
) -> dict[str, Any]:
    positions = {"forget": chosen.forget, "retain": chosen.retain}.get(name)
    return {
        "blob": dataset.blob,
        "context": f"dataset/{dataset.id}",
        "key": base64.b64encode(key).decode() if key else None,
        "positions": positions,
        "labels": label_map(index["labels"], names, name, secret=dataset.sealed),
    }
