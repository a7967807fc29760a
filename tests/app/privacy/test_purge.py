"""What may be erased, when: never under a request that runs, always once it ended, and whole after an interruption."""

import json
import os
import time
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app import keyring_status, migration, sweeper
from app.deployment import Deployment, deploy
from app.privacy import proof, purge
from app.privacy.fingerprints import check_of
from app.privacy.sealing import seal
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import job as jobs
from app.records import named_key as named_keys
from app.records import purge_proof as purge_proofs
from app.records import request as requests
from app.records.base import new_id
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.request import Request
from app.settings import Settings
from tests.app.records.test_job import add_job, add_model, claim, read


def add_forget_set(lethe: Deployment, adopted_by: str | None = None) -> str:
    dataset_id = new_id("ds")
    lethe.keyring.new_key(dataset_id)
    dataset = Dataset(
        id=dataset_id, name=None, role="forget", labels=[], count=1, bytes=1, created_by="test", adopted_by=adopted_by
    )
    lethe.blobs.put(dataset.blob, b"sealed")
    lethe.blobs.put(dataset.index_blob, b"sealed")
    with lethe.store.write() as session:
        datasets.add(session, dataset)
    return dataset_id


def add_request(lethe: Deployment) -> tuple[str, str, str]:
    """A queued request with an adopted set; ids of the job, the request and the set."""
    job_id = add_job(lethe, add_model(lethe))
    with lethe.store.read() as session:
        request_id = session.get_one(jobs.Job, job_id).request_id
    dataset_id = add_forget_set(lethe, request_id)
    with lethe.store.write() as session:
        session.get_one(Request, request_id).forget_dataset_id = dataset_id
    lethe.keyring.new_key(job_id)
    lethe.blobs.put(f"resume/{job_id}", b"state")
    return job_id, request_id, dataset_id


def add_superseded(lethe: Deployment) -> str:
    """A superseded version; the name of its answer set."""
    version = Checkpoint(
        id=new_id("ckpt"), model_id=add_model(lethe), status="superseded", digest="0" * 64,
        manifest="m", report={}, changes={},
    )  # fmt: skip
    version.answers = checkpoints.answers_blob(version.id)
    lethe.blobs.put(version.answers, b"sealed")
    with lethe.store.write() as session:
        checkpoints.add(session, version, "worker:a")
    return version.answers


def gone(lethe: Deployment, dataset_id: str) -> bool:
    with lethe.store.read() as session:
        recorded = session.get_one(Dataset, dataset_id).purged_at is not None
    exists = lethe.keyring.exists(dataset_id) or lethe.blobs.exists(f"datasets/{dataset_id}/images")
    assert recorded is not exists
    return recorded


def test_a_completed_request_loses_its_set_and_resume_state(lethe: Deployment) -> None:
    job_id, _, dataset_id = add_request(lethe)
    claim(lethe)
    with lethe.store.write() as session:
        jobs.succeed(session, job_id, 1, "worker:a", True, {})
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)
    assert gone(lethe, dataset_id)
    assert not lethe.keyring.exists(job_id) and not lethe.blobs.exists(f"resume/{job_id}")


def test_a_failed_request_keeps_its_set_for_a_retry_but_not_its_resume_state(lethe: Deployment) -> None:
    job_id, request_id, dataset_id = add_request(lethe)
    claim(lethe)
    with lethe.store.write() as session:
        jobs.fail(session, job_id, 1, "worker:a", {"code": "x", "detail": ""})
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)
    assert not gone(lethe, dataset_id) and not lethe.keyring.exists(job_id)
    with lethe.store.write() as session:
        requests.move(session, request_id, requests.Status.QUEUED, "key:x", "retried")
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)
    sweeper.sweep(lethe)
    assert not gone(lethe, dataset_id)


@pytest.mark.parametrize("status", ["queued", "running"])
def test_nothing_of_an_active_request_is_erased(lethe: Deployment, status: str) -> None:
    job_id, _, dataset_id = add_request(lethe)
    if status == "running":
        claim(lethe)
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)
    sweeper.sweep(lethe)
    assert not gone(lethe, dataset_id) and lethe.keyring.exists(job_id)


def test_an_interrupted_deletion_is_finished_by_the_sweeper(lethe: Deployment) -> None:
    dataset_id = add_forget_set(lethe)
    with lethe.store.write() as session:
        assert datasets.withdraw(session, dataset_id)
        assert not datasets.adopt(session, session.get_one(Dataset, dataset_id), "req_x")
    assert not gone(lethe, dataset_id)
    sweeper.sweep(lethe)
    assert gone(lethe, dataset_id)


def test_resume_state_that_a_paused_worker_saved_after_the_end_is_swept(lethe: Deployment) -> None:
    """Its lease was renewed, then it slept while another attempt ended the job and erased its state."""
    job_id, request_id, _ = add_request(lethe)
    claim(lethe)
    running, _, _ = add_request(lethe)
    with lethe.store.write() as session:
        jobs.succeed(session, job_id, 1, "worker:a", True, {})
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, job_id, lethe.settings)
    lethe.blobs.put(f"resume/{job_id}", b"sealed")
    with lethe.store.read() as session:
        request = session.get_one(Request, request_id)
        assert proof.still_there(session, lethe.keyring, lethe.blobs, request)["objects_present"] == 1
    sweeper.purge_old_data(lethe)
    with lethe.store.read() as session:
        assert proof.still_there(session, lethe.keyring, lethe.blobs, request)["objects_present"] == 0
    assert lethe.blobs.exists(f"resume/{running}") and lethe.keyring.exists(running)


