"""POST and GET /v1/requests/{id}/attacks: what is queued, what is refused, and how it is cancelled. What attacks find, through
server and worker: tests/test_attack_again.py.
"""

from typing import Any

import pytest
from sqlalchemy import update

from app.catalog import ATTACKS
from app.privacy import purge
from app.records import attack_result as attack_results
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import held_tombstone as held_tombstones
from app.records import job as jobs
from app.records.dataset import Dataset
from app.records.request import Request
from tests.app.api.deployed import Response, World, asked, attackable, audited, forget_set, refused, stored

RELEARNING = {"attacks": {"relearning": {"steps": 5}}}


def post(world: World, request_id: str, body: Any = RELEARNING, **headers: str) -> Response:
    return world.admin.post(f"/v1/requests/{request_id}/attacks", json=body, headers=headers)


def test_attacks_are_queued_as_a_job_and_the_request_stays_as_it_is(world: World) -> None:
    request_id = attackable(world)
    before = world.admin.get(f"/v1/requests/{request_id}").json()
    answer = post(world, request_id)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["request"], job["status"], job["method"]) == ("attack", request_id, "queued", "")
    defaults = {name: each.default_for("image_classifier") for name, each in ATTACKS["relearning"].parameters.items()}
    assert job["recipe"] == {"relearning": {**defaults, "steps": 5}}
    assert job["deadline"] > before["created_at"]
    assert world.admin.get(f"/v1/requests/{request_id}").json() == before
    listed = world.admin.get(f"/v1/requests/{request_id}/attacks").json()["data"]
    (entry,) = audited(world, resource=job["id"])
    expected = {"job": job["id"], "version": before["checkpoint"], "status": "queued", "error": None, "made_at": None,
                "settings": job["recipe"], "attacks": [], "asked_by": entry["actor"], "asked_at": job["created_at"]}  # fmt: skip
    assert listed == [expected] and entry["details"] == {"attacks": ["relearning"]}


def test_results_are_listed_newest_first_page_by_page(world: World) -> None:
    request_id = attackable(world)
    first, second = (post(world, request_id).json()["id"] for _ in range(2))
    with world.lethe.store.write() as session:
        running = {"status": "running", "lease_token": 1, "lease_expires_at": 9e9}
        session.execute(update(jobs.Job).where(jobs.Job.id == first).values(**running))
        row = {"attack": "relearning", "title": "x", "value": None, "n": 0, "unit": "%", "direction": "lower",
               "threshold": None, "passed": None, "reason": "too few"}  # fmt: skip
        attack_results.record(session, first, 1, "worker:test", [row])
    path = f"/v1/requests/{request_id}/attacks"
    page = world.admin.get(path, params={"limit": 1}).json()
    assert [each["job"] for each in page["data"]] == [second] and page["has_more"]
    rest = world.admin.get(path, params={"limit": 1, "after": page["next"]}).json()
    (done,) = rest["data"]
    assert (done["job"], done["status"], rest["has_more"]) == (first, "succeeded", False) and done["made_at"]
    assert done["attacks"][0]["reason"] == "too few"


@pytest.mark.parametrize(
    ("attacks", "code", "field"),
    [
        ({"no_such": {}}, "unknown-attack", "attacks.no_such"),
        ({"paraphrases": {}}, "unknown-attack", "attacks.paraphrases"),
        ({"relearning": {"no_such": 1}}, "unknown-parameter", "attacks.relearning.no_such"),
        ({"relearning": {"steps": -1}}, "out-of-bounds", "attacks.relearning.steps"),
        ({"relearning": {"steps": "5"}}, "wrong-type", "attacks.relearning.steps"),
        ({"likelihood_ratio": {"shadows": "nobody"}}, "unknown-shadow", "attacks.likelihood_ratio.shadows"),
    ],
)
def test_what_is_no_attack_on_the_family_is_refused_and_nothing_stored(
    world: World, attacks: dict[str, Any], code: str, field: str
) -> None:
    request_id = attackable(world)
    before = stored(world.lethe)
    refused(post(world, request_id, {"attacks": attacks}), 422, code, field)
    assert stored(world.lethe) == before


