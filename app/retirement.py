"""Retire versions: what the versions that stay need moves to packs of theirs, and the old packs are erased.

    choose -> declare and store new packs -> one transaction: point to them, retire, condemn -> delete, and what they drew

Until that transaction all is as it was, and what was stored goes with its intents; from then on the old blobs only wait to be
deleted, by this call, a later one or the sweeper. It checks everything again under the locks that keep jobs from being
claimed or registered, for a version that is registered meanwhile points into the packs of its parent.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import weights
from app.deployment import Deployment
from app.errors import NotFound, PreconditionFailed, Refused
from app.idempotency import UNKEYED, Once
from app.override import etag
from app.preconditions import matches
from app.privacy import purge
from app.records import checkpoint as checkpoints
from app.records import erasure as erasures
from app.records import history
from app.records import intent as intents
from app.records import job as jobs
from app.records import model as models
from app.records.base import new_id, now
from app.records.checkpoint import Checkpoint, Status
from app.records.model import Model
from app.registration import scratch
from app.retirable import Choice, chosen
from app.storage import BlobMissing
from app.weights import Manifest
from app.weights.living import Plan, Staying, plan
from app.weights.repack import Repacked, repack

RETIRE = "checkpoints:retire"


class Code(StrEnum):
    ERASURE = "erasure"
    STORAGE = "storage"
    OTHER = "other"


@dataclass(frozen=True)
class Order:
    """Who retires what, and why. `version` None: every one of the model that may go. `if_match`: what the caller believes the
    version to be."""

    model: str
    version: int | None
    code: Code
    quarantined: bool
    actor: str
    if_match: str | None = None


@dataclass(frozen=True)
class _Stored:
    """What was prepared: the new manifests are in the store."""

    planned: Plan
    manifests: dict[int, Manifest]  # of the model's versions, as they were
    repacked: dict[int, tuple[Repacked, str]]  # with the name of the new manifest


def retire(lethe: Deployment, order: Order, once: Once = UNKEYED) -> str:
    """Returns the id of the retirement, which its versions name."""
    erase_condemned(lethe, order.actor)
    retirement = new_id("ret")
    with lethe.store.read() as session:
        choice = _choose(session, order)
    names = _names(choice, retirement)
    with _declared(lethe, names):
        stored = _store(lethe, order, choice, names)
        with lethe.store.write() as session:
            once.claim(session)
            _lock(session, choice.model.id)
            again = _choose(session, order)
            _refuse_if_changed(again, choice)
            _record(session, again, stored, order, retirement)
            if not intents.fulfil(session, [blob for pair in names.values() for blob in pair]):
                raise _refused("model-changed", "It took longer than LETHE_PACK_GRACE_HOURS.", "Send it again.")
            once.settle(retirement)
    erase_condemned(lethe, order.actor)
    _erase_images(lethe, choice.model.id)
    return retirement


def _erase_images(lethe: Deployment, model_id: str) -> None:
    """What the retired versions drew, in their own reports and in those of their children. The sweeper does it, too."""
    with lethe.store.read() as session:
        due = checkpoints.with_images_to_erase(session, model_id)
    for checkpoint_id in due:
        purge.erase_images(lethe.store, lethe.keyring, lethe.blobs, checkpoint_id)


def erase_condemned(lethe: Deployment, actor: str = "system") -> None:
    """Delete what retirements condemned, each with its history row. May be interrupted, repeated, and done by two at once.
    What a running job may read waits for its end."""
    with lethe.store.write() as session:
        due = erasures.due(session)
    for each in due:
        lethe.blobs.delete(each.blob)
        with lethe.store.write() as session:
            if erasures.done(session, each.blob):
                details = _named(each.blob) | {
                    "bytes": each.bytes,
                    "sha256": each.sha256,
                    "retirement": each.retirement,
                }
                history.write(session, actor, "weights.erased", each.model_id, details=details)


def _choose(session: Session, order: Order) -> Choice:
    model = models.find(session, order.model)
    named = checkpoints.find(session, model.id, order.version) if model and order.version is not None else None
    if model is None or (order.version is not None and named is None):
        raise NotFound("checkpoint" if model else "model")
    if named is not None and order.if_match is not None and not matches(order.if_match, etag(named)):
        raise PreconditionFailed
    return chosen(session, model, named, order.quarantined)


def _lock(session: Session, model_id: str) -> None:
    """Until the transaction ends no job of the model is claimed, posted or registered. In the order in which others lock."""
    jobs.hold_active(session, model_id)
    models.lock(session, model_id, whole=True)
    jobs.hold_active(session, model_id)
    session.expire_all()


def _names(choice: Choice, retirement: str) -> dict[int, tuple[str, str]]:
    """What the new pack and manifest of each version that stays are called, if it gets any."""
    return {
        each.number: (
            f"packs/{each.stem}.{retirement}-{each.number}",
            f"manifests/{each.stem}.{retirement}-{each.number}",
        )
        for each in choice.staying
    }


@contextmanager
def _declared(lethe: Deployment, names: dict[int, tuple[str, str]]) -> Iterator[None]:
    """Intents for all names; undone with what was stored when the block, which refers to it, fails."""
    blobs = [blob for pair in names.values() for blob in pair]
    with lethe.store.write() as session:
        intents.declare(session, blobs)
    try:
        yield
    except OperationalError:  # the commit may have happened: the intents stay, and the sweeper finds out
        raise
    except BaseException:
        with suppress(OperationalError):
            for blob in blobs:
                lethe.blobs.delete(blob)
            with lethe.store.write() as session:
                intents.fulfil(session, blobs)
        raise


def _store(lethe: Deployment, order: Order, choice: Choice, names: dict[int, tuple[str, str]]) -> _Stored:
    try:
        manifests = {each.number: _manifest(lethe, each) for each in (*choice.staying, *choice.going)}
        staying = [
            Staying(each.number, manifests[each.number], each.pack, choice.bases[each.number], names[each.number][0])
            for each in choice.staying
        ]
        planned = plan(staying, [manifests[each.number] for each in choice.going])
        found = {}
        with tempfile.TemporaryDirectory(dir=scratch(lethe)) as work:
            for each in repack(planned, lethe.blobs, Path(work)):
                lethe.blobs.put(names[each.number][1], weights.encode(each.manifest))
                found[each.number] = (each, names[each.number][1])
    except (BlobMissing, weights.CheckpointDamaged):
        with lethe.store.read() as session:
            _refuse_if_changed(_choose(session, order), choice)  # another retirement was first
        rule = "Stored bytes of a version that stays are missing or not what they were."
        raise _refused("checkpoint-damaged", rule, "Nothing was changed. Restore the blobs from a backup.") from None
    return _Stored(planned, manifests, found)


def _refuse_if_changed(present: Choice, before: Choice) -> None:
    if present.seen != before.seen:
        raise _refused("model-changed", "Its versions changed meanwhile.", "Send it again.")


def _manifest(lethe: Deployment, checkpoint: Checkpoint) -> Manifest:
    with lethe.blobs.open(checkpoint.manifest) as file:
        return weights.decode(file.read())


def _record(session: Session, choice: Choice, stored: _Stored, order: Order, retirement: str) -> None:
    """The transaction's writes: versions that stay point to what was stored, the others are retired, the rest condemned."""
    manifests = stored.manifests
    packs = {
        pack.name: pack for each in manifests.values() for pack in each.packs if pack.name in stored.planned.condemned
    }
    replaced = {each.manifest: manifests[each.number] for each in choice.going}
    for each in choice.staying:
        if each.number in stored.repacked:
            replaced[each.manifest] = manifests[each.number]
            found, name = stored.repacked[each.number]
            each.pack = found.pack.name if found.pack else each.pack
            details = {"number": each.number, "retirement": retirement, "bytes": found.pack.size if found.pack else 0}
            checkpoints.move(session, each, order.actor, name, details)
    kept = {str(each.number): found.pack.size for each, found in _with_packs(choice, stored)}
    totals = {"bytes_erased": sum(pack.size for pack in packs.values()), "bytes_kept": sum(kept.values())}
    at = session.scalar(select(now())) or 0.0
    for each in choice.going:
        said = {"was": each.status, "code": order.code, "retirement": retirement}
        said |= totals | _gone(manifests, each, choice)
        files = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifests[each.number].files]
        retired = {"at": at, "by": order.actor, **said, "files": files}
        details = {"number": each.number, "digest": each.digest, **said, "kept": kept}
        checkpoints.retire(session, each, order.actor, retired, details)
    for each in checkpoints.of_model(session, choice.model.id):
        each.pack = None if each.pack in packs else each.pack
    living = {each.manifest for each in checkpoints.of_model(session, choice.model.id) if each.status != Status.RETIRED}
    condemned = [{"blob": pack.name, "bytes": pack.size, "sha256": pack.sha256} for pack in packs.values()]
    condemned += [_of_manifest(name, one) for name, one in replaced.items() if name not in living]
    erasures.condemn(session, retirement, choice.model.id, condemned)