def test_another_database_on_the_key_folder_destroys_no_key(
    lethe: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an empty one, where LETHE_DATABASE_URL was forgotten; and one that retired keys of the same names."""
    job_id, request_id, dataset_id = add_request(lethe)
    lethe.keyring.new_key(request_id)
    keyring_status.note_first_use(lethe)
    for path in lethe.keyring.files():
        os.utime(path, (time.time() - 90_000,) * 2)
    keys = lethe.keyring.counts()
    other = deploy(Settings(data=tmp_path / "other", keys=lethe.keyring.folder))
    migration.upgrade(other.store)
    with other.store.write() as session:
        old = named_keys.of_duplicates(session, change=True)
        old.check_value = "another key"
        named_keys.replace_duplicates(session, old, "duplicates-2", check_of(b"2"))
    for _ in range(2):  # from the second on, it has used the folder's named keys itself
        monkeypatch.setattr(sweeper, "_last_watch", [-3600.0])
        sweeper.sweep(other, "sweeper:other")
    other.store.close()
    assert lethe.keyring.counts() == keys and keyring_status.broken(lethe) == []


def test_resume_state_that_a_dead_worker_left_is_swept(lethe: Deployment) -> None:
    job_id, _, _ = add_request(lethe)
    claim(lethe)
    with lethe.store.write() as session:
        jobs.write_as_holder(session, job_id, 1, resume_blob=f"resume/{job_id}")
        jobs.fail(session, job_id, 1, "worker:a", {"code": "x", "detail": ""})
    sweeper.sweep(lethe)
    assert not lethe.keyring.exists(job_id) and not lethe.blobs.exists(f"resume/{job_id}")


def test_a_fresh_unadopted_set_stays_and_an_old_one_goes(lethe: Deployment) -> None:
    old, fresh = add_forget_set(lethe), add_forget_set(lethe)
    with lethe.store.write() as session:
        session.get_one(Dataset, old).created_at -= 25 * 3600
    sweeper.sweep(lethe)
    assert gone(lethe, old) and not gone(lethe, fresh)


def test_a_purge_that_fails_keeps_no_other_from_its_own(lethe: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails at one set's file fails there again each round."""
    (job_id, bad, bad_set), (_, good, good_set), unadopted = (
        add_request(lethe),
        add_request(lethe),
        add_forget_set(lethe),
    )
    with lethe.store.write() as session:
        for request_id in (bad, good):
            session.get_one(Request, request_id).status = requests.Status.CANCELLED
        for job in jobs.of_request(session, bad) + jobs.of_request(session, good):
            job.status, job.resume_blob = jobs.Status.CANCELLED, f"resume/{job.id}"
        session.get_one(Dataset, unadopted).created_at -= 25 * 3600
    delete = lethe.blobs.delete

    def failing(name: str) -> None:
        if bad_set in name:
            raise OSError(5, "Input/output error")
        delete(name)

    monkeypatch.setattr(lethe.blobs, "delete", failing)
    sweeper.purge_old_data(lethe)
    assert gone(lethe, good_set) and gone(lethe, unadopted)
    assert not lethe.keyring.exists(job_id)
    with lethe.store.read() as session:
        assert session.get_one(Request, bad).purged_at is None
    monkeypatch.undo()
    sweeper.purge_old_data(lethe)
    assert gone(lethe, bad_set)


@pytest.mark.parametrize("index", [b"{damaged", b"\xff", b"[]", b"{}", b'{"labels": ["0"], "samples": [{"label": 7}]}'])
def test_a_damaged_index_of_a_registered_set_stops_no_purge(lethe: Deployment, index: bytes) -> None:
    _, request_id, dataset_id = add_request(lethe)
    what = {"kind": "samples", "concept": None, "named": None, "called": None, "ids": None, "labels": []}
    key = lethe.keyring.new_key(request_id)
    with lethe.store.write() as session:
        request, dataset = session.get_one(Request, request_id), session.get_one(Dataset, dataset_id)
        request.sealed = seal(key, json.dumps(what).encode(), f"request/{request_id}".encode())
        request.status = requests.Status.CANCELLED
        dataset.role, dataset.adopted_by = "train", None
        lethe.blobs.put(dataset.index_blob, index)
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, lethe.settings)
    with lethe.store.read() as session:
        assert session.get_one(Request, request_id).purged_at is not None
        document = purge_proofs.find(session, request_id)
        assert document is not None and document["samples"] is None


def test_a_lost_job_that_cannot_be_taken_back_keeps_no_other_from_it(
    lethe: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (add_job(lethe, add_model(lethe)) for _ in range(2))
    claim(lethe, seconds=-1), claim(lethe, "worker:b", seconds=-1)
    take_back = jobs.take_back

    def failing(session: Session, job_id: str, actor: str) -> bool:
        done = take_back(session, job_id, actor)
        if job_id == bad:
            raise OSError(5, "Input/output error")
        return done

    monkeypatch.setattr(jobs, "take_back", failing)
    sweeper.take_back_lost_jobs(lethe, "sweeper")
    assert (read(lethe, bad)[0].status, read(lethe, good)[0].status) == ("running", "queued")
    monkeypatch.undo()
    sweeper.take_back_lost_jobs(lethe, "sweeper")
    assert read(lethe, bad)[0].status == "queued"


def test_an_answer_set_that_cannot_be_erased_keeps_no_other_from_it(
    lethe: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (add_superseded(lethe) for _ in range(2))
    delete = lethe.blobs.delete

    def failing(name: str) -> None:
        if name == bad:
            raise OSError(5, "Input/output error")
        delete(name)

    monkeypatch.setattr(lethe.blobs, "delete", failing)
    sweeper.purge_old_data(lethe)
    assert (lethe.blobs.exists(bad), lethe.blobs.exists(good)) == (True, False)
    monkeypatch.undo()
    sweeper.purge_old_data(lethe)
    assert not lethe.blobs.exists(bad)
