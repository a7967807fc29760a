"""The job engine's rows: claims, leases, fencing and the crash cap, on both databases."""

import threading
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app.deployment import Deployment
from app.errors import Conflict, LeaseLost
from app.records import history, job_event
from app.records import job as jobs
from app.records import request as requests
from app.records.base import new_id, now
from app.records.job import Job
from app.records.model import Model
from app.records.request import Request
from tests.history import written

LEASE = 30.0


def add_model(lethe: Deployment) -> str:
    model_id = new_id("model")
    with lethe.store.write() as session:
        session.add(
            Model(id=model_id, name=model_id, family="image_classifier", labels=["0", "1"], policy={}, evaluation={},
                  created_by="test", created_at=0.0)
        )  # fmt: skip
    return model_id


def add_job(lethe: Deployment, model_id: str, deadline: float = 100.0, rungs: int = 1) -> str:
    """A request whose ladder has so many rungs, and the job of the first."""
    ladder = [{"method": "salun", "recipe": {"epochs": epochs}} for epochs in range(1, rungs + 1)]
    request = Request(
        id=new_id("req"), model_id=model_id, status="queued", sealed=b"", forget_kind="samples", forget_count=1,
        method="auto" if rungs > 1 else "salun", ladder=ladder, seed=0, requested_at=0.0, due_at=deadline,
        created_by="test", created_at=0.0,
    )  # fmt: skip
    with lethe.store.write() as session:
        requests.add(session, request)
        job = jobs.of_rung(request, 0, 0)
        jobs.add(session, job)
    return job.id


def claim(lethe: Deployment, worker: str = "worker:a", seconds: float = LEASE) -> Job | None:
    with lethe.store.write() as session:
        return jobs.claim(session, worker, seconds)


def read(lethe: Deployment, job_id: str) -> tuple[Job, Request]:
    with lethe.store.read() as session:
        job = session.get_one(Job, job_id)
        return job, session.get_one(Request, job.request_id)


def test_nearest_deadline_is_claimed_first_then_the_older(lethe: Deployment) -> None:
    late, soon, tie = (add_job(lethe, add_model(lethe), deadline) for deadline in (300.0, 100.0, 100.0))
    assert [claim(lethe).id for _ in range(3)] == [soon, tie, late]  # type: ignore[union-attr]
    assert claim(lethe) is None


def test_a_model_has_one_running_job(lethe: Deployment) -> None:
    model = add_model(lethe)
    first, second = add_job(lethe, model), add_job(lethe, model)
    other = add_job(lethe, add_model(lethe), deadline=200.0)
    assert claim(lethe).id == first  # type: ignore[union-attr]
    assert claim(lethe).id == other  # type: ignore[union-attr]
    assert claim(lethe) is None
    with pytest.raises(DBAPIError), lethe.store.write() as session:
        session.execute(text("UPDATE jobs SET status = 'running' WHERE id = :id"), {"id": second})


