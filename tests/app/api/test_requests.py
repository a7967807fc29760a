"""/v1/requests: posting, following, cancelling and retrying, and what nobody else may see."""

import io
import logging
import threading
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy.exc import OperationalError

from app import sweeper
from app.privacy.selection import read_wish
from app.records import intent as intents
from app.records import job as jobs
from app.records import outbox
from app.records.request import Request
from tests import pictures, tiny
from tests.app.api.deployed import World, ask, asked, audited, forget_set, refused, register, stored, upload_set


def job_of(request: dict[str, Any]) -> str:
    return str(request["jobs"][-1]["id"])


def run(world: World, request: dict[str, Any], end: str = "failed") -> None:
    """Take the request's job as a worker does, and end it; `end` running leaves it so."""
    with world.lethe.store.write() as session:
        job = session.get_one(jobs.Job, job_of(request))
        job.deadline = -1.0  # nearest, so that it is the one that is claimed
    with world.lethe.store.write() as session:
        claimed = jobs.claim(session, "worker:test", 60.0)
        assert claimed is not None and claimed.id == job_of(request)
    if end != "running":
        finish(world, request, end)


def finish(world: World, request: dict[str, Any], end: str) -> None:
    with world.lethe.store.write() as session:
        token = session.get_one(jobs.Job, job_of(request)).lease_token
        if end == "failed":
            jobs.fail(session, job_of(request), token, "worker:test", {"code": "out_of_memory", "detail": "x"})
        elif end == "cancelled":
            jobs.cancel(session, job_of(request), token, "worker:test")
        else:
            jobs.succeed(session, job_of(request), token, "worker:test", end == "completed", {})


def read(world: World, request: dict[str, Any]) -> Request:
    with world.lethe.store.read() as session:
        return session.get_one(Request, request["id"])


def test_a_post_is_accepted_durable_and_says_where_to_look(world: World) -> None:
    answer = ask(
        world.requester,
        concept="two pictures",
        seed=7,
        external_id="case/1",
        recipe={"mask_fraction": 0.3, "epochs": 2},
    )
    made = answer.json()
    assert answer.status_code == 202 and answer.headers["location"] == f"/v1/requests/{made['id']}"
    assert answer.headers["retry-after"] == "1"
    assert (made["status"], made["forget_kind"], made["forget_count"], made["seed"]) == ("queued", "samples", 2, 7)
    assert (made["external_id"], made["model"], made["checkpoint"], made["reason"]) == ("case/1", "digits", None, None)
    (rung,) = made["ladder"]
    recipe = rung["recipe"]
    assert (made["method"], rung["method"]) == ("salun", "salun")
    assert (recipe["mask_fraction"], recipe["epochs"], recipe["batch_size"]) == (0.3, 2, 256)
    assert [job["status"] for job in made["jobs"]] == ["queued"]
    follow = world.requester.get(answer.headers["location"])
    assert follow.json() == made and follow.headers["retry-after"] == "1"
    with world.lethe.store.read() as session:
        assert outbox.waiting(session, "ring")
    assert world.lethe.keyring.exists(made["id"])
    actions = [each["action"] for each in audited(world, request=made["id"])]
    assert actions == ["request.received", "job.queued"]


def test_a_class_label_selects_its_samples(world: World) -> None:
    made = asked(world.requester, forget={"class_label": "2"})
    assert (made["forget_kind"], made["forget_count"]) == ("class_label", 6)
    with world.lethe.store.read() as session:
        assert read_wish(session.get_one(Request, made["id"]), world.lethe.keyring)["labels"] == ["2"]


def test_samples_of_another_registered_set(world: World) -> None:
    made = asked(world.requester, forget={"dataset": "test-set", "samples": ["3/0", "3/1", "3/0"]})
    assert (made["forget_kind"], made["forget_count"]) == ("samples", 2)


def test_an_uploaded_set_is_adopted_once(world: World) -> None:
    set_id = forget_set(world.requester)
    made = asked(world.requester, forget={"dataset": set_id})
    assert (made["forget_kind"], made["forget_count"]) == ("dataset", 3)
    assert world.requester.get(f"/v1/datasets/{set_id}").json()["adopted_by"] == made["id"]
    before = stored(world.lethe)
    refused(ask(world.requester, forget={"dataset": set_id}), 409, "dataset-adopted", "forget.dataset")
    assert stored(world.lethe) == before


