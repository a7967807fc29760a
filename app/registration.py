"""Accept data sets and models: check first, then bytes under an intent, then one transaction."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from app import catalog, weights
from app.decoding import ArrivingSet
from app.deployment import Deployment
from app.errors import Conflict, NotFound, Refused
from app.evaluators import can_reject, real_labels, resolve_evaluators
from app.fingerprint_keys import living_keys
from app.idempotency import UNKEYED, Once
from app.privacy.checkpoint_guard import DirectoryFacts, unpack_model
from app.privacy.fingerprints import check_of, marks
from app.privacy.images import index_of, set_pieces
from app.privacy.sealing import sealed_chunks
from app.privacy.selection import label_map
from app.recipe import check_evaluation, check_ladder, check_policy
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import history
from app.records import intent as intents
from app.records import model as models
from app.records import named_key as named_keys
from app.records import upload as uploads
from app.records.base import new_id
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset, Role
from app.records.model import Model
from app.records.upload import Upload
from app.storage import BlobMissing

Content = Path | bytes | Iterator[bytes]
SETS = ("train", "retain", "test")  # of a model; each has a column <role>_id


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
    evaluators: dict[str, str]
    ladder: list[dict[str, Any]] | None
    retention: dict[str, float]  # days, by how a request ended
    process: dict[str, str]


def check_name(lethe: Deployment, role: Role, name: str | None) -> None:
    """What can be refused before an archive is read."""
    if role == Role.FORGET and name is not None:
        raise Refused(
            "name-refused",
            "name",
            "A forget set has no name: it may tell who someone is.",
            "Leave it out; the answer holds an id.",
        )
    if role != Role.FORGET and name is None:
        raise Refused("name-missing", "name", f"A set of role {role} needs a name.", "Add ?name=...")
    if name and re.fullmatch(r"[a-z]+_[0-9a-f]{28}", name):  # "taken" would tell that another key's forget set is there
        raise Refused("name-refused", "name", "It has the form of an id.", "Choose another name.")
    with lethe.store.read() as session:
        if name and datasets.find(session, name):
            raise _taken()


def register_dataset(
    lethe: Deployment, archive: BinaryIO, role: Role, name: str | None, actor: str, once: Once = UNKEYED
) -> str:
    """Keep an imagefolder as a confined process decodes and re-encodes it, picture by picture; role forget is sealed before
    anything reaches the disk."""
    private = role == Role.FORGET
    dataset = Dataset(id=new_id("ds"), name=name, role=role, labels=[], created_by=actor)
    keys = living_keys(lethe)
    with lethe.decoders.images(archive, private) as arriving, _new_key(lethe, dataset.key_id) as data_key:
        images, index = _kept(arriving, dataset, keys)
        if data_key is not None:
            images = sealed_chunks(data_key, images, f"dataset/{dataset.id}".encode())
            index = sealed_chunks(data_key, index, f"dataset-index/{dataset.id}".encode())
        contents: dict[str, Content] = {dataset.blob: images, dataset.index_blob: index}
        with _published(lethe, contents) as blobs, lethe.store.write() as session:
            once.claim(session, dataset.id)
            named_keys.confirm(session, {name: check_of(key) for name, key in keys.items()})
            datasets.add(session, dataset)
            intents.fulfil(session, blobs)
    return dataset.id


def _kept(arriving: ArrivingSet, dataset: Dataset, keys: dict[str, bytes]) -> tuple[Iterator[bytes], Iterator[bytes]]:
    """The set's zip, and then its index, as they are to be stored; what the row says of the set is known after them."""
    known: dict[str, Any] = {}

    def index() -> dict[str, Any]:
        decoded = arriving.decoded()
        known.update(index_of(decoded, lambda digest: marks(keys, digest)))
        dataset.count = len(decoded.samples)
        dataset.labels = decoded.labels if dataset.role != Role.FORGET else []
        return known

    def images() -> Iterator[bytes]:
        dataset.bytes = 0
        for piece in set_pieces(arriving.pictures(), index):
            dataset.bytes += len(piece)
            yield piece

    return images(), (json.dumps(content).encode() for content in (known,))


def keep_upload(lethe: Deployment, record: Upload, body: BinaryIO, once: Once = UNKEYED) -> str:
    """Keep a model's archive until it is registered; the sweeper deletes it after a day. Its id."""
    pieces = iter(lambda: body.read(1 << 20), b"")
    with _published(lethe, {record.blob: pieces}) as blobs, lethe.store.write() as session:
        once.claim(session, record.id)
        uploads.add(session, record)
        intents.fulfil(session, blobs)
    return record.id


