"""What the runner is told of a job: everything it needs, and no more.

It gets blob locations, the positions of samples, the labels' names and the data keys of this one job, over a pipe that
nothing logs; never the database, the master key or another job.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import catalog
from app.errors import JobError
from app.privacy.sealing import KeyGone, Keyring, SealBroken
from app.privacy.selection import Selection, check, job_labels, label_map, read_index, read_wish, select
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records import tombstone as tombstones
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.records.session import Store
from app.settings import Settings
from app.storage import BlobMissing, LocalBlobs
from worker.lease import Lease


@dataclass(frozen=True)
class Specification:
    message: dict[str, Any]  # for the runner's pipe
    parent_id: str
    fingerprints: set[str]  # of the forget set, for tombstones


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


def specify(
    store: Store, lease: Lease, keyring: Keyring, blobs: LocalBlobs, settings: Settings, scratch: Path
) -> Specification:
    """Raises JobError when a key is gone, and Refused when nothing is left to keep."""
    rows = _read(store, lease)
    job, request, model = rows.job, rows.request, rows.model
    if "retain" not in rows.sets:
        raise JobError("no_retain_set", "The model has no retain set any more. PATCH it, then retry.")
    try:
        what = read_wish(request, keyring)
        indexes = {name: read_index(dataset, keyring, blobs) for name, dataset in rows.sets.items()}
        keys = {name: keyring.key(dataset.key_id) for name, dataset in rows.sets.items() if dataset.key_id}
        job_key = keyring.key(job.key_id)
    except (KeyGone, BlobMissing, SealBroken):
        raise JobError("forget_set_purged", "The forget set is gone. Upload it again with a new request.") from None
    names = job_labels(model, indexes["forget"])
    chosen = select(indexes["forget"], indexes["retain"], what, rows.tombstones, names)
    check(chosen)  # requests that completed since the POST may have taken the rest of the retain set
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
            for name, dataset in rows.sets.items()
        },
        "names": names,
        "base": _network_message(model, rows.parent),
        **{name: _network_message(*other) for name, other in rows.others.items()},
        "job_key": base64.b64encode(job_key).decode(),
        "resume": job.resume_blob,
    }
    return Specification(message, rows.parent.id, chosen.fingerprints)


def _read(store: Store, lease: Lease) -> _Rows:
    with store.read() as session:
        request = session.get_one(Request, lease.request_id)
        model = session.get_one(Model, lease.model_id)
        named = {"judge": model.judge_id, "reference": request.reference_id}
        others = {name: session.get_one(Model, other) for name, other in named.items() if other}
        sets = {
            "forget": request.forget_dataset_id or model.train_id or model.retain_id,
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
        )


def policy_kind(family: str, forget_kind: str) -> str:
    """Which of a policy's lists applies: families that forget by label do so for an uploaded set, too."""
    kinds = catalog.FAMILIES[family].default_policy
    return forget_kind if forget_kind in kinds else ("samples" if "samples" in kinds else "class_label")


def _network_message(model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"manifest": checkpoint.manifest, "digest": checkpoint.digest, "family": model.family}


def _set_message(
    name: str, dataset: Dataset, index: dict[str, Any], names: list[str], key: bytes | None, chosen: Selection
) -> dict[str, Any]:
    positions = {"forget": chosen.forget, "retain": chosen.retain}.get(name)
    return {
        "blob": dataset.blob,
        "context": f"dataset/{dataset.id}",
        "key": base64.b64encode(key).decode() if key else None,
        "positions": positions,
        "labels": label_map(index["labels"], names, name, secret=dataset.sealed),
    }
