"""`method: auto` on real processes: rungs are jobs of their own, from one parent, and end once, whatever is killed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.queue import ring
from app.records import checkpoint as checkpoints
from app.records.intent import Intent
from app.records.job import Job
from app.report import Report
from tests.app.test_report import beyond_the_schema
from tests.history import written
from tests.running import Running, open_deployment
from tests.test_kill import kill_in_stage, slow_registration, sweep_at_once

STILL: dict[str, Any] = {
    "method": "finetune",
    "recipe": {"epochs": 1, "learning_rate": 1e-30},
}  # moves what was 0 alone
MOVING: dict[str, Any] = {"method": "salun", "recipe": {"epochs": 1, "batch_size": 8}}
MOVED = {"class_label": [{"metric": "changed_weights", "rule": "at_least", "value": 20.0}]}


@pytest.fixture(params=["embedded", pytest.param("production", marks=pytest.mark.verify)])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    deployment = open_deployment(request, request.param, tmp_path / "lethe")
    try:
        deployment.start("server", "gpu")
        deployment.add_classifier(tmp_path)
        yield deployment
    finally:
        deployment.stop()


def set_ladder(running: Running, *rungs: dict[str, Any], policy: dict[str, Any] = MOVED) -> None:
    body = {"ladder": list(rungs), "policy": policy}
    running.client.call("PATCH", "/v1/models/digits", json=body, headers={"If-Match": "*"})


def outcome(request: dict[str, Any]) -> list[tuple[str, str, str | None, int | None]]:
    return [(job["method"], job["status"], job["verdict"], job["version"]) for job in request["jobs"]]


def check_each_rung_once(running: Running, request: dict[str, Any]) -> None:
    """One job a rung, at most one version a job, one end of the request, no key and no resume state left."""
    sweep_at_once(running.lethe)
    with running.lethe.store.read() as session:
        tried = list(session.scalars(select(Job).where(Job.request_id == request["id"])))
        made = checkpoints.of_request(session, request["id"])
        entries = written(session, request_id=request["id"])
        assert list(session.scalars(select(Intent.blob))) == []
    actions = [entry.action for entry in entries]
    assert len({(job.retry, job.rung) for job in tried}) == len(tried) == actions.count("job.queued")
    assert len({version.job_id for version in made}) == len(made) == actions.count("checkpoint.registered")
    ended = ("request.completed", "request.evaluation_failed", "request.failed", "request.cancelled")
    assert sum(actions.count(action) for action in ended) == 1
    assert len({version.parent_id for version in made}) == 1
    assert [job.id for job in tried if running.lethe.keyring.exists(job.id)] == []
    assert list(running.lethe.blobs.list("resume/")) == []


def test_the_second_rung_passes_and_both_stay_in_the_record(running: Running) -> None:
    client = running.client
    set_ladder(running, STILL, MOVING, {"method": "retrain", "recipe": {"epochs": 1}})
    posted = client.request("digits", {"class_label": "1"})
    assert (posted["method"], [rung["method"] for rung in posted["ladder"]]) == (
        "auto",
        ["finetune", "salun", "retrain"],
    )
    assert posted["ladder"][0]["recipe"]["learning_rate"] == 1e-30 and "momentum" in posted["ladder"][0]["recipe"]
    stages: list[str] = []
    done = client.wait(posted["id"], lambda event: stages.append(event["data"].get("stage", "")))
    assert [stage for stage in stages if stage] == ["loading", "unlearning", "evaluating", "registering"] * 2
    assert (done["status"], done["reason"], done["checkpoint"]) == ("completed", None, 3)
    assert outcome(done) == [("finetune", "succeeded", "failed", 2), ("salun", "succeeded", "passed", 3)]
    assert all(0 <= job["unlearning_seconds"] <= job["seconds"] for job in done["jobs"])
    versions = list(client.pages("/v1/models/digits/checkpoints"))
    assert [version["status"] for version in versions] == ["superseded", "quarantined", "released"]
    assert [version["parent"] for version in versions] == [None, 1, 1]
    report = client.report("digits", 3)
    assert beyond_the_schema(Report.model_validate(report)) == []
    (earlier,) = report["ladder"]["earlier"]
    assert (report["ladder"]["rung"], report["ladder"]["rungs"], report["ladder"]["method"]) == (1, 3, "salun")
    assert (earlier["method"], earlier["version"], earlier["verdict"], earlier["error"]) == (
        "finetune",
        2,
        "failed",
        None,
    )
    assert earlier["seconds"] == pytest.approx(done["jobs"][0]["seconds"])
    assert client.report("digits", 2)["ladder"]["earlier"] == []
    page = client.report_page("digits", 3).decode()
    assert "Rung 2 of 3: salun." in page and "finetune: version 2 failed" in page
    check_each_rung_once(running, done)


def test_the_first_rung_passes_and_no_other_runs(running: Running) -> None:
    set_ladder(running, MOVING, STILL)
    done = running.client.wait(running.client.request("digits", {"class_label": "1"})["id"])
    assert (done["status"], outcome(done)) == ("completed", [("salun", "succeeded", "passed", 2)])
    check_each_rung_once(running, done)


def test_every_rung_misses_and_every_version_is_kept_then_a_retry_climbs_the_new_ladder(running: Running) -> None:
    client = running.client
    set_ladder(running, STILL, {**STILL, "recipe": {**STILL["recipe"], "epochs": 2}})
    done = client.wait(client.request("digits", {"class_label": "1"})["id"])
    assert (done["status"], done["reason"], done["checkpoint"]) == ("evaluation_failed", "threshold_missed", 3)
    assert outcome(done) == [("finetune", "succeeded", "failed", version) for version in (2, 3)]
    assert client.call("GET", "/v1/models/digits")["head"] == 1
    check_each_rung_once(running, done)
    set_ladder(running, STILL, MOVING)
    client.call("POST", f"/v1/requests/{done['id']}/retry")
    again = client.wait(done["id"])
    assert (again["status"], again["checkpoint"]) == ("completed", 5)
    assert [(job["retry"], job["rung"]) for job in again["jobs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    statuses = [version["status"] for version in client.pages("/v1/models/digits/checkpoints")]
    assert statuses == ["superseded", *["quarantined"] * 3, "released"]


@pytest.mark.verify
def test_a_rung_whose_method_fails_keeps_its_error_and_leads_to_the_next(running: Running) -> None:
    client = running.client
    set_ladder(running, {"method": "salun", "recipe": {"relabel_on": "both"}}, MOVING)  # both is for generators
    done = client.wait(client.request("digits", {"class_label": "1"})["id"])
    assert (done["status"], done["checkpoint"]) == ("completed", 2)
    assert outcome(done) == [("salun", "failed", None, None), ("salun", "succeeded", "passed", 2)]
    assert done["jobs"][0]["error"] == "internal_error" and done["jobs"][0]["unlearning_seconds"] is None
    (earlier,) = client.report("digits", 2)["ladder"]["earlier"]
    assert (earlier["version"], earlier["error"]) == (None, "internal_error") and earlier["seconds"] > 0
    check_each_rung_once(running, done)


@pytest.mark.verify
@pytest.mark.parametrize("victim", ["worker", "runner", "server"])
def test_a_kill_as_a_missed_rung_is_registered_makes_each_rung_once(running: Running, victim: str) -> None:
    """Bells ring twenty times over meanwhile."""
    set_ladder(running, STILL, MOVING)
    with slow_registration(running.lethe, "NEW.status = 'quarantined'"):
        posted = running.client.request("digits", {"class_label": "1"})
        kill_in_stage(running, posted["jobs"][0]["id"], victim, "registering")
    for _ in range(20):
        assert ring(running.lethe.celery)
    if victim != "runner":
        running.start("gpu" if victim == "worker" else "server")
    done = running.client.wait(posted["id"])
    assert (done["status"], [job["verdict"] for job in done["jobs"]]) == ("completed", ["failed", "passed"])
    assert [version for *_, version in outcome(done)] == [2, 3]
    lost = running.client.call("GET", f"/v1/jobs/{posted['jobs'][0]['id']}")["crashes"]
    assert lost == (1 if victim == "worker" else 0)
    check_each_rung_once(running, done)