def register_model(lethe: Deployment, new: NewModel, actor: str, once: Once = UNKEYED) -> str:
    """Check a directory against its family, pack it as version 1 and store the model. Refused leaves nothing; only an upload
    whose content is not what was refused stays, for another try."""
    family = catalog.FAMILIES.get(new.family)
    if family is None:
        raise Refused(
            "unknown-family", "family", "There is no such family.", f"Choose one of {', '.join(catalog.FAMILIES)}."
        )
    policy, evaluation = check_policy(new.family, new.policy), check_evaluation(new.family, new.evaluation)
    evaluators = resolve_evaluators(lethe, new.family, new.evaluators, evaluation)
    ladder = None if new.ladder is None else check_ladder(new.family, new.ladder)
    with lethe.store.read() as session:
        if models.find(session, new.name):
            raise _taken()
    with _directory(lethe, new, actor) as directory:
        with _spent_if_refused(lethe, new.upload):
            facts = lethe.decoders.model(directory, new.family)
        named = {role: getattr(new, role) for role in SETS}
        columns = resolve_sets(lethe, new.family, _own_labels(family, facts), named, new.judge, actor)
        check_shadows(lethe, new.family, columns["labels"], evaluation)
        model = Model(
            id=new_id("model"),
            name=new.name,
            family=new.family,
            policy=policy,
            evaluation=evaluation,
            evaluators=evaluators,
            ladder=ladder,
            retention=new.retention,
            process=new.process,
            created_by=actor,
            **columns,
        )
        _pack_and_store(lethe, model, directory, facts, new.upload, once)
    if new.upload:
        _drop_upload(lethe, new.upload)
    return model.id


def _pack_and_store(
    lethe: Deployment, model: Model, directory: Path, facts: DirectoryFacts, upload_id: str | None, once: Once
) -> None:
    """Version 1: the whole directory as one pack, and the model's row; the upload that it came from is used up."""
    names = {kind: f"{kind}s/{model.id}" for kind in ("pack", "manifest")}
    with tempfile.TemporaryDirectory(dir=scratch(lethe)) as work:
        pack = Path(work) / "pack"
        manifest = weights.pack_base(directory, pack, names["pack"])
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
        contents: dict[str, Content] = {names["pack"]: pack, names["manifest"]: weights.encode(manifest)}
        with _published(lethe, contents) as blobs, lethe.store.write() as session:
            once.claim(session, model.id)
            keep_sets(session, {f"{role}_id": getattr(model, f"{role}_id") for role in SETS})
            models.add(session, model)
            checkpoints.add(session, base, model.created_by)
            intents.fulfil(session, blobs)
            if upload_id and (upload := session.get(Upload, upload_id, with_for_update=True)):
                intents.declare(session, [upload.blob])  # nobody's from now on: swept if we die before it is deleted
                session.delete(upload)


def _drop_upload(lethe: Deployment, upload_id: str) -> None:
    blob = Upload(id=upload_id).blob
    lethe.blobs.delete(blob)
    with lethe.store.write() as session:
        intents.forget(session, blob)


@contextmanager
def _spent_if_refused(lethe: Deployment, upload_id: str | None) -> Iterator[None]:
    """An upload whose content is refused in the block goes at once, as data sets do."""
    try:
        yield
    except Refused as refusal:
        if upload_id is not None:
            with lethe.store.write() as session:
                if upload := session.get(Upload, upload_id, with_for_update=True):
                    intents.declare(session, [upload.blob])
                    session.delete(upload)
                    history.write(
                        session, upload.created_by, "upload.refused", upload_id, details={"code": refusal.code}
                    )
            _drop_upload(lethe, upload_id)
        raise


def _own_labels(family: catalog.Family, facts: DirectoryFacts) -> list[str]:
    """The labels that the files themselves know; none where they come from the registered sets."""
    if family.labels_from == "sets":
        return []
    return facts.label_names or [str(number) for number in range(facts.labels or 0)]


def resolve_sets(
    lethe: Deployment, family: str, labels: list[str], sets: dict[str, str | None], judge: str | None, actor: str
) -> dict[str, Any]:
    """The model's columns: ids of the named sets and the judge, and its labels. A forget set of another key than the actor's
    is as unknown as one that is not there.

    A set's labels must be the model's; where labels come from the sets, those that are new are appended, so that a
    label keeps its number for ever.
    """
    ids: dict[str, Any] = {}
    with lethe.store.read() as session:
        if catalog.FAMILIES[family].labels_from == "sets":
            labels = _with_set_labels(session, labels, sets)
        ids["labels"] = labels
        for role, name in sets.items():
            if name is None:
                continue
            dataset = datasets.find(session, name)
            if dataset is None or (dataset.sealed and dataset.created_by != actor):
                raise _unknown_set(role)
            if dataset.sealed:
                raise Refused(
                    "forget-set-refused", role, "A forget set cannot judge a model.", "Upload it under another role."
                )
            label_map(dataset.labels, labels, role)
            ids[f"{role}_id"] = dataset.id
        if judge is not None:
            known = models.find(session, judge)
            if known is None or known.family != catalog.CLASSIFIER:
                raise Refused(
                    "unknown-judge", "judge", "It must be a registered image_classifier.", "Register the judge first."
                )
            if catalog.FAMILIES[family].generates:  # else it lends its features only
                _check_judge(lethe, session, known, labels, by_name=catalog.FAMILIES[family].texts)
            ids["judge_id"] = known.id
    return ids


def keep_sets(session: Session, columns: dict[str, Any]) -> None:
    """Sets that the columns name stay until the transaction, which writes them, ends. Refused when one is gone since, or its
    deletion was cut off."""
    for role in SETS:
        named = columns.get(f"{role}_id")
        if named is not None and not datasets.keep(session, named):
            raise _unknown_set(role)


