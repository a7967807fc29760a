"""A request says which earlier ones asked the same of the same model: told to who may see them, and nothing else follows."""

import io
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select, update

from app import submission
from app.key_rotation import rotate_duplicates
from app.main import create_app
from app.privacy import purge
from app.privacy.sealing import Keyring
from app.records import named_key as named_keys
from app.records.request import Request
from app.returned_keys import destroy_returned
from tests import pictures, tiny
from tests.app.api.deployed import World, asked, forget_set, refused, register, upload_set
from tests.app.captioned import READER, archive


def label(world: World, name: str, http: TestClient | None = None) -> dict[str, Any]:
    return asked(http or world.requester, forget={"class_label": name})


def again(images: bytes, seed: int = 7) -> bytes:
    """The same pictures as other files: WebP without loss, in another order, under other names and with a time on each."""
    file, taken = io.BytesIO(), Image.Exif()
    taken[0x010E] = "a description"
    with zipfile.ZipFile(io.BytesIO(images)) as old, zipfile.ZipFile(file, "w") as new:
        for number, name in enumerate(reversed(old.namelist())):
            encoded = io.BytesIO()
            Image.open(io.BytesIO(old.read(name))).convert("RGB").save(encoded, "WEBP", lossless=True, exif=taken)
            new.writestr(
                zipfile.ZipInfo(f"{name.split('/')[0]}/new-{number + seed}.webp", (2001, 2, 3, 4, 5, 6)),
                encoded.getvalue(),
            )
    return file.getvalue()


def test_the_same_label_asked_again_names_the_earlier_ones_newest_first(world: World) -> None:
    register(world, "counted", world.directory, train="train-set", retain="train-set")
    made = [asked(world.requester, model="counted", forget={"class_label": "1"})["id"] for _ in range(12)]
    last = world.requester.get(f"/v1/requests/{made[-1]}").json()
    assert last["duplicates"] == made[-2::-1][:10] and last["status"] == "queued" and len(last["jobs"]) == 1
    assert world.requester.get(f"/v1/requests/{made[0]}").json()["duplicates"] == []
    listed = world.requester.get("/v1/requests", params={"duplicate_of": made[3], "limit": 200}).json()["data"]
    assert [each["id"] for each in listed] == [each for each in reversed(made) if each != made[3]]
    assert listed[0]["duplicates"] == last["duplicates"]


def test_other_labels_kinds_and_models_are_no_duplicates(world: World) -> None:
    register(world, "other", world.directory, train="train-set", retain="train-set")
    first = label(world, "2")["id"]
    assert label(world, "3")["duplicates"] == []
    assert asked(world.requester, model="other", forget={"class_label": "2"})["duplicates"] == []
    assert asked(world.requester, forget={"samples": ["2/0"]})["duplicates"] == []
    assert label(world, "2")["duplicates"] == [first]


def test_samples_in_another_order_and_named_twice_are_the_same(world: World) -> None:
    first = asked(world.requester, forget={"samples": ["0/3", "1/3"]})["id"]
    assert asked(world.requester, forget={"samples": ["1/3", "0/3", "1/3"]})["duplicates"] == [first]
    assert asked(world.requester, forget={"samples": ["1/3"]})["duplicates"] == []


def test_the_same_pictures_in_other_files_are_the_same(world: World) -> None:
    images = pictures.imagefolder((3,), each=3, seed=4242)
    uploaded = [forget_set(world.requester, body=body) for body in (images, again(images))]
    first, second = (asked(world.requester, forget={"dataset": each}) for each in uploaded)
    assert first["duplicates"] == [] and second["duplicates"] == [first["id"]]
    fewer = forget_set(world.requester, body=pictures.imagefolder((3,), each=2, seed=4242))
    assert asked(world.requester, forget={"dataset": fewer})["duplicates"] == []


def test_a_concept_is_compared_by_its_words_in_their_order(world: World, tmp_path: Path) -> None:
    samples = [("person", "by van Gogh"), ("person", "by Gogh van"), ("park", "a bench"), ("park", "a tree")]
    assert upload_set(world.admin, "train", "painted", archive(samples, seed=5)).status_code == 201
    answer = register(
        world, "reader", tiny.write("clip", tmp_path / "reader"), family=READER, train="painted", retain="painted"
    )
    assert answer.status_code == 201, answer.text

    def named(concept: str) -> dict[str, Any]:
        body = {"model": "reader", "concept": concept, "method": "salun"}
        made: dict[str, Any] = world.requester.post("/v1/requests", json=body).json()
        return made

    first = named("van Gogh")
    assert named("  VAN_gogh ")["duplicates"] == [first["id"]]
    assert named("Gogh van")["duplicates"] == []


