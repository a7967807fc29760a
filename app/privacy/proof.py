"""What proves a purge: taken of the sealed set while it is there, kept in the history, and checked when somebody asks.

Digests of ciphertext and of key ids say what was destroyed. The root over the keyed digests of the samples says which
images that were: whoever has them all, and the key of that name, computes it anew; without the key it tells nothing.
"""

import hashlib
from typing import Any

from sqlalchemy.orm import Session

from app.audit import tree
from app.errors import Refused
from app.privacy.fingerprints import in_order, parted
from app.privacy.sealing import KeyGone, Keyring, SealBroken
from app.privacy.selection import forgotten, job_labels, read_index, read_wish
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import job as jobs
from app.records import purge_proof as purge_proofs
from app.records import request as requests
from app.records.checkpoint import Checkpoint, Status
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.records.session import Store
from app.report import IMAGES
from app.storage import CHUNK, BlobMissing, LocalBlobs

Document = dict[str, Any]
UNREADABLE = (KeyGone, SealBroken, BlobMissing, ValueError, LookupError, TypeError)  # an index that is gone or damaged
METHOD = "key file overwritten and unlinked; ciphertext deleted"


def keep_of_request(store: Store, keyring: Keyring, blobs: LocalBlobs, request_id: str) -> None:
    """Before anything of a request is erased. Of a set that its owner erased before, what was kept then; while its owner
    erases it, nothing."""
    with store.read() as session:
        request = session.get_one(Request, request_id)
        if purge_proofs.find(session, request_id) is not None:
            return
        model = session.get_one(Model, request.model_id)
        dataset = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
        earlier = purge_proofs.find(session, dataset.id) if dataset else None
        keys = [
            job.key_id for job in jobs.of_request(session, request_id)
        ]  # its own, too, if it ends so: `complete` knows
    if being_deleted(dataset):
        return
    owner = dataset.adopted_by if dataset else None
    if earlier is not None:
        document = {**earlier, "keys": sorted({*earlier["keys"], *map(_digest, keys)})}
    else:
        samples = _selected(request, model, dataset, keyring, blobs) if dataset else None
        document = _document(dataset, keys, samples, blobs)
    with store.write() as session:
        session.get_one(Request, request_id, with_for_update=True)
        dataset = session.get(Dataset, dataset.id) if dataset else None
        if dataset is None or dataset.adopted_by == owner:  # else its owner may have erased it while it was digested
            purge_proofs.keep(session, request_id, document)


def complete(session: Session, request: Request) -> Document | None:
    """What was kept, with the keys of work that the request did since and, as it has ended now, its own; None when nothing
    was. The caller holds the request."""
    document = purge_proofs.find(session, request.id)
    if document is None:
        return None
    keys = sorted({*document.get("keys", []), *map(_digest, _keys(session, request))})
    return purge_proofs.change(session, request.id, {**document, "keys": keys})


def being_deleted(dataset: Dataset | None) -> bool:
    """Whether its owner's DELETE has begun and not ended, or was cut off: the sweeper ends it."""
    return dataset is not None and dataset.adopted_by == datasets.WITHDRAWN and dataset.purged_at is None


def keep_of_set(store: Store, keyring: Keyring, blobs: LocalBlobs, dataset_id: str) -> None:
    """Before a sealed set is erased by its owner, or since no request has it."""
    with store.read() as session:
        dataset = session.get_one(Dataset, dataset_id)
        if not dataset.sealed or purge_proofs.find(session, dataset_id) is not None:
            return
    document = _document(dataset, [], _all(dataset, keyring, blobs), blobs)
    with store.write() as session:
        session.get_one(Dataset, dataset_id, with_for_update=True)
        purge_proofs.keep(session, dataset_id, document)


def root_of(samples: list[dict[str, Any]]) -> Document:
    """Of the keyed digests of samples of one index, under the key that was the newest then: sorted, and each once."""
    found = [parted(in_order(sample)[0]) for sample in samples]
    leaves = [bytes.fromhex(digest) for digest in sorted({digest for _, digest in found})]
    key = found[0][0] if found else None
    return {"count": len(found), "leaves": len(leaves), "root": tree.root(leaves).hex(), "key": key}


def still_there(session: Session, keyring: Keyring, blobs: LocalBlobs, request: Request) -> dict[str, int]:
    """How many of the key files and sealed objects that the purge destroyed are there now: none, or it is not true."""
    work = jobs.of_request(session, request.id)
    keys, names = _keys(session, request), [f"resume/{job.id}" for job in work]
    dataset = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
    names += [f"{checkpoints.images_folder(each.id)}/{name}" for each in _shown(session, request) for name in IMAGES]
    if dataset is not None and dataset.key_id is not None:
        keys, names = [*keys, dataset.key_id], [*names, dataset.blob, dataset.index_blob]
    return {
        "keys_present": sum(keyring.exists(key_id) for key_id in keys),
        "objects_present": sum(blobs.exists(name) for name in names),
    }


def _keys(session: Session, request: Request) -> list[str]:
    """Ids of the keys that its purge destroys beside its set's."""
    named = [] if request.status in requests.KEPT and request.sealed else [request.key_id]
    shown = [checkpoints.images_key(each.id) for each in _shown(session, request)]
    return [*(job.key_id for job in jobs.of_request(session, request.id)), *named, *shown]


def _shown(session: Session, request: Request) -> list[Checkpoint]:
    """Its quarantined versions whose reports had pictures with images: they go with it."""
    quarantined = (each for each in checkpoints.of_request(session, request.id) if each.status == Status.QUARANTINED)
    return [each for each in quarantined if not set(IMAGES).isdisjoint(each.report.get("pictures", []))]


def _document(dataset: Dataset | None, keys: list[str], samples: Document | None, blobs: LocalBlobs) -> Document:
    sealed = dataset is not None and dataset.key_id is not None
    names = [dataset.blob, dataset.index_blob] if dataset is not None and sealed else []
    key_ids = [*keys, dataset.key_id] if dataset is not None and dataset.key_id is not None else keys
    return {
        "method": METHOD,
        "set": dataset.id if dataset else None,
        "objects": [each for name in names if (each := _object(name, blobs)) is not None],
        "keys": sorted(map(_digest, key_ids)),
        "samples": samples,
    }


def _object(name: str, blobs: LocalBlobs) -> Document | None:
    digest = hashlib.sha256()
    try:
        with blobs.open(name) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            return {"bytes": file.tell(), "sha256": digest.hexdigest()}
    except BlobMissing:
        return None


def _selected(request: Request, model: Model, dataset: Dataset, keyring: Keyring, blobs: LocalBlobs) -> Document | None:
    """Of the samples that the request selected. None where they cannot be told any more: a damaged index stops no purge."""
    try:
        what, index = read_wish(request, keyring), read_index(dataset, keyring, blobs)
        positions = forgotten(index, what, job_labels(model, index, what))
        return root_of([index["samples"][at] for at in positions])
    except (*UNREADABLE, Refused):
        return None


def _all(dataset: Dataset, keyring: Keyring, blobs: LocalBlobs) -> Document | None:
    try:
        return root_of(read_index(dataset, keyring, blobs)["samples"])
    except UNREADABLE:
        return None


def _digest(key_id: str) -> str:
    return hashlib.sha256(key_id.encode()).hexdigest()