def test_two_posts_with_one_set_at_once_give_one_request(world: World) -> None:
    set_id, statuses, barrier = forget_set(world.requester), [], threading.Barrier(2)

    def post() -> None:
        barrier.wait()
        statuses.append(ask(world.requester, forget={"dataset": set_id}).status_code)

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202, 409]


def test_the_key_of_a_request_that_was_never_stored_goes_after_a_day(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise OperationalError("COMMIT", None, OSError())

    kept = asked(world.requester)["id"]
    before = set(world.lethe.keyring.files())
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "start", cut_off)
        assert ask(world.requester).status_code == 503
    (orphan,) = set(world.lethe.keyring.files()) - before
    sweeper.delete_dead_blobs(world.lethe)
    assert orphan.exists()
    with world.lethe.store.write() as session:
        session.query(intents.Intent).update({"created_at": 0.0})
    sweeper.delete_dead_blobs(world.lethe)
    assert not orphan.exists() and world.lethe.keyring.exists(kept)


def test_the_forget_set_of_another_key_does_not_exist(world: World) -> None:
    set_id = forget_set(world.requester)
    before = stored(world.lethe)
    refused(ask(world.stranger, forget={"dataset": set_id}), 404, "not-found")
    refused(ask(world.requester, forget={"dataset": "ds_absent"}), 404, "not-found")
    assert stored(world.lethe) == before


def test_the_concept_is_shown_to_its_scope_and_never_in_lists(world: World) -> None:
    made = asked(world.requester, concept="Anna's face")
    assert made["concept"] is None and world.requester.get(f"/v1/requests/{made['id']}").json()["concept"] is None
    assert world.admin.get(f"/v1/requests/{made['id']}").json()["concept"] == "Anna's face"
    for client in (world.admin, world.requester):
        assert {each["concept"] for each in client.get("/v1/requests?limit=200").json()["data"]} == {None}
    world.lethe.keyring.destroy(made["id"])
    assert world.admin.get(f"/v1/requests/{made['id']}").json()["concept"] is None


def test_requests_and_jobs_belong_to_their_key(world: World) -> None:
    made = asked(world.requester)
    path, job = f"/v1/requests/{made['id']}", f"/v1/jobs/{job_of(made)}"
    for url in (path, job, f"{job}/events"):
        refused(world.stranger.get(url), 404, "not-found")
        assert world.admin.get(url).status_code == 200
    for verb in ("cancel", "retry"):
        refused(world.stranger.post(f"{path}/{verb}"), 404, "not-found")
    assert made["id"] not in [each["id"] for each in world.stranger.get("/v1/requests?limit=200").json()["data"]]
    assert made["id"] in [each["id"] for each in world.admin.get("/v1/requests?limit=200").json()["data"]]