def test_a_request_without_a_version_is_refused(world: World) -> None:
    request_id = asked(world.admin)["id"]
    before = stored(world.lethe)
    refused(post(world, request_id), 409, "no-version")
    assert stored(world.lethe) == before


def test_a_purged_upload_cannot_be_asked_again(world: World) -> None:
    uploaded = forget_set(world.admin)
    request_id = attackable(world, forget={"dataset": uploaded})
    assert post(world, request_id).status_code == 202  # it is still there
    with world.lethe.store.write() as session:
        named = session.get_one(Request, request_id).forget_dataset_id
        datasets.purge(session, session.get_one(Dataset, named), "system", "the request ended")
    before = stored(world.lethe)
    refused(post(world, request_id), 409, "forget-set-purged", "request")
    assert stored(world.lethe) == before


def test_what_a_failed_request_named_cannot_be_attacked_after_its_purge(world: World) -> None:
    request_id = attackable(world, forget={"class_label": "2"})
    with world.lethe.store.write() as session:
        jobs.ask_newest_to_cancel(session, request_id, "test")
        session.get_one(Request, request_id).status = "evaluation_failed"
    assert post(world, request_id).status_code == 202  # while it may be retried
    lethe = world.lethe
    at_once = lethe.settings.model_copy(update={"failed_retention_days": 0.0})
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, at_once)
    before = stored(world.lethe)
    problem = refused(post(world, request_id), 409, "forget-set-purged", "request")
    assert problem["errors"][0]["rule"].startswith("What it named was erased")
    assert stored(world.lethe) == before


def test_one_key_queues_one_job(world: World) -> None:
    request_id = attackable(world)
    first, again = (post(world, request_id, **{"Idempotency-Key": f"a-{request_id}"}) for _ in range(2))
    assert first.json() == again.json() and again.headers["idempotent-replayed"] == "true"
    assert len(world.admin.get(f"/v1/requests/{request_id}/attacks").json()["data"]) == 1
    other = post(world, request_id, {"attacks": {"quantised_copies": {}}}, **{"Idempotency-Key": f"a-{request_id}"})
    refused(other, 422, "idempotency-key-reused")


def test_a_running_attack_keeps_nobody_from_an_override(world: World) -> None:
    request_id = attackable(world)
    job_id = post(world, request_id).json()["id"]
    running = {"status": "running", "lease_token": 1, "lease_expires_at": 9e9}
    with world.lethe.store.write() as session:
        session.execute(update(jobs.Job).where(jobs.Job.id == job_id).values(**running))
        session.execute(update(Request).where(Request.id == request_id).values(status="evaluation_failed"))
        (version,) = checkpoints.of_request(session, request_id)
        held_tombstones.hold(session, version.id, {"a" * 64})
    number = world.admin.get(f"/v1/requests/{request_id}").json()["checkpoint"]
    path = f"/v1/models/digits/checkpoints/{number}/override"
    answer = world.admin.post(path, json={"code": "other", "reason": "x"}, headers={"If-Match": "*"})
    assert (answer.status_code, answer.json()["status"]) == (200, "released"), answer.text


def test_an_attack_is_cancelled_once_and_a_rung_is_not(world: World) -> None:
    request_id = attackable(world)
    job_id = post(world, request_id).json()["id"]
    cancelled = world.admin.post(f"/v1/jobs/{job_id}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    refused(world.admin.post(f"/v1/jobs/{job_id}/cancel"), 409, "illegal-transition")
    found = world.admin.get(f"/v1/requests/{request_id}").json()
    assert found["status"] == "queued"
    refused(world.admin.post(f"/v1/jobs/{found['jobs'][0]['id']}/cancel"), 409, "illegal-transition")
    assert world.admin.get(f"/v1/requests/{request_id}").json()["status"] == "queued"
