"""What the runner is told of a job: everything it needs, and no more.

It gets blob locations, the positions of samples, the labels' names and the data keys of this one job, and what earlier
requests of the model asked, to ask it again (worker/earlier.py), over a pipe that nothing logs. Where a set of theirs is still
kept (`completed_days` of the model's retention, or a legal hold), its key goes along. Never the database, the master key or
the keys of another running job.
"""

import base64
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app import catalog
from app.errors import JobError
from app.privacy.concept import naming
from app.privacy.fingerprints import marks_of, newest
from app.privacy.sealing import KeyGone, Keyring, SealBroken, new_data_key
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
from app.records import named_key as named_keys
from app.records import tombstone as tombstones
from app.records.base import new_id
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.records.session import Store
from app.settings import Settings
from app.storage import BlobMissing, LocalBlobs
from worker.earlier import Earlier, Promise, of_line, promise
from worker.lease import Lease

ANYTHING = (
    "something"  # what a prompt of prior preservation speaks of when neither model nor judge know a label to keep
)


@dataclass(frozen=True)
class Specification:
    message: dict[str, Any]  # for the runner's pipe
    parent_id: str
    checkpoint_id: str  # of the version that this attempt may register, or attacks
    fingerprints: set[str]  # one mark of each forgotten sample, for tombstones
    left_out: int  # samples of the retain set that an earlier request forgot


@dataclass(frozen=True)
class _Rows:
    """The records that a job is made of, read in one transaction."""

    job: jobs.Job
    request: Request
    model: Model
    parent: Checkpoint
    attacked: Checkpoint | None  # a version that was made before, in a job that attacks it
    evaluation: dict[str, Any]
    sets: dict[str, Dataset]
    train: Dataset | None
    earlier: list[Earlier]
    others: dict[str, tuple[Model, Checkpoint]]  # judge, reference
    evaluators: dict[str, tuple[Model, Checkpoint]]  # by part
    tombstones: set[str]
    fingerprint_keys: list[str]  # names: the present one first
    shadows: list[tuple[Model, Checkpoint, Dataset, set[str]]]  # the last: what it has forgotten since


@dataclass(frozen=True)
class _Opened:
    """What stood sealed: what was asked, the sets' indexes, and the keys of this job."""

    what: dict[str, Any]
    indexes: dict[str, Index]
    keys: dict[str, bytes]  # of sealed sets
    job_key: bytes
    trained_on: list[Index]  # of each shadow


def specify(
    store: Store, lease: Lease, keyring: Keyring, blobs: LocalBlobs, settings: Settings, scratch: Path
) -> Specification:
    """Raises JobError when a key is gone, and Refused when nothing is left to keep."""
    rows = _read(store, lease)
    if "retain" not in rows.sets and not catalog.FAMILIES[rows.model.family].generates:
        raise JobError("no_retain_set", "The model has no retain set any more. PATCH it, then retry.")
    opened = _open(rows, lease, keyring, blobs)
    what, indexes = opened.what, opened.indexes
    promises = _promises(rows, keyring, blobs)
    gone = {label for each in promises for label in each.whole}
    names = job_labels(rows.model, indexes.get("forget"), what)
    chosen = select(indexes.get("forget"), indexes.get("retain"), what, rows.tombstones, names)
    check(chosen)  # requests that completed since the POST may have taken the rest of the retain set
    if chosen.retain is not None and not _keeps(chosen.retain, indexes["retain"], names, gone):
        check(replace(chosen, retain=[]))
    concept = concept_number(names, what)
    generate = _generate(rows.model, indexes.get("forget"), what, chosen, names, gone)
    checkpoint_id = rows.attacked.id if rows.attacked else new_id("ckpt")
    message = {
        **_of_job(rows, lease, settings, scratch),
        **_of_networks(rows, settings),
        "sets": {
            name: _set_message(name, dataset, indexes[name], names, opened.keys.get(name), chosen)
            | {"by_caption": [] if concept is None else by_caption(indexes[name], what)}
            for name, dataset in rows.sets.items()
        },
        "names": names,
        "labels": rows.model.labels,
        "concept": concept,
        "generate": generate,
        "promises": [each.told for each in promises],
        "forgotten_before": [number for number, name in enumerate(names) if name in gone],
        "shadows": _shadow_messages(rows, opened, chosen),
        "answers": _answers(rows, checkpoint_id, keyring),
        "images": {
            "folder": checkpoints.images_folder(checkpoint_id),
            "key": base64.b64encode(new_data_key()).decode(),
        },
        "job_key": base64.b64encode(opened.job_key).decode(),
    }
    if rows.attacked is not None:
        message |= _of_attack(rows.model, rows.attacked)
    to_remember = _to_remember(indexes, chosen, rows.fingerprint_keys)
    return Specification(message, rows.parent.id, checkpoint_id, to_remember, chosen.left_out)


