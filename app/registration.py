"""Accept data sets and models: check first, then bytes under an intent, then one transaction."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.exc import IntegrityError

from app import catalog, weights
from app.deployment import Deployment
from app.errors import Conflict, NotFound, Refused, StorageExhausted
from app.privacy.archive import Limits
from app.privacy.checkpoint_guard import inspect_directory, unpack_model
from app.privacy.imagefolder import read_imagefolder
from app.privacy.images import ImageLimits, index_of, write_set
from app.privacy.sealing import fingerprint, seal
from app.privacy.selection import label_map
from app.recipe import check_evaluation, check_policy
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import intent as intents
from app.records import model as models
from app.records.base import new_id
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset, Role
from app.records.model import Model
from app.records.upload import Upload
from app.storage import StorageFull


@dataclass(frozen=True)
class NewModel:
    """A model as it was posted; data sets and the judge by name or id."""

    name: str
    family: str
    upload: str | None
    path: str | None
    train: str | None
    retain: str | None
    test: str | None
    judge: str | None
    policy: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any]


def register_dataset(lethe: Deployment, archive: BinaryIO, role: Role, name: str | None, actor: str) -> str:
    """Decode, re-encode and keep an imagefolder; role forget is sealed before anything reaches the disk."""
    private = role == Role.FORGET
    if not private and name is None:
        raise Refused("name-missing", "name", f"A set of role {role} needs a name.", "Add ?name=...")
    if private and name is not None:
        raise Refused("name-refused", "name", "A forget set has no name: it may tell who someone is.", "Leave it out; the answer holds an id.")
    with lethe.store.read() as session:
        if name and datasets.find(session, name):
            raise Conflict("A data set has this name already. Choose another.", code="name-taken")
    settings, key = lethe.settings, lethe.keyring.named_key("fingerprint")
    decoded = read_imagefolder(
        archive,
        lambda pixels, shape: fingerprint(key, pixels, shape),
        private=private,
        limits=Limits(entries=settings.max_entries),
        image_limits=ImageLimits(pixels=settings.max_pixels),
    )
    dataset = Dataset(
        id=new_id("ds"),
        name=name,
        role=role,
        labels=[] if private else decoded.labels,
        count=len(decoded.samples),
        created_by=actor,
    )
    images, index = write_set(decoded), json.dumps(index_of(decoded)).encode()
    dataset.bytes = len(images)
    if private:
        data_key = lethe.keyring.new_key(dataset.id)
        images = seal(data_key, images, f"dataset/{dataset.id}".encode())
        index = seal(data_key, index, f"dataset-index/{dataset.id}".encode())
    with _published(lethe, {dataset.blob: images, dataset.index_blob: index}, dataset.key_id) as blobs, lethe.store.write() as session:
        datasets.add(session, dataset)
        intents.fulfil(session, blobs)
    return dataset.id


def register_model(lethe: Deployment, new: NewModel, actor: str) -> str:
    """Check a directory against its family, pack it as version 1 and store the model. Refused leaves nothing."""
    family = catalog.FAMILIES.get(new.family)
    if family is None:
        raise Refused("unknown-family", "family", f"There is no family {new.family!r}.", f"Choose one of {', '.join(catalog.FAMILIES)}.")
    with _directory(lethe, new, actor) as directory, tempfile.TemporaryDirectory(dir=scratch(lethe)) as work:
        facts = inspect_directory(directory, family, new.family)
        labels = facts.label_names or [str(number) for number in range(facts.labels)]
        model = Model(
            id=new_id("model"),
            name=new.name,
            family=new.family,
            labels=labels,
            policy=check_policy(new.family, new.policy),
            evaluation=check_evaluation(new.family, new.evaluation),
            created_by=actor,
            **resolve_sets(lethe, labels, {"train": new.train, "retain": new.retain, "test": new.test}, new.judge),
        )
        names = {kind: f"{kind}s/{model.id}" for kind in ("pack", "manifest")}
        pack = Path(work) / "pack"
        manifest = weights.pack_base(directory, pack, names["pack"])
        contents: dict[str, Path | bytes] = {names["pack"]: pack, names["manifest"]: weights.encode(manifest)}
        base = Checkpoint(
            id=new_id("ckpt"),
            model_id=model.id,
            status=checkpoints.Status.RELEASED,
            pack=names["pack"],
            manifest=names["manifest"],
            digest=weights.digest(manifest),
            changes={"tensors_total": facts.tensors, "bytes_added": pack.stat().st_size, "bytes_full": facts.bytes},
            report={},
        )
        with _published(lethe, contents, None) as blobs, lethe.store.write() as session:
            models.add(session, model)
            checkpoints.add(session, base, actor)
            intents.fulfil(session, blobs)
            if new.upload and (upload := session.get(Upload, new.upload)):
                session.delete(upload)
    if new.upload:
        lethe.blobs.delete(f"uploads/{new.upload}")
    return model.id


def resolve_sets(lethe: Deployment, labels: list[str], sets: dict[str, str | None], judge: str | None) -> dict[str, Any]:
    """Ids of the named sets and the judge; every set's labels must be the model's."""
    ids: dict[str, Any] = {}
    with lethe.store.read() as session:
        for role, name in sets.items():
            if name is None:
                continue
            dataset = datasets.find(session, name)
            if dataset is None:
                raise Refused("unknown-dataset", role, "There is no such data set.", "Upload it first.")
            if dataset.sealed:
                raise Refused("forget-set-refused", role, "A forget set cannot judge a model.", "Upload it under another role.")
            label_map(dataset.labels, labels, role)
            ids[f"{role}_id"] = dataset.id
        if judge is not None:
            known = models.find(session, judge)
            if known is None or known.family != "image_classifier":
                raise Refused("unknown-judge", "judge", "It must be a registered image_classifier.", "Register the judge first.")
            ids["judge_id"] = known.id
    return ids


@contextmanager
def _published(lethe: Deployment, contents: dict[str, Any], key_id: str | None) -> Iterator[list[str]]:
    """Declare the blobs, store them, and undo both when the block, which references them, fails."""
    names = list(contents)
    with lethe.store.write() as session:
        intents.declare(session, names)
    try:
        for name, content in contents.items():
            lethe.blobs.put(name, content)
        yield names
    except BaseException as error:
        if key_id:
            lethe.keyring.destroy(key_id)
        for name in names:
            lethe.blobs.delete(name)
        with lethe.store.write() as session:
            intents.fulfil(session, names)
        if isinstance(error, StorageFull):
            raise StorageExhausted from error
        if isinstance(error, IntegrityError):
            raise Conflict("Something has this name already. Choose another.", code="name-taken") from error
        raise


@contextmanager
def _directory(lethe: Deployment, new: NewModel, actor: str) -> Iterator[Path]:
    """The files to register: unpacked from an upload, or an allow-listed folder of this host."""
    if (new.upload is None) == (new.path is None):
        raise Refused("source-missing", "source", "Give exactly one of upload and path.", "POST /v1/uploads gives an upload id.")
    if new.path is not None:
        folder = Path(new.path).resolve()
        if not any(folder.is_relative_to(root) for root in lethe.settings.allowed_roots) or not folder.is_dir():
            raise Refused("path-refused", "source.path", "It is not a folder under LETHE_MODEL_ROOTS.", "Ask the operator, or upload the model.")
        yield folder
        return
    with lethe.store.read() as session:
        upload = session.get(Upload, new.upload)
    if upload is None or upload.created_by != actor:
        raise NotFound("upload")
    target = scratch(lethe) / new_id("unpack")
    try:
        with lethe.blobs.open(upload.blob) as archive:
            unpack_model(archive, target)
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)


def scratch(lethe: Deployment) -> Path:
    folder = lethe.settings.scratch / "server"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
