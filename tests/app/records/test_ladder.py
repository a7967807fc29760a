"""The ladder's rows: a rung that did not pass queues the next one, once, or ends the request, once; on both databases."""

import threading
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from app.deployment import Deployment
from app.errors import LeaseLost
from app.records import job as jobs
from app.records import outbox
from app.records.job import Job
from app.records.request import Request
from tests.app.records.test_job import add_job, add_model, claim, read
from tests.history import written

OUT_OF_MEMORY = {"code": "out_of_memory", "detail": "Use a smaller batch."}


def work(lethe: Deployment, ends: str = "missed") -> Job:
    """Claim the best job and end it: passed, missed, or failed with a code."""
    job = claim(lethe)
    assert job is not None
    with lethe.store.write() as session:
        if ends in ("passed", "missed"):
            jobs.succeed(session, job.id, job.lease_token, "worker:a", ends == "passed", {})
        else:
            jobs.fail(session, job.id, job.lease_token, "worker:a", {"code": ends, "detail": ""})
    return job


def climb(lethe: Deployment, first: str) -> tuple[Request, list[Job]]:
    """The request of a first rung, and all its jobs."""
    request = read(lethe, first)[1]
    with lethe.store.read() as session:
        return request, jobs.of_request(session, request.id)


def test_a_rung_that_misses_queues_the_next_and_orders_the_bell(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), deadline=7.0, rungs=3)
    with lethe.store.write() as session:
        outbox.remove(session, outbox.waiting(session, "ring"))
    work(lethe)
    request, (missed, following) = climb(lethe, first)
    assert (missed.status, request.status, request.reason, request.finished_at) == (
        "succeeded",
        "queued",
        "next_rung",
        None,
    )
    assert (following.status, following.rung, following.retry, following.deadline) == ("queued", 1, 0, 7.0)
    assert (following.method, following.recipe, following.model_id) == ("salun", {"epochs": 2}, missed.model_id)
    with lethe.store.read() as session:
        assert len(outbox.waiting(session, "ring")) == 1
        actions = [entry.action for entry in written(session, request_id=request.id)]
    assert actions[-3:] == ["job.succeeded", "request.queued", "job.queued"]


@pytest.mark.parametrize(
    ("ends", "status", "reason", "rungs"),
    [
        (["passed"], "completed", None, [0]),
        (["missed", "passed"], "completed", None, [0, 1]),
        (["missed", "missed", "missed"], "evaluation_failed", "threshold_missed", [0, 1, 2]),
        (["out_of_memory", "internal_error", "passed"], "completed", None, [0, 1, 2]),
        (["missed", "missed", "out_of_memory"], "failed", "out_of_memory", [0, 1, 2]),
        (["missed", "checkpoint_damaged"], "failed", "checkpoint_damaged", [0, 1]),
        (["storage_full"], "failed", "storage_full", [0]),
    ],
)
def test_a_request_ends_with_its_ladder_or_with_what_no_rung_can_mend(
    lethe: Deployment, ends: list[str], status: str, reason: str | None, rungs: list[int]
) -> None:
    first = add_job(lethe, add_model(lethe), rungs=3)
    for end in ends:
        work(lethe, end)
    assert claim(lethe) is None
    request, tried = climb(lethe, first)
    assert (request.status, request.reason, [job.rung for job in tried]) == (status, reason, rungs)
    assert [job.error["code"] if job.error else None for job in tried] == [
        None if end in ("passed", "missed") else end for end in ends
    ]
    with lethe.store.read() as session:
        entries = written(session, request_id=request.id)
    assert [entry.action for entry in entries].count(f"request.{status}") == 1


def test_a_stale_attempt_queues_no_second_rung(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=3)
    done = work(lethe)
    for again in (
        lambda session: jobs.succeed(session, done.id, done.lease_token, "worker:a", False, {}),
        lambda session: jobs.fail(session, done.id, done.lease_token, "worker:a", OUT_OF_MEMORY),
    ):
        with pytest.raises(LeaseLost), lethe.store.write() as session:
            again(session)
    assert [job.rung for job in climb(lethe, first)[1]] == [0, 1]


def test_a_lease_that_was_lost_as_the_rung_ended_queues_none(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=3)
    lost = claim(lethe, seconds=-1)
    assert lost is not None
    with lethe.store.write() as session:
        assert jobs.take_back(session, lost.id, "sweeper")
    held = claim(lethe, "worker:b")
    assert held is not None
    with pytest.raises(LeaseLost), lethe.store.write() as session:
        jobs.succeed(session, lost.id, lost.lease_token, "worker:a", False, {})
    assert [job.rung for job in climb(lethe, first)[1]] == [0]
    with lethe.store.write() as session:
        jobs.succeed(session, held.id, held.lease_token, "worker:b", False, {})
    assert [(job.rung, job.crashes) for job in climb(lethe, first)[1]] == [(0, 1), (1, 0)]


