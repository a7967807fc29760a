"""The bell may be lost, doubled or late: the row is the truth, on both deployments."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from app.queue import ring
from app.records import job as jobs
from app.records.outbox import OutboxEntry
from app.submission import Wish, submit
from tests.history import written
from tests.running import Running, open_deployment


@pytest.fixture(params=["embedded", "production"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    deployment = open_deployment(request, request.param, tmp_path / "lethe")
    try:
        deployment.start("server", "gpu")
        deployment.add_classifier(tmp_path)
        yield deployment
    finally:
        deployment.stop()


def submit_without_a_bell(running: Running) -> str:
    """A request whose ring was lost, and with it the outbox's reminder."""
    wish = Wish(
        model="digits", concept=None, dataset=None, samples=["0/0"], class_label=None, generate={}, method="salun",
        recipe={"epochs": 1}, seed=0, reference=None, external_id=None, requested_at=None, due_at=None,
    )  # fmt: skip
    request_id = submit(running.lethe, wish, "key:test", True)
    with running.lethe.store.write() as session:
        session.execute(delete(OutboxEntry))
    return request_id


def claims(running: Running) -> list[str]:
    with running.lethe.store.read() as session:
        return [entry.resource for entry in written(session, action="job.claimed")]


def test_a_job_whose_bell_was_lost_is_found_by_looking(running: Running) -> None:
    request_id = submit_without_a_bell(running)
    done = running.client.wait(request_id)
    assert done["status"] == "completed"
    assert claims(running) == [done["jobs"][0]["id"]]


def test_doubled_and_late_bells_do_nothing(running: Running) -> None:
    posted = running.client.request("digits", {"samples": ["0/0"]}, method="salun", recipe={"epochs": 1})
    for _ in range(20):
        assert ring(running.lethe.celery)
    done = running.client.wait(posted["id"])
    for _ in range(20):
        assert ring(running.lethe.celery)
    later = running.client.wait(
        running.client.request("digits", {"samples": ["0/1"]}, method="salun", recipe={"epochs": 1})["id"]
    )
    assert claims(running) == [done["jobs"][0]["id"], later["jobs"][0]["id"]]
    with running.lethe.store.read() as session:
        assert not jobs.claimable(session)


def test_a_broker_that_is_away_is_no_error_of_the_post(tmp_path: Path, redis_url: str) -> None:
    """The server's broker does not answer: the request is stored all the same, and a worker elsewhere finds it."""
    running = Running(tmp_path / "lethe", broker_url="redis://127.0.0.1:1/0")
    try:
        assert not ring(running.lethe.celery)
        running.environment["LETHE_BROKER_URL"] = redis_url
        running.start("server", "gpu")
        running.add_classifier(tmp_path)
        assert running.client.wait(submit_without_a_bell(running))["status"] == "completed"
    finally:
        running.stop()