def test_cancelling_a_queued_request_purges_its_set(world: World) -> None:
    set_id = forget_set(world.requester)
    made = asked(world.requester, forget={"dataset": set_id})
    answer = world.requester.post(f"/v1/requests/{made['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.json()["forget_set_purged_at"] is not None and answer.json()["finished_at"] is not None
    assert not world.lethe.keyring.exists(set_id) and not world.lethe.keyring.exists(job_of(made))
    assert list(world.lethe.blobs.list(f"datasets/{set_id}/")) == []
    assert "retry-after" not in world.requester.get(f"/v1/requests/{made['id']}").headers
    for verb in ("cancel", "retry"):
        refused(world.requester.post(f"/v1/requests/{made['id']}/{verb}"), 409, "illegal-transition")


def test_a_running_request_is_asked_to_stop_and_who_asked_is_kept(world: World) -> None:
    made = asked(world.requester)
    run(world, made, "running")
    answer = world.requester.post(f"/v1/requests/{made['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert world.requester.get(f"/v1/jobs/{job_of(made)}").json()["cancel_requested"] is True
    (entry,) = audited(world, request=made["id"], action="job.cancel_asked")
    assert entry["actor"] == read(world, made).created_by
    finish(world, made, "cancelled")
    refused(world.requester.post(f"/v1/requests/{made['id']}/cancel"), 409, "illegal-transition")


@pytest.mark.parametrize("end", ["completed", "evaluation_failed", "failed"])
def test_an_ended_request_is_not_cancelled(world: World, end: str) -> None:
    made = asked(world.requester)
    run(world, made, end)
    refused(world.requester.post(f"/v1/requests/{made['id']}/cancel"), 409, "illegal-transition")
    assert world.requester.get(f"/v1/requests/{made['id']}").json()["status"] == end


@pytest.mark.parametrize("end", ["evaluation_failed", "failed"])
def test_a_failed_request_is_retried_with_a_new_job(world: World, end: str) -> None:
    made = asked(world.requester, forget={"dataset": forget_set(world.requester)})
    run(world, made, end)
    answer = world.requester.post(f"/v1/requests/{made['id']}/retry")
    again = answer.json()
    assert (answer.status_code, again["status"], len(again["jobs"])) == (202, "queued", 2)
    assert again["finished_at"] is None and again["jobs"][1]["status"] == "queued"
    assert [(job["retry"], job["rung"]) for job in again["jobs"]] == [(0, 0), (1, 0)]
    run(world, again, "completed")
    refused(world.requester.post(f"/v1/requests/{made['id']}/retry"), 409, "illegal-transition")


@pytest.mark.parametrize("state", ["queued", "running", "completed", "cancelled"])
def test_what_did_not_fail_is_not_retried(world: World, state: str) -> None:
    made = asked(world.requester)
    if state != "queued":
        run(world, made, state)
    before = stored(world.lethe)
    refused(world.requester.post(f"/v1/requests/{made['id']}/retry"), 409, "illegal-transition")
    assert stored(world.lethe) == before
    if state == "running":
        finish(world, made, "failed")


def test_a_retry_needs_the_forget_set(world: World) -> None:
    set_id = forget_set(world.requester)
    made = asked(world.requester, forget={"dataset": set_id})
    run(world, made, "failed")
    assert world.requester.delete(f"/v1/datasets/{set_id}").status_code == 204
    before = stored(world.lethe)
    refused(world.requester.post(f"/v1/requests/{made['id']}/retry"), 409, "forget-set-purged", "request")
    assert stored(world.lethe) == before


def test_requests_are_paged_and_filtered(world: World) -> None:
    client = world.stranger
    assert register(world, "other-model", world.directory, retain="test-set").status_code == 201
    made = [asked(client, external_id=f"page-{at}")["id"] for at in range(5)]
    other = asked(client, model="other-model", external_id="page-0")
    client.post(f"/v1/requests/{made[1]}/cancel")
    seen: list[str] = []
    url: str | None = "/v1/requests?limit=2"
    while url is not None:
        answer = client.get(url)
        seen += [each["id"] for each in answer.json()["data"]]
        assert answer.json()["has_more"] == ("link" in answer.headers)
        url = answer.links["next"]["url"] if answer.links else None
    assert seen == [other["id"], *reversed(made)]

    def found(**filters: str) -> list[str]:
        return [each["id"] for each in client.get("/v1/requests", params=filters).json()["data"]]

    assert found(status="cancelled") == [made[1]]
    assert found(model="other-model") == [other["id"]]
    assert found(external_id="page-0") == [other["id"], made[0]]
    assert found(external_id="page-0", model="digits", status="queued") == [made[0]]
    assert found(external_id="none") == [] and found(after=made[0]) == []
    refused(client.get("/v1/requests?model=absent"), 404, "not-found")
    refused(client.get("/v1/requests?status=lost"), 422, "invalid-input", "query.status")
    for limit in ("0", "201", "x"):
        refused(client.get(f"/v1/requests?limit={limit}"), 422, "invalid-input", "query.limit")


def test_deadlines_default_to_thirty_days_and_order_the_queue(world: World) -> None:
    now = datetime.now(UTC)
    made = asked(world.requester)
    days = datetime.fromisoformat(made["due_at"]) - datetime.fromisoformat(made["requested_at"])
    assert days == timedelta(days=30)
    early = asked(world.requester, requested_at=(now - timedelta(days=20)).isoformat())
    late = asked(
        world.requester, requested_at=(now - timedelta(days=40)).isoformat()
    )  # overdue, and all the more urgent
    named = asked(world.requester, due_at=(now + timedelta(days=2)).isoformat())
    with world.lethe.store.read() as session:
        deadlines = {
            each["id"]: session.get_one(jobs.Job, job_of(each)).deadline for each in (made, early, late, named)
        }
    assert sorted(deadlines, key=lambda each: deadlines[each]) == [late["id"], named["id"], early["id"], made["id"]]
    assert world.requester.get(f"/v1/jobs/{job_of(named)}").json()["deadline"] == named["due_at"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("requested_at", "2199-01-01T00:00:00Z"), ("requested_at", "0001-01-01T00:00:00+14:00"), ("requested_at", "1960-01-01T00:00:00Z"),
        ("due_at", "9999-12-31T23:59:59-12:00"), ("due_at", "2020-01-01T00:00:00Z"),
    ],
)  # fmt: skip
def test_dates_that_cannot_be_meant_are_refused(world: World, field: str, value: str) -> None:
    before = stored(world.lethe)
    refused(ask(world.requester, **{field: value}), 422, "out-of-bounds", field)
    refused(ask(world.requester, **{field: "2026-01-01T00:00:00"}), 422, "invalid-input", f"body.{field}")
    assert stored(world.lethe) == before


def test_a_generator_needs_a_judge_and_forgets_one_label(world: World, tmp_path: Path) -> None:
    judge = tiny.write("vit", tmp_path / "judge", reject_below=0.5)
    assert register(world, "judge", judge).status_code == 201
    unet = tiny.write("unet", tmp_path / "unet")
    assert register(world, "painter", unet, family="class_diffusion", retain="train-set").status_code == 201
    before = stored(world.lethe)
    refused(ask(world.requester, model="painter", forget={"class_label": "3"}), 422, "no-judge", "model")
    assert stored(world.lethe) == before
    assert (
        world.admin.patch("/v1/models/painter", json={"judge": "judge"}, headers={"If-Match": "*"}).status_code == 200
    )
    made = asked(world.requester, model="painter", forget={"class_label": "3"})
    assert made["ladder"][0]["recipe"]["schedule"] == "steps" and made["forget_kind"] == "class_label"
    one, two = forget_set(world.requester, ("1",)), forget_set(world.requester, ("1", "2"))
    before = stored(world.lethe)
    refused(ask(world.requester, model="painter", forget={"dataset": two}), 422, "many-labels", "forget.dataset")
    refused(ask(world.requester, model="painter", forget={"samples": ["0/0"]}), 422, "impossible-combination", "forget")
    assert stored(world.lethe) == before
    made = asked(world.requester, model="painter", forget={"dataset": one})
    assert (made["forget_kind"], made["forget_count"]) == ("dataset", 3)
    with world.lethe.store.read() as session:  # the label itself, so that no other image of it is retained
        assert read_wish(session.get_one(Request, made["id"]), world.lethe.keyring)["labels"] == ["1"]


def test_nothing_that_names_the_person_reaches_disk_or_log(
    world: World, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    markers = [f"{kind}-{time.time_ns()}" for kind in ("concept", "file", "folder", "label", "sample")]
    concept, file, folder, label, sample = markers

    def archive(label: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as opened:
            for number in range(2):
                opened.writestr(f"{folder}/{label}/{file}-{number}.png", pictures.png(1000 + number))
        return buffer.getvalue()

    with structlog.testing.capture_logs() as logs:
        made = asked(
            world.requester, concept=concept, forget={"dataset": forget_set(world.requester, body=archive("3"))}
        )
        wrong = forget_set(world.requester, body=archive(label))
        answers = [
            ask(world.requester, forget={"dataset": wrong}),
            ask(world.requester, forget={"samples": [sample]}),
            ask(world.requester, forget={"class_label": label}),
            ask(world.requester, forget={label: 1}, concept=concept),
            upload_set(world.requester, "forget", body=archive("3")[:-30]),
        ]
        world.requester.post(f"/v1/requests/{made['id']}/cancel")
    assert [answer.status_code for answer in answers] == [422] * 5
    spoken = [answer.text for answer in answers[:3]] + [answers[4].text, str(logs), caplog.text, *capfd.readouterr()]
    for text in spoken:
        assert not [marker for marker in markers if marker in text], text
    assert scan(world, markers) == [] and scan(world, [b"digits"]) != []


def scan(world: World, markers: list[Any]) -> list[str]:
    """Files under the data folder, and rows of the database, that hold a marker in plain."""
    wanted = [marker if isinstance(marker, bytes) else marker.encode() for marker in markers]
    files = [path for path in world.lethe.settings.data.rglob("*") if path.is_file()]
    found = [path.name for path in files if any(marker in path.read_bytes() for marker in wanted)]
    return found + [str(row[0])[:80] for row in rows(world) if any(marker in str(row).encode() for marker in wanted)]


def rows(world: World) -> list[Any]:
    from_all: list[Any] = []
    with world.lethe.store.read() as session:
        for table in Request.metadata.sorted_tables:
            from_all += session.execute(table.select()).all()
    return from_all


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/datasets", "/v1/models", "/v1/audit"])
def test_what_is_no_cursor_is_refused(world: World, path: str) -> None:
    answer = world.admin.get(path, params={"after": "zzz"})
    assert refused(answer, 422, "bad-cursor", "after")["errors"][0]["remedy"].startswith("Pass `next`")
