"""Attacks as jobs, on both databases: they lease like any other, move no request, and a stale attempt writes no result."""

import pytest
from sqlalchemy import select

from app.deployment import Deployment
from app.errors import LeaseLost
from app.records import attack_result as attack_results
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records.attack_result import AttackResult
from app.records.base import new_id
from app.records.checkpoint import Checkpoint, Status
from app.records.job import Job
from app.records.request import Request
from tests.app.records.test_job import LEASE, add_job, add_model, claim, read
from tests.history import written

ROWS = [{"attack": "relearning", "value": 12.5}]
ASKED = {"relearning": {"steps": 5}}


def add_attack(lethe: Deployment) -> str:
    """A queued attack on the version of a completed request."""
    job_id = add_job(lethe, add_model(lethe))
    assert claim(lethe) is not None
    with lethe.store.write() as session:
        job = jobs.succeed(session, job_id, 1, "worker:a", True, {})
        request = session.get_one(Request, job.request_id)
        version = Checkpoint(id=new_id("ckpt"), model_id=job.model_id, job_id=job.id, request_id=request.id,
                             status=Status.RELEASED, manifest="m", digest="sha256:1", changes={}, report={})  # fmt: skip
        checkpoints.add(session, version, "worker:a")
        asked = jobs.of_attacks(request, version.id, ASKED, 500.0, "key:x")
        jobs.add(session, asked)
    return asked.id


def results(lethe: Deployment) -> list[AttackResult]:
    with lethe.store.read() as session:
        return list(session.scalars(select(AttackResult)))


def test_an_attack_ends_with_its_result_and_moves_no_request(lethe: Deployment) -> None:
    job_id = add_attack(lethe)
    before = read(lethe, job_id)[1]
    claimed = claim(lethe)
    assert claimed is not None and claimed.id == job_id
    assert read(lethe, job_id)[1].status == "completed"
    with lethe.store.write() as session:
        attack_results.record(session, job_id, 1, "worker:a", ROWS)
    job, request = read(lethe, job_id)
    (result,) = results(lethe)
    assert (job.status, job.lease_expires_at) == ("succeeded", None) and job.finished_at is not None
    assert (result.job_id, result.checkpoint_id, result.rows) == (job_id, job.checkpoint_id, ROWS)
    assert (request.status, request.reason, request.finished_at) == ("completed", None, before.finished_at)
    with lethe.store.read() as session:
        (queued,) = written(session, action="job.queued", resource=job_id)
        assert (queued.actor, queued.details) == ("key:x", {"attacks": ["relearning"]})
        assert [job.id for job in jobs.of_request(session, request.id)] != [job_id]
        assert [job.id for job in jobs.attacks_on(session, request.id, after=None, limit=9)] == [job_id]


def test_a_stale_attempt_writes_no_result(lethe: Deployment) -> None:
    job_id = add_attack(lethe)
    claim(lethe, seconds=-1)
    with lethe.store.write() as session:
        (lost,) = jobs.expired(session)
        assert jobs.take_back(session, lost, "sweeper")
    assert claim(lethe, "worker:b").lease_token == 2  # type: ignore[union-attr]
    with pytest.raises(LeaseLost), lethe.store.write() as session:
        attack_results.record(session, job_id, 1, "worker:a", ROWS)
    assert results(lethe) == [] and read(lethe, job_id)[0].status == "running"
    with lethe.store.write() as session:
        attack_results.record(session, job_id, 2, "worker:b", ROWS)
    with pytest.raises(LeaseLost), lethe.store.write() as session:
        attack_results.record(session, job_id, 2, "worker:b", ROWS)
    assert len(results(lethe)) == 1


@pytest.mark.parametrize("code", ["out_of_memory", "checkpoint_damaged"])
def test_a_failed_attack_queues_no_rung_and_fails_no_request(lethe: Deployment, code: str) -> None:
    job_id = add_attack(lethe)
    claim(lethe)
    with lethe.store.write() as session:
        jobs.fail(session, job_id, 1, "worker:a", {"code": code, "detail": ""})
    job, request = read(lethe, job_id)
    assert (job.status, job.error, request.status) == ("failed", {"code": code, "detail": ""}, "completed")
    assert claim(lethe) is None and results(lethe) == []


def test_crashes_drains_and_cancels_are_the_job_s_alone(lethe: Deployment) -> None:
    crashed = add_attack(lethe)
    for status in ("queued", "failed"):
        claimed = claim(lethe)
        assert claimed is not None
        with lethe.store.write() as session:
            jobs.crash(session, crashed, claimed.lease_token, "sweeper")
        job, request = read(lethe, crashed)
        assert (job.status, request.status) == (status, "completed")
    drained = add_attack(lethe)
    claim(lethe)
    with lethe.store.write() as session:
        jobs.release(session, drained, 1, "worker:a", "drained")
    assert [each.status for each in read(lethe, drained)] == ["queued", "completed"]
    claim(lethe)
    with lethe.store.write() as session:
        jobs.ask_to_cancel(session, drained, "key:x")
    with lethe.store.write() as session:
        assert jobs.renew(session, drained, 2, LEASE)
        jobs.cancel(session, drained, 2, "worker:a")
    assert [each.status for each in read(lethe, drained)] == ["cancelled", "completed"]
    waiting = add_attack(lethe)
    with lethe.store.write() as session:
        jobs.ask_to_cancel(session, waiting, "key:x")
    assert [each.status for each in read(lethe, waiting)] == ["cancelled", "completed"]


def test_a_model_runs_one_job_whatever_its_kind(lethe: Deployment) -> None:
    attack = add_attack(lethe)
    with lethe.store.write() as session:
        request = session.get_one(Request, session.get_one(Job, attack).request_id)
        version = session.get_one(Job, attack).checkpoint_id
        jobs.add(
            session, jobs.of_attacks(request, version or "", ASKED, 600.0, "key:x")
        )  # two attacks, same rung and retry
    assert claim(lethe).id == attack  # type: ignore[union-attr]
    assert claim(lethe) is None
