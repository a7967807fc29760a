"""The erasure of what a request brought: unlink the key first, then the ciphertext, then say so in the history.

A crash between those steps leaves unreadable bytes and is finished by the next sweep, so every step may be repeated.
"""

from sqlalchemy import select

from app.privacy.sealing import Keyring
from app.records import dataset as datasets
from app.records import job as jobs
from app.records import request as requests
from app.records.base import now
from app.records.dataset import Dataset
from app.records.request import Request
from app.records.session import Store
from app.settings import Settings
from app.storage import LocalBlobs

ENDED = (jobs.Status.SUCCEEDED, jobs.Status.FAILED, jobs.Status.CANCELLED)


def after_job(store: Store, keyring: Keyring, blobs: LocalBlobs, job_id: str, settings: Settings) -> None:
    """When a job has ended: its resume state at once, and the request's forget set if its retention is zero."""
    with store.read() as session:
        job = session.get_one(jobs.Job, job_id)
        request = session.get_one(Request, job.request_id)
    if job.status not in ENDED:
        return
    _erase_resume_state(keyring, blobs, job)
    kept_for_retry = request.status in (requests.Status.FAILED, requests.Status.EVALUATION_FAILED)
    if not kept_for_retry or settings.failed_retention_days == 0:
        purge_request(store, keyring, blobs, request)


def purge_request(store: Store, keyring: Keyring, blobs: LocalBlobs, request: Request) -> None:
    """Erase the sealed set that the request adopted, and what is left of its jobs' resume state. A registered set that
    it only pointed into stays."""
    with store.read() as session:
        work = jobs.of_request(session, request.id)
        dataset = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
    for job in work:
        _erase_resume_state(keyring, blobs, job)
    if dataset is not None and dataset.sealed and dataset.purged_at is None:
        purge_dataset(store, keyring, blobs, dataset, "the request ended")
    with store.write() as session:
        session.get_one(Request, request.id).purged_at = session.scalar(select(now()))


def purge_dataset(store: Store, keyring: Keyring, blobs: LocalBlobs, dataset: Dataset, why: str) -> None:
    if dataset.key_id:
        keyring.destroy(dataset.key_id)
    blobs.delete(dataset.blob)
    blobs.delete(dataset.index_blob)
    with store.write() as session:
        datasets.purge(session, session.get_one(Dataset, dataset.id), "system", why)


def _erase_resume_state(keyring: Keyring, blobs: LocalBlobs, job: jobs.Job) -> None:
    keyring.destroy(job.key_id)
    if job.resume_blob:
        blobs.delete(job.resume_blob)
