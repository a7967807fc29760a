"""POST .../override: a quarantined version released with a reason, all that follows from it, and every refusal."""

import pytest

from app.privacy import purge
from app.records import checkpoint as checkpoints
from app.records import held_tombstone as held_tombstones
from app.records import job as jobs
from app.records import request as requests
from app.records import tombstone as tombstones
from app.records.checkpoint import Checkpoint, Status
from tests import reports
from tests.app.api.deployed import Response, World, audited, forgotten, refused, register
from tests.app.api.test_aliases import at_once

BODY = {"code": "too_few_samples", "reason": "2 of 20 images, both [unclear]"}
MARKS = {"a" * 64, "b" * 64}


def quarantined(world: World, model: str) -> tuple[str, str]:
    """A version that missed a threshold, as a worker registers it. Its path, and the request."""
    number, request_id = forgotten(world, model, Status.QUARANTINED)
    with world.lethe.store.write() as session:
        (version,) = checkpoints.of_request(session, request_id)
        version.report = reports.report(verdict="failed", reasons=["threshold_missed"])
        held_tombstones.hold(session, version.id, MARKS)
    return f"/v1/models/{model}/checkpoints/{number}", request_id


def place(world: World, model: str) -> str:
    assert register(world, model, world.directory).status_code == 201
    return model


def overrule(world: World, path: str, **headers: str) -> Response:
    sent = headers or {"If-Match": world.admin.get(path).headers["etag"]}
    return world.admin.post(f"{path}/override", json=BODY, headers=sent)


def status_of(world: World, path: str) -> str:
    return str(world.admin.get(path).json()["status"])


def test_a_version_is_released_against_its_verdict_with_all_that_passing_does(world: World) -> None:
    base = f"/v1/models/{place(world, 'overruled')}/checkpoints"
    earlier, _ = forgotten(world, "overruled")
    path, request_id = quarantined(world, "overruled")
    before = world.admin.get(path)
    answer = overrule(world, path)
    assert answer.status_code == 200 and (answer.json()["status"], answer.json()["overridden"]) == ("released", True)
    assert answer.headers["etag"] != before.headers["etag"] and before.json()["overridden"] is False
    assert world.admin.get("/v1/models/overruled").json()["head"] == answer.json()["number"]
    assert status_of(world, f"{base}/{earlier}") == "superseded"
    with world.lethe.store.read() as session:
        request = session.get_one(requests.Request, request_id)
        (version,) = checkpoints.of_request(session, request_id)
        assert tombstones.of_model(session, request.model_id) == MARKS
        assert held_tombstones.of_checkpoint(session, version.id) == set()
    assert (request.status, request.reason) == ("completed", "overridden") and request.purged_at is not None
    entries = audited(world, request=request_id)
    said = {entry["action"]: entry for entry in entries}
    overridden = said["checkpoint.overridden"]
    assert overridden["actor"].startswith("key:") and overridden["details"] == {
        "number": version.number, "verdict": "failed", "reasons": ["threshold_missed"], **BODY
    }  # fmt: skip
    assert "request.purged" in said and said["request.completed"]["details"]["reason"] == BODY["reason"]


def test_an_override_sent_again_under_its_key_is_done_once(world: World) -> None:
    place(world, "again")
    path, request_id = quarantined(world, "again")
    headers = {"If-Match": world.admin.get(path).headers["etag"], "Idempotency-Key": "override-again"}
    first, second = overrule(world, path, **headers), overrule(world, path, **headers)
    assert (first.status_code, second.status_code) == (200, 200) and first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"
    actions = [entry["action"] for entry in audited(world, request=request_id)]
    assert actions.count("checkpoint.overridden") == 1


def test_the_report_keeps_its_verdict_and_shows_the_override_beside_it(world: World) -> None:
    place(world, "beside")
    path, _ = quarantined(world, "beside")
    before = world.admin.get(f"{path}/report").json()
    overrule(world, path)
    report, seen = (client.get(f"{path}/report").json() for client in (world.admin, world.requester))
    override = report.pop("override")
    assert report == before and report["verdict"] == "failed"
    assert (override["code"], override["reason"]) == (BODY["code"], BODY["reason"]) and override["by"].startswith(
        "key:"
    )
    assert override["at"].endswith("Z") and seen["override"] == {name: override[name] for name in ("at", "code")}
    page, theirs = (client.get(f"{path}/report.html").text for client in (world.admin, world.requester))
    assert "Failed." in page and "Released all the same." in page and "both [unclear]" in page
    assert "Released all the same." in theirs and "unclear" not in theirs


