"""What must happen though nobody asks: lost leases, unheard bells, requests that nobody decided on, dead uploads,
data past its retention.

Runs in every server, in one at a time (a lease in the database). Each duty may be interrupted and repeated.
"""

import shutil
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app import keyring_status
from app.deployment import Deployment
from app.privacy import purge
from app.queue import ring
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import idempotency, leader, outbox
from app.records import intent as intents
from app.records import job as jobs
from app.records import request as requests
from app.records import upload as uploads
from app.records.upload import Upload
from app.retirement import erase_condemned
from app.returned_keys import destroy_returned
from app.rounds import Rounds

log = structlog.get_logger()
DAY = 86400.0
SCRATCH_DAYS = 7
_last_tidy = [-3600.0]  # of this process, on the monotonic clock
_last_watch = [-3600.0]


def sweeping(lethe: Deployment) -> Rounds:
    return Rounds("sweeper", partial(_round, lethe), lethe.settings.sweep_seconds)


def _round(lethe: Deployment, holder: str) -> float:
    every = lethe.settings.sweep_seconds
    try:
        with lethe.store.write() as session:
            leads = leader.lead(session, "sweep", holder, 3 * every)
    except SQLAlchemyError as error:  # the database is away; the next round tries again
        log.warning("sweep.failed", error=type(error).__name__)
        return every
    if leads:
        sweep(lethe, holder)
    return every


def sweep(lethe: Deployment, actor: str = "sweeper") -> None:
    """One round of every duty; one that fails does not keep the others from theirs."""
    duties: tuple[Callable[[], None], ...] = (
        lambda: take_back_lost_jobs(lethe, actor),
        lambda: expire_waiting(lethe, actor),
        lambda: ring_again(lethe),
        lambda: purge_old_data(lethe),
        lambda: delete_dead_blobs(lethe),
        lambda: erase_condemned(lethe, actor),
        lambda: delete_old_scratch(lethe),
        lambda: forget_idempotency_keys(lethe),
        lambda: watch_keys(lethe, actor),
    )
    for duty in duties:
        try:
            duty()
        except Exception as error:  # noqa: BLE001  (logged by its class; the next round tries again)
            log.warning("sweep.failed", error=type(error).__name__)


def _each(duty: str, ids: Iterable[str], do: Callable[[str], None]) -> None:
    """One that fails keeps no other from its erasure, in this round or a later one."""
    for each in ids:
        try:
            do(each)
        except Exception as error:  # noqa: BLE001  (logged by its class; the next round tries it again)
            log.warning("sweep.failed", duty=duty, id=each, error=type(error).__name__)


def take_back_lost_jobs(lethe: Deployment, actor: str) -> None:
    with lethe.store.read() as session:
        lost = jobs.expired(session)
    _each("take_back", lost, partial(_take_back, lethe, actor))


def _take_back(lethe: Deployment, actor: str, job_id: str) -> None:
    with lethe.store.write() as session:
        taken = jobs.take_back(session, job_id, actor)
    if taken:
        log.warning("lease.expired", job=job_id)
        _after_job(lethe, job_id)


def expire_waiting(lethe: Deployment, actor: str) -> None:
    """Requests that nobody verified or approved until they were due. A purge that is cut off is one of old data's."""
    with lethe.store.write() as session:
        ended = requests.expire_waiting(session, actor)
    for request_id in ended:
        log.warning("request.expired", request=request_id)
    _each("purge_request", ended, partial(_purge_request, lethe))


def ring_again(lethe: Deployment) -> None:
    with lethe.store.read() as session:
        entries = outbox.waiting(session, "ring")
    if entries and ring(lethe.celery):
        with lethe.store.write() as session:
            outbox.remove(session, entries)


