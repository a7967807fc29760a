"""kill -9 of each process in each stage: every job ends once, with one checkpoint, and the history is whole."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select, text

from app import sweeper
from app.deployment import Deployment, deploy
from app.records import checkpoint as checkpoints
from app.records.intent import Intent
from app.records.job import Job
from app.settings import Settings
from tests import pictures
from tests.history import written
from tests.running import Running, open_deployment, until

STAGES = ("loading", "unlearning", "evaluating", "registering")
VICTIMS = ("runner", "worker", "server")
SHORT = {
    ("embedded", "worker", "registering"),
    ("production", "worker", "evaluating"),
}
MATRIX = [
    pytest.param(
        deployment, victim, stage,
        id=f"{deployment}-{victim}-{stage}",
        marks=[] if (deployment, victim, stage) in SHORT else [pytest.mark.verify],
    )
    for deployment in ("embedded", "production")
    for victim in VICTIMS
    for stage in STAGES
]  # fmt: skip


@contextmanager
def slow_registration(lethe: Deployment, which: str = "NEW.job_id IS NOT NULL") -> Iterator[None]:
    """While open, the transaction that publishes a version takes seconds in the database. `which`: versions, in SQL."""
    sqlite = lethe.store.engine.dialect.name == "sqlite"
    count = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 30000000) SELECT max(x) FROM c"
    begin = (
        [f"CREATE TRIGGER slow BEFORE INSERT ON checkpoints WHEN {which} BEGIN SELECT ({count}); END"]
        if sqlite
        else [
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3); RETURN NEW; END $$",
            f"CREATE TRIGGER slow BEFORE INSERT ON checkpoints FOR EACH ROW WHEN ({which}) EXECUTE FUNCTION slow()",
        ]
    )
    end = ["DROP TRIGGER slow"] if sqlite else ["DROP FUNCTION slow() CASCADE"]
    for statements in (begin, end):
        if statements is end:
            yield
        with lethe.store.write() as session:
            for statement in statements:
                session.execute(text(statement))


def stage_of(lethe: Deployment, job_id: str) -> str | None:
    with lethe.store.read() as session:
        return session.get_one(Job, job_id).stage


def kill_in_stage(running: Running, job_id: str, victim: str, stage: str) -> None:
    """Freeze the runner as soon as the stage is seen, make sure it is still the stage, and kill."""
    until(lambda: stage_of(running.lethe, job_id) == stage, f"the job is {stage}", every=0.003)
    runner = running.runner("gpu")
    assert runner is not None
    if stage != "registering":
        os.kill(runner, signal.SIGSTOP)
        assert stage_of(running.lethe, job_id) == stage
    if victim == "runner":
        running.kill_runner("gpu")
    else:
        running.kill("gpu" if victim == "worker" else victim)
    if victim == "server" and stage != "registering":
        os.kill(runner, signal.SIGCONT)


@pytest.mark.parametrize(("deployment", "victim", "stage"), MATRIX)
def test_each_job_ends_once_after_a_kill(
    request: pytest.FixtureRequest, tmp_path: Path, deployment: str, victim: str, stage: str
) -> None:
    running = open_deployment(request, deployment, tmp_path / "lethe")
    try:
        running.start("server", "gpu")
        running.add_classifier(tmp_path, images=150)
        warm_up = running.client.request("digits", {"class_label": "0"}, method="salun", recipe={"epochs": 1})
        assert running.client.wait(warm_up["id"])["status"] == "completed"
        with slow_registration(running.lethe) if stage == "registering" else open_nothing():
            posted = running.client.request(
                "digits", {"class_label": "1"}, method="salun", recipe={"epochs": 20, "batch_size": 16}
            )
            job_id = posted["jobs"][0]["id"]
            kill_in_stage(running, job_id, victim, stage)
        if victim != "runner":
            running.start("gpu" if victim == "worker" else "server")
        done = running.client.wait(posted["id"])
        assert (done["status"], done["checkpoint"]) == ("completed", 3)
        lost = 0 if victim == "server" or stage == "registering" and victim == "runner" else 1
        check_whole(running, job_id, crashes=lost)
        running.client.pull("digits", 3, tmp_path / "pulled")
    finally:
        running.stop()


@contextmanager
def open_nothing() -> Iterator[None]:
    yield


def sweep_at_once(lethe: Deployment) -> None:
    """What the sweeper does with the uploads of killed attempts after a day."""
    eager = deploy(Settings(data=lethe.settings.data, database_url=lethe.settings.database_url, pack_grace_hours=1e-9))
    sweeper.delete_dead_blobs(eager)
    eager.store.close()


def check_whole(running: Running, job_id: str, crashes: int) -> None:
    """One checkpoint for the job, no pack lost or orphaned, and a history that tells every step."""
    lethe = running.lethe
    sweep_at_once(lethe)
    with lethe.store.read() as session:
        job = session.get_one(Job, job_id)
        made = checkpoints.of_request(session, job.request_id)
        packs = {pack for pack in session.scalars(select(checkpoints.Checkpoint.pack)) if pack}
        intents = list(session.scalars(select(Intent.blob)))
        entries = written(session, request_id=job.request_id)
    assert (job.status, job.crashes, [each.job_id for each in made]) == ("succeeded", crashes, [job_id])
    assert set(lethe.blobs.list("packs/")) == packs and intents == []
    actions = [entry.action for entry in entries]
    assert actions[0] == "request.received" and actions.count("request.completed") == 1
    assert actions.count("job.claimed") == job.lease_token == crashes + 1
    assert actions.count("job.lost") == crashes and actions.count("job.succeeded") == 1
    assert actions.count("checkpoint.registered") == 1
    assert not lethe.keyring.exists(job_id) and list(lethe.blobs.list("resume/")) == []


@pytest.mark.verify
def test_two_crashes_end_the_job_as_worker_lost(tmp_path: Path) -> None:
    running = Running(tmp_path / "lethe")
    try:
        running.start("server", "gpu")
        running.add_classifier(tmp_path)
        posted = running.client.request(
            "digits", {"class_label": "1"}, method="salun", recipe={"epochs": 1000, "batch_size": 1}
        )
        job_id = posted["jobs"][0]["id"]
        for _ in range(2):
            until(lambda: stage_of(running.lethe, job_id) == "unlearning", "the job unlearns")
            running.kill_runner("gpu")
            until(lambda: stage_of(running.lethe, job_id) != "unlearning", "the loss is noticed")
        done = running.client.wait(posted["id"])
        assert (done["status"], done["reason"], done["checkpoint"]) == ("failed", "worker_lost", None)
        assert running.client.call("GET", f"/v1/jobs/{job_id}")["crashes"] == 2
    finally:
        running.stop()


def test_cancel_frees_the_runner_and_draining_resumes(tmp_path: Path) -> None:
    running = Running(tmp_path / "lethe")
    try:
        running.start("server", "gpu")
        running.add_classifier(tmp_path)
        slow = {"epochs": 1000, "batch_size": 4}
        forget = running.client.upload_dataset(pictures.imagefolder([1], 2, seed=9), "forget")["id"]
        posted = running.client.request("digits", {"dataset": forget}, method="salun", recipe=slow)
        job_id = posted["jobs"][0]["id"]
        until(lambda: stage_of(running.lethe, job_id) == "unlearning", "the job unlearns")
        until(lambda: running.lethe.blobs.exists(f"resume/{job_id}"), "resume state is saved")
        running.processes["gpu"].send_signal(signal.SIGTERM)
        assert running.processes.pop("gpu").wait(timeout=40) == 0
        job = running.client.call("GET", f"/v1/jobs/{job_id}")
        assert (job["status"], job["crashes"], job["attempts"]) == ("queued", 0, 1)
        running.start("gpu")
        resumed = until(
            lambda: [e for e in running.client.pages(f"/v1/jobs/{job_id}/events") if "resumed_from_step" in e["data"]],
            "the job goes on from its resume state",
        )
        assert resumed[0]["data"]["resumed_from_step"] > 0
        runner = running.runner("gpu")
        running.client.call("POST", f"/v1/requests/{posted['id']}/cancel")
        assert running.client.wait(posted["id"])["status"] == "cancelled"
        until(lambda: running.runner("gpu") not in (None, runner), "a fresh runner")
        until(lambda: not running.lethe.blobs.exists(f"datasets/{forget}/images"), "the forget set is deleted")
        assert not running.lethe.keyring.exists(forget) and not running.lethe.keyring.exists(job_id)
    finally:
        running.stop()


@pytest.mark.verify
def test_a_job_that_ignores_its_cancel_is_killed(tmp_path: Path) -> None:
    """With no grace the runner is struck at once; a frozen one would never have answered."""
    running = Running(tmp_path / "lethe", LETHE_GRACE_SECONDS="0")
    try:
        running.start("server", "gpu")
        running.add_classifier(tmp_path)
        posted = running.client.request(
            "digits", {"class_label": "1"}, method="salun", recipe={"epochs": 1000, "batch_size": 1}
        )
        until(lambda: stage_of(running.lethe, posted["jobs"][0]["id"]) == "unlearning", "the job unlearns")
        runner = running.runner("gpu")
        assert runner is not None
        os.kill(runner, signal.SIGSTOP)
        running.client.call("POST", f"/v1/requests/{posted['id']}/cancel")
        assert running.client.wait(posted["id"])["status"] == "cancelled"
        until(lambda: running.runner("gpu") not in (None, runner), "a fresh runner")
        again = running.client.request("digits", {"class_label": "1"}, method="salun", recipe={"epochs": 1})
        assert running.client.wait(again["id"])["status"] == "completed"
    finally:
        running.stop()