def test_nobody_learns_of_other_people_s_requests(world: World) -> None:
    register(world, "private", world.directory, train="train-set", retain="train-set")
    body = {"model": "private", "forget": {"class_label": "1"}}
    mine = asked(world.requester, **body)
    theirs = asked(world.stranger, **body)
    assert theirs["duplicates"] == []
    assert world.stranger.get("/v1/requests", params={"model": "private"}).json()["data"][0]["duplicates"] == []
    refused(world.stranger.get("/v1/requests", params={"duplicate_of": mine["id"]}), 404, "not-found")
    found = world.requester.get("/v1/requests", params={"duplicate_of": mine["id"]}).json()
    assert found == {"data": [], "has_more": False, "next": None}
    assert world.admin.get(f"/v1/requests/{theirs['id']}").json()["duplicates"] == [mine["id"]]
    seen = world.admin.get("/v1/requests", params={"duplicate_of": mine["id"]}).json()["data"]
    assert [each["id"] for each in seen] == [theirs["id"]]


def test_a_restart_keeps_them_and_without_its_key_new_ones_begin(world: World, tmp_path: Path) -> None:
    register(world, "restarted", world.directory, train="train-set", retain="train-set")
    body = {"model": "restarted", "forget": {"class_label": "2"}}
    first = asked(world.requester, **body)["id"]
    fresh = replace(world.lethe, keyring=Keyring(world.lethe.settings.key_root))
    restarted = TestClient(create_app(fresh), headers=dict(world.requester.headers))
    second = asked(restarted, **body)
    assert second["duplicates"] == [first]
    rotate_duplicates(world.lethe, "lost", yes=True)
    third = asked(restarted, **body)
    assert third["duplicates"] == [] and asked(restarted, **body)["duplicates"] == [third["id"]]
    assert restarted.get(f"/v1/requests/{second['id']}").json()["duplicates"] == []


def test_a_rotation_parts_old_requests_from_new_ones_and_ends_the_old_key(world: World) -> None:
    register(world, "rotated", world.directory, train="train-set", retain="train-set")
    body = {"model": "rotated", "forget": {"class_label": "2"}}
    first = asked(world.requester, **body)["id"]
    lethe = world.lethe
    old = named(world)
    assert not rotate_duplicates(lethe, "expired", yes=False).done and named(world) == old
    assert asked(world.requester, **body)["duplicates"] == [first]
    backup = (lethe.keyring.folder / f"named/{old}.key").read_bytes()
    done = rotate_duplicates(lethe, "expired", yes=True)
    assert done.name == named(world) != old and not lethe.keyring.has_named(old) and done.dropped >= 2
    with lethe.store.read() as session:
        assert session.scalars(select(Request.fingerprint).where(Request.fingerprint.is_not(None))).all() == []
    new = asked(world.requester, **body)
    assert new["duplicates"] == [] and asked(world.requester, **body)["duplicates"] == [new["id"]]
    (lethe.keyring.folder / f"named/{old}.key").write_bytes(backup)  # an older copy, or a rotation that was killed
    (lethe.keyring.folder / f"named/{old}.key").chmod(0o600)
    assert destroy_returned(lethe, "test") == 1 and not lethe.keyring.has_named(old)
    assert lethe.keyring.has_named(done.name)


def test_who_asks_as_the_key_rotates_is_recorded_under_the_new_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(world, "meanwhile", world.directory, train="train-set", retain="train-set")
    body = {"model": "meanwhile", "forget": {"class_label": "2"}}
    seal = submission.seal

    def sealed(*arguments: Any) -> bytes:  # the last thing before the transaction
        rotate_duplicates(world.lethe, "expired", yes=True)
        return seal(*arguments)

    monkeypatch.setattr(submission, "seal", sealed)
    first = asked(world.requester, **body)["id"]
    monkeypatch.undo()
    assert asked(world.requester, **body)["duplicates"] == [first]


def test_a_rotation_waits_for_who_is_being_recorded_and_ends_that_fingerprint_too(world: World) -> None:
    made = label(world, "1")["id"]
    rotation = threading.Thread(target=rotate_duplicates, args=(world.lethe, "expired", True))
    with world.lethe.store.write() as session:
        old = named_keys.of_duplicates(session).name
        rotation.start()
        rotation.join(0.5)
        assert rotation.is_alive() and world.lethe.keyring.has_named(old)
        session.execute(update(Request).where(Request.id == made).values(fingerprint="late"))
    rotation.join(30)
    assert named(world) != old and not world.lethe.keyring.has_named(old)
    with world.lethe.store.read() as session:
        assert session.get_one(Request, made).fingerprint is None


def named(world: World) -> str:
    with world.lethe.store.write() as session:
        return named_keys.of_duplicates(session).name


@pytest.mark.parametrize(("status", "kept"), [("completed", True), ("failed", False), ("cancelled", False)])
def test_it_goes_with_what_a_retry_needs_unless_the_request_completed(world: World, status: str, kept: bool) -> None:
    made = asked(world.requester, forget={"samples": ["0/0", "2/5"]})["id"]
    lethe = world.lethe
    with lethe.store.write() as session:
        session.execute(update(Request).where(Request.id == made).values(status=status))
    at_once = lethe.settings.model_copy(update={"failed_retention_days": 0.0})
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, made, at_once)
    with lethe.store.read() as session:
        assert (session.scalar(select(Request.fingerprint).where(Request.id == made)) is not None) == kept
    listed = world.requester.get("/v1/requests", params={"duplicate_of": made}).json()["data"]
    assert kept or listed == []
    assert (made in asked(world.requester, forget={"samples": ["0/0", "2/5"]})["duplicates"]) == kept