def test_claim_moves_request_and_raises_the_token(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    claimed = claim(lethe)
    assert claimed is not None and claimed.lease_token == 1
    job, request = read(lethe, job_id)
    assert (job.status, job.stage, request.status) == ("running", "loading", "running")
    with lethe.store.read() as session:
        clock = session.scalar(select(now()))
    assert clock is not None and job.lease_expires_at == pytest.approx(clock + LEASE, abs=5)


def test_a_stale_token_writes_nothing(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    assert claim(lethe) is not None
    with lethe.store.write() as session:
        jobs.release(session, job_id, 1, "worker:a", "drained")
    assert claim(lethe, "worker:b").lease_token == 2  # type: ignore[union-attr]
    attempts: list[Any] = [
        lambda session: jobs.renew(session, job_id, 1, LEASE),
        lambda session: jobs.succeed(session, job_id, 1, "worker:a", True, {}),
        lambda session: jobs.fail(session, job_id, 1, "worker:a", {"code": "x", "detail": ""}),
        lambda session: jobs.cancel(session, job_id, 1, "worker:a"),
        lambda session: jobs.crash(session, job_id, 1, "worker:a"),
        lambda session: job_event.write(session, job_id, 1, "progress", {"step": 1}),
    ]
    for attempt in attempts:
        with pytest.raises(LeaseLost), lethe.store.write() as session:
            attempt(session)
    job, request = read(lethe, job_id)
    assert (job.status, job.event_seq, job.crashes, request.status) == ("running", 0, 0, "running")


def test_an_expired_lease_costs_a_crash_and_the_second_ends_the_job(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    for crashes, (job_status, request_status) in enumerate((("queued", "queued"), ("failed", "failed")), start=1):
        claim(lethe, seconds=-1)
        with lethe.store.write() as session:
            (lost,) = jobs.expired(session)
            assert jobs.take_back(session, lost, "sweeper")
        job, request = read(lethe, job_id)
        assert (job.crashes, job.status, request.status, request.reason) == (
            crashes,
            job_status,
            request_status,
            "worker_lost",
        )
    assert job.error is not None and job.error["code"] == "worker_lost"


def test_a_live_lease_is_not_expired_and_draining_costs_nothing(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    claim(lethe)
    with lethe.store.write() as session:
        assert jobs.expired(session) == []
        jobs.release(session, job_id, 1, "worker:a", "drained")
    job, request = read(lethe, job_id)
    assert (job.status, job.crashes, request.status) == ("queued", 0, "queued")


def test_cancel_ends_a_queued_job_and_asks_a_running_one(lethe: Deployment) -> None:
    queued, running = add_job(lethe, add_model(lethe), 200.0), add_job(lethe, add_model(lethe), 100.0)
    claim(lethe)
    with lethe.store.write() as session:
        jobs.ask_to_cancel(session, queued, "key:x")
        jobs.ask_to_cancel(session, running, "key:x")
    assert [each.status for each in read(lethe, queued)] == ["cancelled", "cancelled"]
    assert [each.status for each in read(lethe, running)] == ["running", "running"]
    with lethe.store.write() as session:
        assert jobs.renew(session, running, 1, LEASE) is True
        jobs.crash(session, running, 1, "sweeper")
    assert [each.status for each in read(lethe, running)] == ["cancelled", "cancelled"]


def test_a_completed_request_is_reopened_or_moves_nowhere(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    claim(lethe)
    with lethe.store.write() as session:
        jobs.succeed(session, job_id, 1, "worker:a", True, {})
    request = read(lethe, job_id)[1]
    for status in set(requests.Status) - {requests.Status.REOPENED}:
        with pytest.raises(Conflict), lethe.store.write() as session:
            requests.move(session, request.id, status, "test")


def test_eight_workers_claim_fifty_jobs_once_each(lethe: Deployment) -> None:
    models = [add_model(lethe) for _ in range(50)]
    expected = {add_job(lethe, model, deadline=float(at)) for at, model in enumerate(models)}
    won: list[str] = []

    def work(name: str) -> None:
        misses = 0
        while misses < 20:
            job = claim(lethe, name)
            misses = 0 if job else misses + 1
            if job:
                won.append(job.id)

    threads = [threading.Thread(target=work, args=(f"worker:{at}",)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 50 and set(won) == expected


def test_racing_claims_on_one_model_give_one_running_job(lethe: Deployment) -> None:
    model = add_model(lethe)
    for _ in range(8):
        add_job(lethe, model)
    won: list[str] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        if job := claim(lethe):
            won.append(job.id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1


def test_events_are_numbered_without_gaps(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    claim(lethe)
    for step in range(3):
        with lethe.store.write() as session:
            job_event.write(session, job_id, 1, "progress", {"step": step}, progress={"step": step})
    with lethe.store.read() as session:
        found = job_event.page(session, job_id, after=0, limit=10)
    assert [(event.seq, event.data["step"]) for event in found] == [(1, 0), (2, 1), (3, 2)]
    assert read(lethe, job_id)[0].progress == {"step": 2}


def test_every_transition_leaves_a_history_row(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    claim(lethe)
    with lethe.store.write() as session:
        jobs.succeed(session, job_id, 1, "worker:a", False, {})
        entries = written(session, request_id=read(lethe, job_id)[1].id)
    actions = [entry.action for entry in entries]
    assert actions == [
        "request.received", "job.queued", "job.claimed", "request.running", "job.succeeded", "request.evaluation_failed"
    ]  # fmt: skip


@pytest.mark.parametrize("statement", ["UPDATE history SET actor = 'x'", "DELETE FROM history"])
def test_the_database_refuses_to_change_history(lethe: Deployment, statement: str) -> None:
    with lethe.store.write() as session:
        history.write(session, "test", "something.done", "thing")
    with pytest.raises(DBAPIError, match="append-only"), lethe.store.write() as session:
        session.execute(text(statement))
    with lethe.store.read() as session:
        assert [entry.actor for entry in written(session)] == ["test"]


def test_a_cancel_that_meets_a_drain_is_not_forgotten(lethe: Deployment) -> None:
    job_id = add_job(lethe, add_model(lethe))
    claim(lethe)
    with lethe.store.write() as session:
        jobs.ask_to_cancel(session, job_id, "key:x")
        jobs.release(session, job_id, 1, "worker:a", "drained")
    assert [each.status for each in read(lethe, job_id)] == ["cancelled", "cancelled"]