def _with_packs(choice: Choice, stored: _Stored) -> Iterator[tuple[Checkpoint, Any]]:
    for each in choice.staying:
        found = stored.repacked.get(each.number)
        if found and found[0].pack:
            yield each, found[0]


def _gone(manifests: dict[int, Manifest], version: Checkpoint, choice: Choice) -> dict[str, int]:
    """How many tensors a version has, and of how many no version that stays has the values."""
    living = {(key, t.digest) for each in choice.staying for key, t in manifests[each.number].tensors()}
    own = [(key, tensor.digest) for key, tensor in manifests[version.number].tensors()]
    return {"tensors": len(own), "tensors_erased": sum(each not in living for each in own)}


def _of_manifest(name: str, manifest: Manifest) -> dict[str, Any]:
    stored = weights.encode(manifest)
    return {"blob": name, "bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()}


def _named(blob: str) -> dict[str, Any]:
    """Of a blob's name the kind and the digest."""
    return {"kind": blob.partition("/")[0], "blob": hashlib.sha256(blob.encode()).hexdigest()}


def of(session: Session, model: Model, retirement: str) -> list[Checkpoint]:
    """The versions that a retirement retired."""
    retired = (each for each in checkpoints.of_model(session, model.id) if each.retired)
    return [each for each in retired if each.retired and each.retired["retirement"] == retirement]


def _refused(code: str, rule: str, remedy: str) -> Refused:
    return Refused(code, "version", rule, remedy, 409)