def _open(rows: _Rows, lease: Lease, keyring: Keyring, blobs: LocalBlobs) -> _Opened:
    try:
        return _Opened(
            what=read_wish(rows.request, keyring),
            indexes={name: read_index(dataset, keyring, blobs) for name, dataset in rows.sets.items()},
            keys={name: keyring.key(dataset.key_id) for name, dataset in rows.sets.items() if dataset.key_id},
            job_key=_job_key(lease, keyring, rows.job) if rows.attacked is None else b"",
            trained_on=[read_index(dataset, keyring, blobs) for _, _, dataset, _ in rows.shadows],
        )
    except (KeyGone, BlobMissing, SealBroken):
        raise JobError("forget_set_purged", "The forget set is gone. Upload it again with a new request.") from None


def _of_job(rows: _Rows, lease: Lease, settings: Settings, scratch: Path) -> dict[str, Any]:
    """What to run, by which rules, and where."""
    return {
        "job": rows.job.id,
        "token": lease.token,
        "method": rows.job.method,
        "recipe": rows.job.recipe,
        "resume": rows.job.resume_blob,
        "seed": rows.request.seed,
        "kind": catalog.FAMILIES[rows.model.family].policy_kind(rows.request.forget_kind),
        "policy": rows.model.policy,
        "evaluation": rows.evaluation,
        "device": settings.device,
        "threads": settings.threads,
        "resume_seconds": settings.resume_seconds,
        "blob_root": str(settings.blob_root),
        "scratch": str(scratch),
    }


def _of_networks(rows: _Rows, settings: Settings) -> dict[str, Any]:
    """The base, what it is compared with, and what judges."""
    return {
        "base": _network_message(rows.model, rows.parent),
        **{name: _network_message(*other) for name, other in rows.others.items()},
        "evaluators": {part: _network_message(*other) for part, other in rows.evaluators.items()},
        "backbones": {
            name: str(getattr(settings, name) or "") for name in catalog.BACKBONES if rows.model.evaluation.get(name)
        },
    }


def _read(store: Store, lease: Lease) -> _Rows:
    with store.read() as session:
        request = session.get_one(Request, lease.request_id)
        model = session.get_one(Model, lease.model_id)
        named = {"judge": model.judge_id, "reference": request.reference_id}
        others = {name: session.get_one(Model, other) for name, other in named.items() if other}
        job, train = session.get_one(jobs.Job, lease.job_id), model.train_id
        attacked = session.get_one(Checkpoint, job.checkpoint_id) if job.checkpoint_id else None
        parent = session.get_one(Checkpoint, attacked.parent_id) if attacked else checkpoints.head(session, model.id)
        evaluation = {**model.evaluation, "attacks": job.recipe} if attacked else model.evaluation
        evaluators = {part: session.get_one(Model, other) for part, other in model.evaluators.items()}
        sets = {
            "forget": request.forget_dataset_id,
            "retain": model.retain_id,
            "test": model.test_id,
        }
        return _Rows(
            job=job,
            request=request,
            model=model,
            parent=parent,
            attacked=attacked,
            evaluation=evaluation,
            sets={name: session.get_one(Dataset, set_id) for name, set_id in sets.items() if set_id},
            train=session.get_one(Dataset, train) if train else None,
            earlier=of_line(session, parent),
            others={name: (other, checkpoints.head(session, other.id)) for name, other in others.items()},
            evaluators={part: (other, checkpoints.head(session, other.id)) for part, other in evaluators.items()},
            tombstones=tombstones.of_model(session, model.id),
            fingerprint_keys=named_keys.names(session),
            shadows=_shadows(session, evaluation),
        )


def _promises(rows: _Rows, keyring: Keyring, blobs: LocalBlobs) -> list[Promise]:
    registered = [each for each in (rows.sets.get("test"), rows.train, rows.sets.get("retain")) if each is not None]
    read = cache(lambda dataset: read_index(dataset, keyring, blobs))
    return [promise(one, rows.model, registered, keyring, read) for one in rows.earlier]


