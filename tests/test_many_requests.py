"""50 requests over 5 models, 3 workers, Postgres and Redis: all end, none twice, one job per model at a time."""

from pathlib import Path

import pytest
from sqlalchemy import select

from app.records.job import Job
from tests.history import written
from tests.running import Running
from tests.services import fresh_database

MODELS, EACH, WORKERS = 5, 10, 3


@pytest.mark.verify
@pytest.mark.timeout(900)
def test_fifty_requests_on_three_workers(tmp_path: Path, postgres_server: str, redis_url: str) -> None:
    running = Running(tmp_path / "lethe", fresh_database(postgres_server), redis_url)
    try:
        running.start("server")
        for model in range(MODELS):
            running.add_classifier(tmp_path, name=f"model-{model}")
        posted = [
            running.client.request(
                f"model-{number % MODELS}", {"samples": [f"{number % 4}/{number // MODELS % 6}"]}, method="salun", recipe={"epochs": 1},
                due_at=f"2030-01-{28 - number // MODELS:02d}T00:00:00Z",
            )
            for number in range(MODELS * EACH)
        ]  # fmt: skip
        running.start(*(f"gpu{number}" for number in range(WORKERS)))
        done = [running.client.wait(request["id"], poll=1.0) for request in posted]
        assert {request["status"] for request in done} == {"completed"}
        check_every_job_ran_once_alone_and_in_order(running)
        for model in range(MODELS):
            check_lineage_is_a_line(running, f"model-{model}")
    finally:
        running.stop()


def check_every_job_ran_once_alone_and_in_order(running: Running) -> None:
    with running.lethe.store.read() as session:
        jobs = list(session.scalars(select(Job)))
        entries = written(session)
    assert len(jobs) == MODELS * EACH and all(job.lease_token == 1 and job.crashes == 0 for job in jobs)
    by_id = {job.id: job for job in jobs}
    busy: dict[str, str] = {}
    order: dict[str, list[float]] = {}
    for entry in entries:
        if entry.action == "job.claimed":
            job = by_id[entry.resource]
            assert job.model_id not in busy
            busy[job.model_id] = job.id
            order.setdefault(job.model_id, []).append(job.deadline)
        elif entry.action == "job.succeeded":
            assert busy.pop(by_id[entry.resource].model_id) == entry.resource
    assert busy == {} and len(order) == MODELS
    assert all(deadlines == sorted(deadlines) for deadlines in order.values())
    assert len({job.worker for job in jobs}) == WORKERS


def check_lineage_is_a_line(running: Running, model: str) -> None:
    versions = list(running.client.pages(f"/v1/models/{model}/checkpoints"))
    assert [version["number"] for version in versions] == list(range(1, EACH + 2))
    assert [version["parent"] for version in versions] == [None, *range(1, EACH + 1)]
    assert len({version["request"] for version in versions}) == EACH + 1
