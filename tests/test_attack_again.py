"""Attacks after the fact, through server and worker: the same figures as when the request ran, on a version that stays as it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from app import cli
from app.client import Problem
from app.records import checkpoint as checkpoints
from app.records.attack_result import AttackResult
from app.records.checkpoint import Checkpoint
from tests import pictures
from tests.conftest import key_for
from tests.running import Running, open_deployment, until

ATTACKS: dict[str, dict[str, Any]] = {"relearning": {"steps": 5, "images": 2}, "quantised_copies": {}}
MOVING = {"method": "salun", "recipe": {"epochs": 1, "batch_size": 8}}


@pytest.fixture(params=["embedded", pytest.param("production", marks=pytest.mark.verify)])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    deployment = open_deployment(request, request.param, tmp_path / "lethe")
    try:
        deployment.start("server", "gpu")
        deployment.add_classifier(tmp_path)
        yield deployment
    finally:
        deployment.stop()


def forget(running: Running, what: dict[str, Any]) -> dict[str, Any]:
    done = running.client.wait(running.client.request("digits", what, **MOVING)["id"])
    assert done["status"] == "completed"
    return done


def attack(running: Running, request: dict[str, Any], attacks: dict[str, Any] = ATTACKS) -> dict[str, Any]:
    """What was found, once the job has ended."""
    job = running.client.attack(request["id"], attacks)
    running.client.wait_for_job(job["id"])
    (found,) = (each for each in running.client.attacks(request["id"]) if each["job"] == job["id"])
    return found


def but_its_purge(request: dict[str, Any]) -> dict[str, Any]:
    """A completed request's forget set goes in its own time."""
    return {**request, "forget_set_purged_at": None}


def retained(found: dict[str, Any]) -> int:
    total: int = found["attacks"][0]["sides"]["base"]["rows"][0]["kept"]["total"]
    return total


def test_a_version_is_attacked_as_when_it_was_made_and_stays_as_it_is(running: Running) -> None:
    client = running.client
    measured = {"evaluation": {"attacks": ATTACKS}}
    client.call("PATCH", "/v1/models/digits", json=measured, headers={"If-Match": "*"})
    done = forget(running, {"class_label": "1"})
    client.call("PATCH", "/v1/models/digits", json={"evaluation": {}}, headers={"If-Match": "*"})
    versions = list(client.pages("/v1/models/digits/checkpoints"))
    report = client.report("digits", done["checkpoint"])
    found = attack(running, done)
    assert (found["status"], found["version"], found["error"]) == ("succeeded", done["checkpoint"], None)
    assert found["attacks"] == report["attacks"] and len(report["attacks"]) == 2  # same images, seed, base, version
    assert found["attacks"][0]["value"] is not None and found["attacks"][0]["settings"]["steps"] == 5
    assert list(client.pages("/v1/models/digits/checkpoints")) == versions
    assert client.report("digits", done["checkpoint"]) == report
    assert but_its_purge(client.call("GET", f"/v1/requests/{done['id']}")) == but_its_purge(done)
    with running.lethe.store.read() as session:
        assert [result.job_id for result in session.scalars(select(AttackResult))] == [found["job"]]
    assert not running.lethe.keyring.exists(found["job"])


@pytest.mark.verify
def test_samples_and_superseded_versions_are_attacked_without_what_was_forgotten_since(running: Running) -> None:
    client = running.client
    first = forget(running, {"class_label": "1"})
    before = attack(running, first)
    second = forget(running, {"samples": ["0/0", "2/1"]})
    late = attack(running, second, {"membership_sweep": {}})
    assert (late["version"], [row["attack"] for row in late["attacks"]]) == (second["checkpoint"], ["membership_sweep"])
    assert late["attacks"][0]["value"] is not None
    assert client.call("GET", f"/v1/models/digits/checkpoints/{first['checkpoint']}")["status"] == "superseded"
    after = attack(running, first)
    assert (after["status"], after["version"]) == ("succeeded", first["checkpoint"])
    assert 0 < retained(after) < retained(before)
    for request in (first, second):
        assert but_its_purge(client.call("GET", f"/v1/requests/{request['id']}")) == but_its_purge(request)


def test_what_cannot_be_attacked_is_refused_or_fails_with_a_code(running: Running) -> None:
    client = running.client
    uploaded = client.upload_dataset(pictures.imagefolder([3], 3, seed=9), "forget")
    purged = forget(running, {"dataset": uploaded["id"]})
    until(lambda: client.call("GET", f"/v1/requests/{purged['id']}")["forget_set_purged_at"], "the set is purged")
    with pytest.raises(Problem) as refusal:
        client.attack(purged["id"], ATTACKS)
    assert (refusal.value.status, refusal.value.type) == (409, "urn:lethe:problem:forget-set-purged")
    done = forget(running, {"class_label": "1"})
    with running.lethe.store.read() as session:
        version = session.scalars(select(Checkpoint).where(Checkpoint.request_id == done["id"])).one()
        assert checkpoints.of_request(session, done["id"]) == [version]
    running.lethe.blobs.delete(version.manifest)
    found = attack(running, done)
    assert (found["status"], found["error"], found["attacks"]) == ("failed", "checkpoint_damaged", [])
    assert client.call("GET", f"/v1/requests/{done['id']}")["status"] == "completed"


@pytest.mark.verify
def test_a_worker_that_dies_while_it_attacks_leaves_one_result(running: Running) -> None:
    client = running.client
    done = forget(running, {"class_label": "1"})
    long = {"relearning": {"steps": 1000, "images": 2}}
    job = client.attack(done["id"], long)["id"]
    until(lambda: client.call("GET", f"/v1/jobs/{job}")["stage"] == "attacking", "it attacks")
    running.kill("gpu")
    running.start("gpu")
    ended = client.wait_for_job(job)
    assert (ended["status"], ended["crashes"], ended["attempts"]) == ("succeeded", 1, 2)
    with running.lethe.store.read() as session:
        assert [result.job_id for result in session.scalars(select(AttackResult))] == [job]
    assert but_its_purge(client.call("GET", f"/v1/requests/{done['id']}")) == but_its_purge(done)


def test_the_command_attacks_and_shows_what_was_found(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    done = forget(running, {"class_label": "1"})
    monkeypatch.setenv("LETHE_URL", f"http://127.0.0.1:{running.port}")
    monkeypatch.setenv("LETHE_KEY", key_for(running.lethe))
    asked = ["attack", done["id"], "--attack", "relearning", "--set", "relearning.steps=5", "--wait"]
    shown = CliRunner().invoke(cli.main, asked)
    assert shown.exit_code == 0, shown.output
    assert "relearning" in shown.stdout and "succeeded" in shown.stdout and "retrained" in shown.stdout
    (listed,) = json.loads(CliRunner().invoke(cli.main, ["attack", done["id"], "--json"]).stdout)
    assert listed["settings"]["relearning"]["steps"] == 5 and listed["attacks"][0]["value"] is not None
    wrong = CliRunner().invoke(cli.main, ["attack", done["id"], "--attack", "relearning", "--set", "steps=5"])
    assert wrong.exit_code == 2 and "--set" in wrong.stderr