def test_an_overridden_version_serves_and_is_the_parent_of_the_next(world: World) -> None:
    place(world, "parent")
    path, request_id = quarantined(world, "parent")
    overrule(world, path)
    number = int(path.rpartition("/")[2])
    alias = "/v1/models/parent/aliases/production"
    made = world.admin.put(alias, json={"version": number, "reason": "x"}, headers={"If-None-Match": "*"})
    assert made.status_code == 201
    child, _ = forgotten(world, "parent")
    assert world.admin.get(f"/v1/models/parent/checkpoints/{child}").json()["parent"] == number
    back = world.admin.post(f"{alias}/rollback", json={"to_version": 1, "reason": "x"}, headers={"If-Match": "*"})
    assert request_id in back.json()["reopened"]


def test_who_may_and_how_it_is_asked(world: World) -> None:
    place(world, "asked-well")
    path, _ = quarantined(world, "asked-well")
    held = {"If-Match": world.admin.get(path).headers["etag"]}
    refused(world.requester.post(f"{path}/override", json=BODY, headers=held), 403, "missing-scope")
    refused(world.admin.post(f"{path}/override", json=BODY), 428, "precondition-required", "If-Match")
    refused(overrule(world, path, **{"If-Match": '"1-released"'}), 412, "precondition-failed")
    for body in ({"code": "other"}, {**BODY, "reason": "  "}, {**BODY, "reason": "x" * 501}, {**BODY, "code": "whim"}):
        refused(world.admin.post(f"{path}/override", json=body, headers=held), 422)
    missing = "/v1/models/asked-well/checkpoints/999/override"
    refused(world.admin.post(missing, json=BODY, headers=held), 404)
    assert status_of(world, path) == "quarantined"


def test_only_a_quarantined_version_is_overruled_and_only_once(world: World) -> None:
    place(world, "once")
    refused(overrule(world, "/v1/models/once/checkpoints/1"), 409, "version-not-quarantined", "version")
    path, _ = quarantined(world, "once")
    both = at_once(*[lambda: overrule(world, path, **{"If-Match": "*"})] * 2)
    assert both == [200, 409]


@pytest.mark.parametrize("to", ["queued", "completed"])
def test_a_request_that_ended_otherwise_is_not_touched(world: World, to: str) -> None:
    place(world, f"otherwise-{to}")
    path, request_id = quarantined(world, f"otherwise-{to}")
    with world.lethe.store.write() as session:
        requests.move(session, request_id, requests.Status(to), "test")
    refused(overrule(world, path), 409, "request-ended-otherwise", "version")
    assert status_of(world, path) == "quarantined"


def test_a_version_whose_parent_is_no_more_the_head_would_drop_a_later_promise(world: World) -> None:
    place(world, "stale")
    path, request_id = quarantined(world, "stale")
    forgotten(world, "stale")
    refused(overrule(world, path), 409, "head-moved", "version")
    with world.lethe.store.read() as session:
        assert session.get_one(requests.Request, request_id).status == "evaluation_failed"
        assert tombstones.of_model(session, session.get_one(requests.Request, request_id).model_id) == set()


def test_while_a_job_of_the_model_runs_the_head_stays(world: World) -> None:
    place(world, "busy")
    path, _ = quarantined(world, "busy")
    _, request_id = forgotten(world, "busy", Status.QUARANTINED)
    with world.lethe.store.write() as session:
        request = session.get_one(requests.Request, request_id)
        requests.move(session, request_id, requests.Status.QUEUED, "test", "retried")
        request.due_at = -1.0  # the first to be claimed
        jobs.add(session, jobs.of_rung(request, 0, 1))
        claimed = jobs.claim(session, "worker:test", 60.0)
        assert claimed is not None and claimed.model_id == request.model_id
    refused(overrule(world, path), 409, "model-busy", "version")
    with world.lethe.store.write() as session:
        jobs.fail(session, claimed.id, claimed.lease_token, "worker:test", {"code": "x", "detail": ""})
    assert overrule(world, path).status_code == 200


def test_without_what_tombstones_are_made_of_nothing_is_released(world: World) -> None:
    """Purged past its retention; or registered before such digests were held."""
    place(world, "purged")
    path, request_id = quarantined(world, "purged")
    lethe, at_once = world.lethe, world.lethe.settings.model_copy(update={"failed_retention_days": 0.0})
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, at_once)
    refused(overrule(world, path), 409, "forget-set-purged", "version")
    with lethe.store.read() as session:
        (version,) = checkpoints.of_request(session, request_id)
        assert held_tombstones.of_checkpoint(session, version.id) == set()
    path, request_id = quarantined(world, "purged")
    with lethe.store.write() as session:
        request = session.get_one(requests.Request, request_id)
        request.forget_dataset_id = world.admin.get("/v1/datasets/train-set").json()["id"]
        held_tombstones.drop(session, request_id)
    refused(overrule(world, path), 409, "forget-set-purged", "version")
    with lethe.store.read() as session:
        assert session.get_one(Checkpoint, version.id).status == "quarantined"
