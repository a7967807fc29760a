"""The erasure of what a request brought, and of what versions before it drew: unlink the key first, then the ciphertext, then say so in the history.

Whether something may go is decided under a lock on its row, in the transaction that records the erasure. A crash
between the steps leaves unreadable bytes, and the next sweep finishes them, so every step may be repeated.
"""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.privacy import label_figures, proof
from app.privacy.sealing import Keyring
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import held_tombstone as held_tombstones
from app.records import history
from app.records import job as jobs
from app.records import purge_proof as purge_proofs
from app.records import request as requests
from app.records.base import now
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.legal_hold import LegalHold
from app.records.request import Request
from app.records.session import Store
from app.report import IMAGES
from app.settings import Settings
from app.storage import LocalBlobs

ENDED = (jobs.Status.SUCCEEDED, jobs.Status.FAILED, jobs.Status.CANCELLED)


def after_job(store: Store, keyring: Keyring, blobs: LocalBlobs, job_id: str, settings: Settings) -> None:
    """When a job has ended: its resume state at once, answer sets and images of versions that it superseded, and the request's
    forget set if its retention is zero."""
    with store.write() as session:
        job = session.get_one(jobs.Job, job_id)
        if job.status not in ENDED:
            return
        _erase_resume_state(keyring, blobs, job)
        superseded = checkpoints.with_answers_to_erase(session, job.model_id)
        pictured = checkpoints.with_images_to_erase(session, job.model_id)
    for checkpoint_id in superseded:
        erase_answers(store, keyring, blobs, checkpoint_id)
    for checkpoint_id in pictured:
        erase_images(store, keyring, blobs, checkpoint_id)
    purge_request(store, keyring, blobs, job.request_id, settings)


def purge_request(store: Store, keyring: Keyring, blobs: LocalBlobs, request_id: str, settings: Settings) -> None:
    """If the request is past its retention, and nobody holds it: erase the sealed set that it adopted, what is left of its
    jobs' resume state, the digests held for an override, images of its quarantined versions and, unless it completed, its own
    fingerprint and the key of what it named; of one that completed that stays sealed, for later versions to be asked about. A
    registered set that it only pointed into stays.

    What proves the purge is kept first, in a transaction of its own: large sets are digested with no lock held. A set that its
    owner is deleting goes first, and a later round purges the request."""
    with store.read() as session:
        if not requests.past_retention(session, settings.failed_retention_days, request_id):
            return
    proof.keep_of_request(store, keyring, blobs, request_id)
    with store.write() as session:
        request = session.get_one(Request, request_id, with_for_update=True)
        if not requests.past_retention(session, settings.failed_retention_days, request_id):
            return
        dataset = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
        if proof.being_deleted(dataset) or (document := proof.complete(session, request)) is None:
            return
        for job in jobs.of_request(session, request_id):
            _erase_resume_state(keyring, blobs, job)
        if dataset is not None and dataset.adopted_by == request_id:
            _erase_dataset(session, keyring, blobs, dataset, "the request ended", document)
        for version in checkpoints.of_request(session, request_id):
            if version.status == checkpoints.Status.QUARANTINED:  # from now on nobody can release it
                _erase_images(session, keyring, blobs, version)
        held_tombstones.drop(session, request_id)
        if request.status not in requests.KEPT:
            keyring.destroy(request.key_id)
            request.fingerprint = None
            drop_label_figures(session, request_id)
        request.purged_at = session.scalar(select(now()))
        history.write(session, "system", "request.purged", request_id, request_id, document)


def drop_label_figures(session: Session, request_id: str) -> None:
    """Of its versions' reports: sealed ones, whose key is destroyed, and those of before, in plain."""
    for version in checkpoints.of_request(session, request_id):
        if version.report:
            version.report = label_figures.without(version.report)


def purge_withdrawn(store: Store, keyring: Keyring, blobs: LocalBlobs, dataset_id: str, why: str) -> None:
    """Erase a set that `datasets.withdraw` took out of reach."""
    proof.keep_of_set(store, keyring, blobs, dataset_id)
    with store.write() as session:
        dataset = session.get_one(Dataset, dataset_id, with_for_update=True)
        if dataset.adopted_by == datasets.WITHDRAWN:
            document = purge_proofs.find(session, dataset_id) or {}
            _erase_dataset(session, keyring, blobs, dataset, why, document)


def erase_answers(store: Store, keyring: Keyring, blobs: LocalBlobs, checkpoint_id: str) -> None:
    """The answer set of a version that was superseded: it has images of what a later request forgot."""
    with store.write() as session:
        checkpoint = session.get_one(Checkpoint, checkpoint_id)
        held = _held(session, checkpoint)
        session.refresh(checkpoint, with_for_update=True)
        if checkpoint.answers is not None and not held:
            keyring.destroy(checkpoint.id)
            blobs.delete(checkpoint.answers)
            checkpoint.answers = None
            history.write(session, "system", "answers.erased", checkpoint.id)


def erase_images(store: Store, keyring: Keyring, blobs: LocalBlobs, checkpoint_id: str) -> None:
    """The pictures of a version that show images (`checkpoints.with_images_to_erase`)."""
    with store.write() as session:
        checkpoint = session.get_one(Checkpoint, checkpoint_id)
        if not _held(session, checkpoint):
            _erase_images(session, keyring, blobs, checkpoint)


def _held(session: Session, checkpoint: Checkpoint) -> bool:
    """Whether its request is under a legal hold. Until the transaction ends none is put."""
    if checkpoint.request_id is None:
        return False
    session.get(Request, checkpoint.request_id, with_for_update=True)
    return session.get(LegalHold, checkpoint.request_id) is not None


def _erase_images(session: Session, keyring: Keyring, blobs: LocalBlobs, checkpoint: Checkpoint) -> None:
    session.refresh(checkpoint, with_for_update=True)
    if checkpoint.images is None:
        return
    keyring.destroy(checkpoints.images_key(checkpoint.id))
    for name in IMAGES:
        blobs.delete(f"{checkpoint.images}/{name}")
    checkpoint.images = None
    history.write(session, "system", "images.erased", checkpoint.id, checkpoint.request_id)


def _erase_dataset(
    session: Session, keyring: Keyring, blobs: LocalBlobs, dataset: Dataset, why: str, document: dict[str, Any]
) -> None:
    if dataset.purged_at is not None:
        return
    if dataset.key_id:
        keyring.destroy(dataset.key_id)
    blobs.delete(dataset.blob)
    blobs.delete(dataset.index_blob)
    datasets.purge(session, dataset, "system", {"why": why, **document})


def _erase_resume_state(keyring: Keyring, blobs: LocalBlobs, job: jobs.Job) -> None:
    keyring.destroy(job.key_id)
    blobs.delete(f"resume/{job.id}")
    job.resume_blob = None