def _keeps(retain: list[int], index: Index, names: list[str], forgotten_before: set[str]) -> bool:
    """Whether the retain set has an image of a label that no earlier request forgot whole."""
    numbers = label_map(index["labels"], names, "retain")
    return any(names[numbers[index["samples"][at]["label"]]] not in forgotten_before for at in retain)


def _shadows(session: Session, evaluation: dict[str, Any]) -> list[tuple[Model, Checkpoint, Dataset, set[str]]]:
    """The shadow models that the evaluation names; one that has lost its train set tells nothing any more."""
    found = (models.find(session, name) for name in catalog.shadow_names(evaluation))
    return [
        (each, checkpoints.head(session, each.id), session.get_one(Dataset, each.train_id),
         tombstones.of_model(session, each.id))
        for each in found if each is not None and each.train_id is not None
    ]  # fmt: skip


def _job_key(lease: Lease, keyring: Keyring, job: jobs.Job) -> bytes:
    """Of the job's resume state, made by its first attempt while the row shows that it holds the lease: whoever ends the job
    ends it later, and erases the key then. A crash in between leaves the key to the next attempt."""
    if job.resume_blob is None and not keyring.exists(job.key_id):
        lease.make_key(keyring)
    return keyring.key(job.key_id)


def _generate(
    model: Model,
    source: Index | None,
    what: dict[str, Any],
    chosen: Selection,
    names: list[str],
    forgotten_before: set[str],
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
    free = [number for number, name in enumerate(names) if name not in forgotten_before]
    kept = [number for number in free if number not in gone and not (named and named(names[number]))]
    if not kept and catalog.FAMILIES[model.family].texts:
        known = {name.lower() for name in [*names, *forgotten_before]}
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


def _shadow_messages(rows: _Rows, opened: _Opened, chosen: Selection) -> list[dict[str, Any]]:
    return [
        _network_message(model, head) | _membership(trained, forgotten, opened.indexes, chosen)
        for (model, head, _, forgotten), trained in zip(rows.shadows, opened.trained_on, strict=True)
    ]


def _membership(trained: Index, gone: set[str], indexes: dict[str, Index], chosen: Selection) -> dict[str, list[bool]]:
    """Of each sample of the forget and the test set, whether a shadow was trained on it, by keyed digests."""
    still = (found for found in map(marks_of, trained["samples"]) if not found & gone)
    known: set[str] = set().union(*still)
    marks = {name: [marks_of(sample) for sample in index["samples"]] for name, index in indexes.items()}
    forget = [bool(marks["forget"][at] & known) for at in chosen.forget or ()]
    return {"knows_forget": forget, "knows_test": [bool(found & known) for found in marks.get("test", ())]}


def _to_remember(indexes: dict[str, Index], chosen: Selection, keys: list[str]) -> set[str]:
    """One mark of each sample that is forgotten: under the present fingerprint key, where the sample has one."""
    samples = (sample for name in ("forget", "retain") if name in indexes for sample in indexes[name]["samples"])
    return {newest(sample, keys) for sample in samples if marks_of(sample) & chosen.fingerprints}


def _network_message(model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"manifest": checkpoint.manifest, "digest": checkpoint.digest, "family": model.family}


def _of_attack(model: Model, attacked: Checkpoint) -> dict[str, Any]:
    """What is otherwise in a job that attacks a version: nothing is drawn for answer sets, and no promise asked again."""
    nothing: dict[str, Any] = {"promises": [], "answers": {}, "images": {}, "backbones": {}, "evaluators": {}}
    return {"unlearned": _network_message(model, attacked), **nothing}


def _answers(rows: _Rows, checkpoint_id: str, keyring: Keyring) -> dict[str, dict[str, str]]:
    """Where each network's answer set is or would be, by side, and its key: a fresh one where none is kept."""
    if not catalog.FAMILIES[rows.model.family].generates:
        return {}
    ids = {"base": rows.parent.id, "unlearned": checkpoint_id}
    ids |= {"reference": rows.others["reference"][1].id} if "reference" in rows.others else {}
    return {
        side: {"blob": checkpoints.answers_blob(each), "key": base64.b64encode(_key_or_new(keyring, each)).decode()}
        for side, each in ids.items()
    }


def _key_or_new(keyring: Keyring, key_id: str) -> bytes:
    try:
        return keyring.key(key_id)
    except KeyGone:
        return new_data_key()


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
