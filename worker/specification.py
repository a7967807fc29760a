"""What the runner is told of a job: everything it needs, and no more.

It gets blob locations, the positions of samples and the data keys of this one job; never the database, the master
key, the concept or another job.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import catalog
from app.errors import JobError
from app.privacy.sealing import KeyGone, Keyring, unseal
from app.privacy.selection import Selection, label_map, select
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records import tombstone as tombstones
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.records.session import Store
from app.settings import Settings
from app.storage import LocalBlobs
from worker.lease import Lease


@dataclass(frozen=True)
class Specification:
    message: dict[str, Any]  # for the runner's pipe
    parent_id: str
    fingerprints: set[str]  # of the forget set, for tombstones


def specify(
    store: Store, lease: Lease, keyring: Keyring, blobs: LocalBlobs, settings: Settings, scratch: Path
) -> Specification:
    """Raises JobError `forget_set_purged` when a key is gone."""
    with store.read() as session:
        job = session.get_one(jobs.Job, lease.job_id)
        request = session.get_one(Request, lease.request_id)
        model = session.get_one(Model, lease.model_id)
        parent = checkpoints.head(session, model.id)
        marks = tombstones.of_model(session, model.id)
        sets = {name: session.get(Dataset, set_id) for name, set_id in _set_ids(model, request).items() if set_id}
        others = {
            name: session.get_one(Model, other)
            for name, other in (("judge", model.judge_id), ("reference", request.reference_id))
            if other
        }
        heads = {name: checkpoints.head(session, other.id) for name, other in others.items()}
    try:
        what = json.loads(unseal(keyring.key(request.key_id), request.sealed, f"request/{request.id}".encode()))
        indexes = {name: read_index(dataset, keyring, blobs) for name, dataset in sets.items() if dataset}
        job_key = keyring.key(job.key_id)
        keys = {name: keyring.key(dataset.key_id) for name, dataset in sets.items() if dataset and dataset.key_id}
    except KeyGone:
        raise JobError("forget_set_purged", "The forget set is gone. Upload it again with a new request.") from None
    chosen = select(indexes["forget"], indexes["retain"], what, marks)
    message = {
        "job": job.id,
        "token": lease.token,
        "family": model.family,
        "method": request.method,
        "recipe": request.recipe,
        "seed": request.seed,
        "kind": policy_kind(model.family, request.forget_kind),
        "label": forget_label(what, indexes["forget"], model),
        "policy": model.policy,
        "evaluation": model.evaluation,
        "device": settings.device,
        "threads": settings.threads,
        "resume_seconds": settings.resume_seconds,
        "blob_root": str(settings.blob_root),
        "scratch": str(scratch),
        "sets": {
            name: _set_message(name, dataset, indexes[name], model, keys.get(name), chosen)
            for name, dataset in sets.items()
            if dataset
        },
        "base": {"manifest": parent.manifest, "digest": parent.digest, "family": model.family},
        **{
            name: {"manifest": heads[name].manifest, "digest": heads[name].digest, "family": others[name].family}
            for name in others
        },
        "job_key": base64.b64encode(job_key).decode(),
        "resume": job.resume_blob,
    }
    return Specification(message, parent.id, chosen.fingerprints)


def read_index(dataset: Dataset, keyring: Keyring, blobs: LocalBlobs) -> dict[str, Any]:
    """Labels, and per sample its id, label number and keyed digest."""
    with blobs.open(dataset.index_blob) as file:
        raw = file.read()
    if dataset.key_id:
        raw = unseal(keyring.key(dataset.key_id), raw, f"dataset-index/{dataset.id}".encode())
    index: dict[str, Any] = json.loads(raw)
    return index


def policy_kind(family: str, forget_kind: str) -> str:
    """Which of a policy's lists applies: families that forget by label do so for an uploaded set, too."""
    kinds = catalog.FAMILIES[family].default_policy
    return forget_kind if forget_kind in kinds else ("samples" if "samples" in kinds else "class_label")


def forget_label(what: dict[str, Any], source: dict[str, Any], model: Model) -> int | None:
    """The model's number of the label to forget: named, or the only one of an uploaded set."""
    if what.get("label") is not None:
        return label_map([what["label"]], model.labels, "forget", secret=True)[0]
    used = sorted({sample["label"] for sample in source["samples"]})
    if what.get("ids") is None and len(used) == 1:
        return label_map([source["labels"][used[0]]], model.labels, "forget", secret=True)[0]
    return None


def _set_ids(model: Model, request: Request) -> dict[str, str | None]:
    return {
        "forget": request.forget_dataset_id or model.train_id or model.retain_id,
        "retain": model.retain_id,
        "test": model.test_id,
    }


def _set_message(
    name: str, dataset: Dataset, index: dict[str, Any], model: Model, key: bytes | None, chosen: Selection
) -> dict[str, Any]:
    positions = {"forget": chosen.forget, "retain": chosen.retain}.get(name)
    return {
        "blob": dataset.blob,
        "context": f"dataset/{dataset.id}",
        "key": base64.b64encode(key).decode() if key else None,
        "positions": positions,
        "labels": label_map(index["labels"], model.labels, name, secret=dataset.sealed),
    }
