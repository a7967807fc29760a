"""/v1/datasets: uploads, sealing, ownership, samples and deletion."""

import io
import json
import tarfile
import threading
import zipfile
from typing import Any

import pytest

from app import submission
from app.records import dataset as datasets
from app.records import model as models
from app.records import request as requests
from app.records.base import new_id
from app.registration import keep_sets
from tests import pictures
from tests.app.api.deployed import (
    ZIP,
    World,
    ask,
    asked,
    audited,
    forget_set,
    refused,
    register,
    stored,
    upload_set,
)
from tests.app.api.test_requests import run


def tar_of(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_a_registered_set_answers_with_its_labels_and_is_found_by_id_and_name(world: World) -> None:
    answer = upload_set(world.admin, "retain", "zoo", pictures.imagefolder(["ant", "bee"], each=2))
    made = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == f"/v1/datasets/{made['id']}"
    assert (made["name"], made["role"], made["labels"], made["count"]) == ("zoo", "retain", ["ant", "bee"], 4)
    assert (made["sealed"], made["adopted_by"], made["purged_at"]) == (False, None, None) and made["bytes"] > 0
    for name in ("zoo", made["id"]):
        assert world.requester.get(f"/v1/datasets/{name}").json() == made
    with world.lethe.blobs.open(f"datasets/{made['id']}/images") as file, zipfile.ZipFile(file) as kept:
        assert len(kept.namelist()) == 5


@pytest.mark.parametrize(
    ("mode", "kind"), [("w", "application/x-tar"), ("w:gz", "application/gzip; x=1"), ("w", "Application/Octet-Stream")]
)
def test_tars_with_metadata_are_read_too(world: World, mode: str, kind: str) -> None:
    name = f"tar-{len(mode)}-{len(kind)}"
    rows = "\n".join(json.dumps({"file_name": f"{at}.png", "label": at % 2, "id": f"s{at}"}) for at in range(4))
    files = {f"{at}.png": pictures.png(at) for at in range(4)} | {"metadata.jsonl": rows.encode()}
    answer = upload_set(world.admin, "test", name, tar_of(files, mode), headers={"Content-Type": kind})
    assert answer.status_code == 201 and answer.json()["labels"] == ["0", "1"]
    found = world.admin.get(f"/v1/datasets/{name}/samples").json()["data"]
    assert [(sample["position"], sample["id"], sample["label"]) for sample in found] == [
        (0, "s0", "0"), (1, "s1", "1"), (2, "s2", "0"), (3, "s3", "1")
    ]  # fmt: skip


def test_a_forget_set_is_sealed_nameless_and_its_owners_alone(world: World) -> None:
    set_id = forget_set(world.requester, ("3",))
    shown = world.requester.get(f"/v1/datasets/{set_id}").json()
    assert shown["sealed"] is True and (shown["name"], shown["labels"]) == (None, [])
    with world.lethe.blobs.open(f"datasets/{set_id}/images") as file:
        assert file.read(8) == b"LETHE-S1"
    assert world.lethe.keyring.exists(set_id)
    assert world.admin.get(f"/v1/datasets/{set_id}").status_code == 200
    for path in (f"/v1/datasets/{set_id}", f"/v1/datasets/{set_id}/samples"):
        refused(world.stranger.get(path), 404, "not-found")
    refused(world.requester.get(f"/v1/datasets/{set_id}/samples"), 404, "not-found")
    listed = [[each["id"] for each in client.get("/v1/datasets?role=forget&limit=200").json()["data"]]
              for client in (world.requester, world.stranger, world.admin)]  # fmt: skip
    assert [set_id in ids for ids in listed] == [True, False, True]


def test_names_belong_to_registered_sets_and_are_checked_before_the_body(world: World) -> None:
    theirs = forget_set(world.requester)
    before = stored(world.lethe)
    refused(upload_set(world.admin, "train", body=b"x"), 422, "name-missing", "name")
    refused(upload_set(world.admin, "forget", "anna", body=b"x"), 422, "name-refused", "name")
    refused(upload_set(world.admin, "train", "train-set", body=b"x"), 409, "name-taken")
    refused(upload_set(world.admin, "train", "../up"), 422, "invalid-input")
    for identifier in (theirs, new_id("ds")):  # the same answer, whether it is anybody's set
        refused(upload_set(world.stranger, "train", identifier, body=b"x"), 422, "name-refused", "name")
    refused(upload_set(world.admin, "judge", "x"), 422, "invalid-input")
    assert stored(world.lethe) == before


def test_two_uploads_of_one_name_at_once_give_one_set(world: World) -> None:
    body, answers, barrier = pictures.imagefolder(seed=77), [], threading.Barrier(2)

    def upload() -> None:
        barrier.wait()
        answers.append(upload_set(world.admin, "train", "twin", body))

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [201, 409]
    refused(next(answer for answer in answers if answer.status_code == 409), 409, "name-taken")
    made = next(answer.json()["id"] for answer in answers if answer.status_code == 201)
    rows, files = stored(world.lethe)
    assert rows["intents"] == 0
    kept = {name.split("/")[2] for name in files if name.startswith("blobs/datasets/")}
    with world.lethe.store.read() as session:
        known = {
            each.id
            for each in datasets.page(session, owner=None, role=None, after=None, limit=500)
            if each.purged_at is None
        }
    assert kept == known and made in known


def test_pages_follow_each_other_without_gap_or_repeat(world: World) -> None:
    for number in range(5):
        assert upload_set(world.admin, "retain", f"page-{number}", pictures.imagefolder([0], each=1)).status_code == 201
    seen, after, pages = [], None, 0
    while True:
        answer = world.admin.get(
            "/v1/datasets", params={"role": "retain", "limit": "2"} | ({"after": after} if after else {})
        )
        page = answer.json()
        seen += [each["id"] for each in page["data"]]
        pages += 1
        if not page["has_more"]:
            assert page["next"] is None and "link" not in answer.headers
            break
        after = page["next"]
        assert f"after={after}" in answer.headers["link"] and 'rel="next"' in answer.headers["link"]
    whole = [each["id"] for each in world.admin.get("/v1/datasets?role=retain&limit=200").json()["data"]]
    assert seen == whole == sorted(whole, reverse=True) and pages >= 3


def test_samples_are_paged_by_position(world: World) -> None:
    first = world.requester.get("/v1/datasets/train-set/samples?limit=20").json()
    rest = world.requester.get(f"/v1/datasets/train-set/samples?after={first['next']}").json()
    assert first["has_more"] and not rest["has_more"]
    assert [each["position"] for each in first["data"] + rest["data"]] == list(range(24))
    assert first["data"][7] == {"position": 7, "id": "1/1", "label": "1", "text": None}
    for cursor in ("²", "-1", "x", "9" * 30):
        refused(
            world.requester.get("/v1/datasets/train-set/samples", params={"after": cursor}), 422, "bad-cursor", "after"
        )


def test_deletion_erases_key_and_bytes(world: World) -> None:
    set_id = forget_set(world.requester)
    refused(world.stranger.delete(f"/v1/datasets/{set_id}"), 404)
    assert world.requester.delete(f"/v1/datasets/{set_id}").status_code == 204
    assert not world.lethe.keyring.exists(set_id)
    assert list(world.lethe.blobs.list(f"datasets/{set_id}/")) == []
    shown = world.requester.get(f"/v1/datasets/{set_id}").json()
    assert shown["purged_at"] is not None and shown["adopted_by"] is None
    refused(world.stranger.get(f"/v1/datasets/{set_id}"), 404)
    refused(world.requester.delete(f"/v1/datasets/{set_id}"), 404)
    purged = audited(world, resource=set_id, action="dataset.purged")
    assert len(purged) == 1


def test_sets_in_use_and_sets_of_others_stay(world: World) -> None:
    refused(world.admin.delete("/v1/datasets/train-set"), 409, "dataset-in-use")
    set_id = forget_set(world.requester)
    asked(world.requester, forget={"dataset": set_id})
    refused(world.requester.delete(f"/v1/datasets/{set_id}"), 409, "dataset-in-use")
    assert upload_set(world.admin, "retain", "not-yours", pictures.imagefolder([0], each=1)).status_code == 201
    refused(world.requester.delete("/v1/datasets/not-yours"), 403, "not-owner")
    assert world.admin.delete("/v1/datasets/not-yours").status_code == 204
    again = upload_set(world.admin, "retain", "not-yours", pictures.imagefolder([0], each=1))
    assert again.status_code == 201  # the name is free again


def test_a_registered_set_is_not_erased_under_a_request_that_is_retried(world: World) -> None:
    """The deletion comes while the retry commits."""
    assert upload_set(world.admin, "train", "retried-from").status_code == 201
    made = asked(world.admin, forget={"dataset": "retried-from", "samples": ["0/0"]})
    run(world, made)
    answers: list[Any] = []
    deleting = threading.Thread(target=lambda: answers.append(world.admin.delete("/v1/datasets/retried-from")))
    with world.lethe.store.write() as session:
        requests.hold(session, made["id"])
        requests.move(session, made["id"], requests.Status.QUEUED, "test", "retried")
        deleting.start()
        deleting.join(0.7)
        assert deleting.is_alive()
    deleting.join(30)
    refused(answers[0], 409, "dataset-in-use")
    assert world.admin.get("/v1/datasets/retried-from").status_code == 200


def test_a_registered_set_that_is_being_erased_takes_no_request_and_no_retry(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner's deletion was cut off before the bytes went, or comes while a request for it is checked."""
    for name in ("cut-off", "going"):
        assert upload_set(world.admin, "train", name).status_code == 201
    body = {"forget": {"dataset": "cut-off", "samples": ["0/0"]}}
    made = asked(world.admin, **body)
    run(world, made)
    with world.lethe.store.write() as session:
        found = datasets.find(session, "cut-off")
        assert found is not None and datasets.withdraw(session, found.id)
    refused(world.admin.post(f"/v1/requests/{made['id']}/retry"), 409, "forget-set-purged")
    refused(ask(world.admin, **body), 404, "not-found")
    checked = submission.check

    def check(*told: Any) -> submission.Checked:
        found = checked(*told)
        assert world.admin.delete("/v1/datasets/going").status_code == 204
        return found

    monkeypatch.setattr(submission, "check", check)
    refused(ask(world.admin, forget={"dataset": "going", "samples": ["0/0"]}), 404, "not-found")


def test_a_set_that_a_change_of_a_model_names_meanwhile_is_not_erased(world: World) -> None:
    """The deletion comes while the change commits."""
    dataset_id = upload_set(world.admin, "train", "named-meanwhile").json()["id"]
    assert register(world, "naming", world.directory).status_code == 201
    answers: list[Any] = []
    deleting = threading.Thread(target=lambda: answers.append(world.admin.delete("/v1/datasets/named-meanwhile")))
    with world.lethe.store.write() as session:
        model = models.lock(session, "naming")
        assert model is not None
        keep_sets(session, {"train_id": dataset_id})
        models.change(session, model, {"train_id": dataset_id}, "test")
        session.flush()
        deleting.start()
        deleting.join(0.7)
        assert deleting.is_alive()
    deleting.join(30)
    refused(answers[0], 409, "dataset-in-use")
    shown = world.admin.get("/v1/datasets/named-meanwhile").json()
    assert shown["purged_at"] is None and world.admin.get("/v1/models/naming").json()["train"] == dataset_id
    assert world.admin.patch("/v1/models/naming", json={"train": None}, headers={"If-Match": "*"}).status_code == 200
    assert world.admin.delete("/v1/datasets/named-meanwhile").status_code == 204  # the refused deletion left it whole


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "image/png", ""])
def test_other_media_types_are_refused_before_the_body_is_read(world: World, kind: str) -> None:
    before = stored(world.lethe)
    headers = {"Content-Type": kind}
    refused(upload_set(world.admin, "train", "other-media", headers=headers), 415, "unsupported-media-type")
    refused(world.admin.post("/v1/uploads", content=b"x", headers=headers), 415, "unsupported-media-type")
    assert stored(world.lethe) == before


def test_an_upload_is_streamed_in_pieces_of_unknown_length(world: World) -> None:
    body = pictures.imagefolder([0, 1], each=2, seed=5)
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    answer = world.admin.post("/v1/datasets?role=train&name=pieces", content=pieces, headers=ZIP)
    assert answer.status_code == 201 and answer.json()["count"] == 4