def test_two_ends_of_one_rung_at_once_give_one_next_rung(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=2)
    held = claim(lethe)
    assert held is not None
    barrier, told = threading.Barrier(4), []

    def end() -> None:
        barrier.wait()
        try:
            with lethe.store.write() as session:
                jobs.succeed(session, held.id, held.lease_token, "worker:a", False, {})
            told.append("queued")
        except LeaseLost:
            told.append("lost")

    threads = [threading.Thread(target=end) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["lost", "lost", "lost", "queued"]
    assert [job.rung for job in climb(lethe, first)[1]] == [0, 1]


def test_a_crash_before_the_commit_leaves_the_rung_running_and_no_next(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=2)
    held = claim(lethe)
    assert held is not None
    with pytest.raises(KeyboardInterrupt), lethe.store.write() as session:
        jobs.succeed(session, held.id, held.lease_token, "worker:a", False, {})
        raise KeyboardInterrupt
    request, (only,) = climb(lethe, first)
    assert (only.status, request.status) == ("running", "running")


def test_no_rung_has_two_jobs(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=2)
    with pytest.raises(IntegrityError), lethe.store.write() as session:
        jobs.add(session, jobs.of_rung(read(lethe, first)[1], 0, 0))
    with lethe.store.write() as session:
        jobs.add(session, jobs.of_rung(read(lethe, first)[1], 0, 1))


def test_who_asked_to_cancel_gets_no_further_rung(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=2)
    held = claim(lethe)
    assert held is not None
    with lethe.store.write() as session:
        jobs.ask_to_cancel(session, held.id, "key:x")
        jobs.succeed(session, held.id, held.lease_token, "worker:a", False, {})
    request, (only,) = climb(lethe, first)
    assert (only.status, request.status) == ("succeeded", "cancelled")


def test_a_cancel_that_meets_the_end_of_a_rung_is_not_lost(lethe: Deployment) -> None:
    """Whichever commits first: the request ends as cancelled, and no rung is left to run."""
    for _ in range(8):
        first = add_job(lethe, add_model(lethe), rungs=2)
        held, barrier = claim(lethe), threading.Barrier(2)
        assert held is not None and held.id == first

        def end(held: Job, barrier: threading.Barrier) -> None:
            barrier.wait()
            with lethe.store.write() as session:
                jobs.succeed(session, held.id, held.lease_token, "worker:a", False, {})

        thread = threading.Thread(target=end, args=(held, barrier))
        thread.start()
        barrier.wait()
        with lethe.store.write() as session:
            assert jobs.ask_newest_to_cancel(session, held.request_id, "key:x") is not None
        thread.join()
        request, tried = climb(lethe, first)
        assert request.status == "cancelled" and {job.status for job in tried} <= {"succeeded", "cancelled"}
    with lethe.store.write() as session:
        assert jobs.ask_newest_to_cancel(session, request.id, "key:x") is None


def test_a_rung_that_waits_is_cancelled_at_once(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=2)
    work(lethe)
    with lethe.store.write() as session:
        jobs.ask_to_cancel(session, climb(lethe, first)[1][-1].id, "key:x")
    request, tried = climb(lethe, first)
    assert (request.status, [job.status for job in tried]) == ("cancelled", ["succeeded", "cancelled"])


def test_what_no_rung_can_change_ends_the_ladder(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=3)
    held = claim(lethe)
    assert held is not None
    with lethe.store.write() as session:
        jobs.succeed(session, held.id, held.lease_token, "worker:a", False, {}, "judge_unfit", climbs=False)
    request, (only,) = climb(lethe, first)
    assert (request.status, request.reason, only.status) == ("evaluation_failed", "judge_unfit", "succeeded")


def test_two_lost_workers_end_the_ladder(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=3)
    for _ in range(2):
        claim(lethe, seconds=-1)
        with lethe.store.write() as session:
            (lost,) = jobs.expired(session)
            assert jobs.take_back(session, lost, "sweeper")
    request, (only,) = climb(lethe, first)
    assert (request.status, request.reason, only.crashes) == ("failed", "worker_lost", 2)


def test_jobs_stand_in_the_order_of_the_ladder_whatever_the_clocks_of_hosts_say(lethe: Deployment) -> None:
    first = add_job(lethe, add_model(lethe), rungs=2)
    work(lethe)
    with lethe.store.write() as session:
        following = session.scalars(select(Job).where(Job.rung == 1)).one()
        values: dict[str, Any] = {column.key: getattr(following, column.key) for column in Job.__table__.columns}
        session.delete(following)
        session.flush()
        session.add(Job(**values | {"id": "job_0"}))
    assert [job.id for job in climb(lethe, first)[1]] == [first, "job_0"]