def _unknown_set(role: str) -> Refused:
    rule = "There is no such data set, or your key may not see it."
    return Refused("unknown-dataset", role, rule, "Upload it first.")


def check_shadows(
    lethe: Deployment, family: str, labels: list[str], evaluation: dict[str, Any], where: str = "evaluation.attacks"
) -> None:
    """Where an attack takes shadow networks: that the evaluation names enough, and that each can be one."""
    if not any(catalog.ATTACKS[name].shadows for name in evaluation.get("attacks", {})):
        return
    names = catalog.shadow_names(evaluation)
    with lethe.store.read() as session:
        found = [models.find(session, name) for name in names]
    fit = [each for each in found if each and each.family == family and each.labels == labels and each.train_id]
    if len(fit) < max(len(names), catalog.FEWEST_SHADOWS):
        raise Refused(
            "unknown-shadow",
            f"{where}.likelihood_ratio.shadows",
            f"It must name {catalog.FEWEST_SHADOWS} or more registered models of the same family and labels, each with its "
            "train set.",
            "Register the shadow models first, each with train.",
        )


def _with_set_labels(session: Session, labels: list[str], sets: dict[str, str | None]) -> list[str]:
    found = (datasets.find(session, name) for name in sets.values() if name is not None)
    return list(
        dict.fromkeys([*labels, *(label for each in found if each and not each.sealed for label in each.labels)])
    )


def _check_judge(lethe: Deployment, session: Session, judge: Model, labels: list[str], by_name: bool) -> None:
    """Of generated images: it tells the model's labels apart, and from none of them. A judge of networks that know words
    may know further labels, and in any order."""
    real = [label.lower() for label in real_labels(judge)]
    if not ({label.lower() for label in labels} <= set(real) if by_name else len(real) == len(labels)):
        raise Refused(
            "judge-mismatch",
            "judge",
            "It does not know the model's labels: as many, and where they are words, the same.",
            "Train it on the model's labels.",
        )
    if not can_reject(lethe, session, judge):
        raise Refused(
            "judge-never-rejects",
            "judge",
            "It must be able to answer that an image is none of its labels, or noise would look like forgetting.",
            "Give it a label 'none', or set reject_below in its config.json, and register it anew.",
        )


def _taken() -> Conflict:
    return Conflict("Something has this name already. Choose another.", code="name-taken")


@contextmanager
def _new_key(lethe: Deployment, key_id: str | None) -> Iterator[bytes | None]:
    """A data key that is destroyed again when the block, which stores what it seals, fails."""
    if key_id is None:
        yield None
        return
    try:
        yield lethe.keyring.new_key(key_id)
    except OperationalError:  # the commit may have happened: the sweeper destroys the key if it did not
        raise
    except BaseException:
        lethe.keyring.destroy(key_id)
        raise


@contextmanager
def _published(lethe: Deployment, contents: dict[str, Content]) -> Iterator[list[str]]:
    """Declare the blobs, store them, and undo both when the block, which references them, fails."""
    names = list(contents)
    with lethe.store.write() as session:
        intents.declare(session, names)
    try:
        for name, content in contents.items():
            lethe.blobs.put(name, content)
        yield names
    except OperationalError:  # the commit may have happened: the intents stay, and the sweeper finds out
        raise
    except BaseException as error:
        for name in names:
            lethe.blobs.delete(name)
        with lethe.store.write() as session:
            intents.fulfil(session, names)
        if isinstance(error, IntegrityError):
            raise _taken() from error
        raise


@contextmanager
def _directory(lethe: Deployment, new: NewModel, actor: str) -> Iterator[Path]:
    """The files to register: unpacked from an upload, or an allow-listed folder of this host."""
    if (new.upload is None) == (new.path is None):
        raise Refused(
            "source-missing", "source", "Give exactly one of upload and path.", "POST /v1/uploads gives an upload id."
        )
    if new.path is not None:
        yield _allowed(lethe, new.path)
        return
    with lethe.store.read() as session:
        upload = session.get(Upload, new.upload)
    if upload is None or upload.created_by != actor:
        raise NotFound("upload")
    target = scratch(lethe) / new_id("unpack")
    try:
        with lethe.blobs.open(upload.blob) as archive, _spent_if_refused(lethe, upload.id):
            unpack_model(archive, target)
        yield target
    except BlobMissing:  # another request registered it in this moment
        raise NotFound("upload") from None
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _allowed(lethe: Deployment, path: str) -> Path:
    refused = Refused(
        "path-refused",
        "source.path",
        "It is not a folder under LETHE_MODEL_ROOTS.",
        "Ask the operator, or upload the model.",
    )
    try:
        folder = Path(path).resolve()
        if any(folder.is_relative_to(root) for root in lethe.settings.allowed_roots) and folder.is_dir():
            return folder
    except OSError:  # such as a name that is too long
        raise refused from None
    raise refused


def scratch(lethe: Deployment) -> Path:
    folder = lethe.settings.scratch / "server"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