def purge_old_data(lethe: Deployment) -> None:
    saved = [
        name.removeprefix("resume/") for name in lethe.blobs.list("resume/")
    ]  # perhaps by a lost attempt, after the end
    with lethe.store.read() as session:
        ended = requests.past_retention(session, lethe.settings.failed_retention_days)
        unadopted = datasets.unadopted(session, lethe.settings.unadopted_hours * 3600)
        forgotten = {upload.id: upload for upload in uploads.old(session, DAY)}
        leftovers = sorted({*jobs.with_leftovers(session), *jobs.ended_among(session, saved)})
        superseded = checkpoints.with_answers_to_erase(session)
        pictured = checkpoints.with_images_to_erase(session)
    _each("after_job", leftovers, partial(_after_job, lethe))
    _each("purge_request", ended, partial(_purge_request, lethe))
    _each("purge_unadopted", unadopted, partial(_purge_unadopted, lethe))
    _each("delete_upload", forgotten, lambda upload_id: _delete_upload(lethe, forgotten[upload_id]))
    _each("erase_answers", superseded, partial(purge.erase_answers, lethe.store, lethe.keyring, lethe.blobs))
    _each("erase_images", pictured, partial(purge.erase_images, lethe.store, lethe.keyring, lethe.blobs))


def _after_job(lethe: Deployment, job_id: str) -> None:
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)


def _purge_request(lethe: Deployment, request_id: str) -> None:
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, lethe.settings)


def _purge_unadopted(lethe: Deployment, dataset_id: str) -> None:
    with lethe.store.write() as session:
        taken = datasets.withdraw(session, dataset_id)
    if taken:
        purge.purge_withdrawn(lethe.store, lethe.keyring, lethe.blobs, dataset_id, "no request adopted it")


def _delete_upload(lethe: Deployment, upload: Upload) -> None:
    lethe.blobs.delete(upload.blob)
    with lethe.store.write() as session:
        session.delete(upload)


def delete_dead_blobs(lethe: Deployment) -> None:
    """Blobs whose intent is dead and old, with their keys; and keys of requests that a killed server never stored. Who
    forgets the intent first, here or whoever refers to the blob, has it."""
    grace = lethe.settings.pack_grace_hours * 3600
    with lethe.store.read() as session:
        dead = intents.dead(session, grace)
    for blob in dead:
        with lethe.store.write() as session:
            if intents.forget(session, blob) and not checkpoints.uses_blob(session, blob):
                if blob.startswith(("datasets/", "answers/", "requests/")):
                    lethe.keyring.destroy(blob.split("/")[1])  # its upload died: what it sealed must not stay readable
                if blob.startswith("images/"):
                    lethe.keyring.destroy(checkpoints.images_key(blob.split("/")[1]))
                lethe.blobs.delete(blob)


def forget_idempotency_keys(lethe: Deployment) -> None:
    with lethe.store.write() as session:
        idempotency.forget_old(session)


def watch_keys(lethe: Deployment, actor: str) -> None:
    """Say in the log what an operator should do about keys, and destroy those that a backup brought back; hourly."""
    if time.monotonic() - _last_watch[0] < 3600:
        return
    if returned := destroy_returned(lethe, actor):
        log.warning("keyring.returned_destroyed", keys=returned)
    keyring_status.note_first_use(lethe)
    for warned in keyring_status.warnings(lethe):
        log.warning(warned["event"], remedy=warned["remedy"])
    _last_watch[0] = time.monotonic()


def delete_old_scratch(lethe: Deployment) -> None:
    """Folders of workers that were killed on hosts that did not come back, of servers that were killed, and blobs that were
    never finished; hourly."""
    if time.monotonic() - _last_tidy[0] < 3600:
        return
    _last_tidy[0] = time.monotonic()
    lethe.blobs.sweep_partial(timedelta(days=1))
    for folder in lethe.settings.scratch.glob("*"):
        if folder.name != "server" and _idle_seconds(folder) > SCRATCH_DAYS * DAY:
            shutil.rmtree(folder, ignore_errors=True)
    for left in lethe.settings.scratch.glob("server/*"):  # a version's bytes, where a server was killed
        if _idle_seconds(left, inside=True) > DAY:
            shutil.rmtree(left, ignore_errors=True)


def _idle_seconds(path: Path, inside: bool = False) -> float:
    """Since it was written to; 0 where it is gone."""
    try:
        written = [each.lstat().st_mtime for each in (path, *(path.rglob("*") if inside else ()))]
    except FileNotFoundError:
        return 0.0
    return time.time() - max(written)
