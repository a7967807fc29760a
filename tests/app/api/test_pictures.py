"""Pictures of reports: those that show images lie sealed, open over HTTP alone, and go in time; curves stay."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app import returned_keys, sweeper
from app.privacy import purge
from app.records import checkpoint as checkpoints
from app.records import intent as intents
from app.records import request as requests
from app.records.checkpoint import Status
from app.records.request import Request
from app.report import IMAGES
from tests import pictures, reports
from tests.app.api.deployed import World, add_version, audited, drawn_for_a_request, forgotten, refused, version

PATH = "/v1/models/digits/checkpoints"
PNG = b"\x89PNG"
GONE, THERE = (False, False, False), (True, True, True)


def drawn(world: World, folder: Path, status: Status = Status.RELEASED, supersede: bool = True) -> int:
    """A version whose report has a grid, sealed, and a curve, plain."""
    number, _ = add_version(world, folder, status, supersede, reports.report(pictures=["front.png", "grid.png"]))
    world.lethe.blobs.put(f"pictures/{version(world, number).stem}/front.png", pictures.png(number))
    return number


def kept(world: World, number: int) -> tuple[bool, bool, bool]:
    """Whether key, blob and record of its grid are there."""
    found = version(world, number)
    blob = f"{checkpoints.images_folder(found.id)}/grid.png"
    key = world.lethe.keyring.exists(checkpoints.images_key(found.id))
    return key, world.lethe.blobs.exists(blob), found.images is not None


def get(world: World, number: int, path: str = "/pictures/grid.png") -> Any:
    return world.admin.get(f"{PATH}/{number}{path}")


def retire(world: World, number: int) -> dict[str, Any]:
    tag = world.admin.get(f"{PATH}/{number}").headers["etag"]
    answer = world.admin.post(f"{PATH}/{number}/retire", json={"code": "erasure"}, headers={"If-Match": tag})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def test_they_lie_sealed_and_are_opened_for_whoever_may_see_them(world: World, tmp_path: Path) -> None:
    number = drawn(world, tmp_path)
    with world.lethe.blobs.open(f"{version(world, number).images}/grid.png") as file:
        raw = file.read()
    assert raw.startswith(b"LETHE-S1") and PNG not in raw
    answer = get(world, number)
    assert answer.content.startswith(PNG) and answer.headers["content-type"] == "image/png"
    assert base64.b64encode(answer.content).decode() in get(world, number, "/report.html").text


def test_they_go_when_their_version_is_superseded_and_curves_stay(world: World, tmp_path: Path) -> None:
    old = drawn(world, tmp_path)
    report = get(world, old, "/report").json()
    head = drawn(world, tmp_path)
    sweeper.purge_old_data(world.lethe)
    assert (kept(world, old), kept(world, head)) == (GONE, THERE)
    assert "images" in refused(get(world, old), 410, "picture-erased")["detail"]
    assert get(world, old, "/pictures/front.png").content.startswith(PNG) and get(world, head).content.startswith(PNG)
    assert get(world, old, "").json()["pictures"] == ["front.png"]
    assert get(world, old, "/report").json() == report and "grid.png" in report["pictures"]
    pages = [get(world, number, "/report.html").text for number in (old, head)]
    assert [page.count("<img") for page in pages] == [1, 2]
    assert ["Images are not shown any more" in page for page in pages] == [True, False]
    (said,) = audited(world, action="images.erased", resource=version(world, old).id)
    assert said["actor"] == "system"
    sweeper.purge_old_data(world.lethe)
    assert len(audited(world, action="images.erased", resource=version(world, old).id)) == 1


def test_what_a_retired_version_drew_goes_from_the_report_of_its_child(world: World, tmp_path: Path) -> None:
    old = drawn(world, tmp_path)
    head = drawn(world, tmp_path)
    assert version(world, head).parent_id == version(world, old).id
    assert retire(world, old)["retired"]["erased"] is True
    assert (kept(world, old), kept(world, head)) == (GONE, GONE)
    refused(get(world, head), 410, "picture-erased")
    assert get(world, head, "/report.html").status_code == 200


def test_the_quarantined_keep_theirs_while_somebody_may_release_them(world: World, tmp_path: Path) -> None:
    drawn(world, tmp_path)
    missed = drawn(world, tmp_path, Status.QUARANTINED, supersede=False)
    sweeper.purge_old_data(world.lethe)
    assert kept(world, missed) == THERE
    drawn(world, tmp_path)  # their parent is no more the head
    sweeper.purge_old_data(world.lethe)
    assert kept(world, missed) == GONE
    refused(get(world, missed), 410, "picture-erased")


def test_the_purge_of_a_request_erases_those_of_its_quarantined_version_and_proves_it(world: World) -> None:
    number, request_id = drawn_for_a_request(world, Status.QUARANTINED)
    sweeper.purge_old_data(world.lethe)
    assert kept(world, number) == THERE  # for as many days as it can be retried, or overruled
    refused(world.admin.get(f"/v1/requests/{request_id}/purge"), 404)
    with world.lethe.store.write() as session:
        session.execute(update(Request).where(Request.id == request_id).values(finished_at=1.0))
    sweeper.purge_old_data(world.lethe)
    assert kept(world, number) == GONE
    proof = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    key_id = checkpoints.images_key(version(world, number).id)
    assert hashlib.sha256(key_id.encode()).hexdigest() in proof["keys"]
    assert (proof["now"]["keys_present"], proof["now"]["objects_present"]) == (0, 0)
    world.lethe.keyring.new_key(key_id)
    world.lethe.blobs.put(f"{checkpoints.images_folder(version(world, number).id)}/grid.png", b"back")
    again = world.admin.get(f"/v1/requests/{request_id}/purge").json()["now"]
    assert (again["keys_present"], again["objects_present"]) == (1, 1)


@pytest.mark.parametrize("status", [Status.RELEASED, Status.QUARANTINED])
def test_a_hold_on_its_request_keeps_images_and_answers_of_a_version_until_it_is_lifted(
    world: World, tmp_path: Path, status: Status
) -> None:
    number, request_id = drawn_for_a_request(world, status)
    lethe, held, answered = world.lethe, version(world, number).id, status == Status.RELEASED
    blob = checkpoints.answers_blob(held)
    if answered:
        lethe.keyring.new_key(held)
        lethe.blobs.put(blob, b"sealed")
        with lethe.store.write() as session:
            checkpoints.keep_answers(session, [blob])
    path = f"/v1/requests/{request_id}/hold"
    assert world.admin.put(path, json={"code": "legal_claims"}).status_code == 200
    drawn(world, tmp_path)  # supersedes it, or the version that it was made from
    sweeper.purge_old_data(lethe)
    for erase in (purge.erase_images, purge.erase_answers):  # by one who looked before there was a hold
        erase(lethe.store, lethe.keyring, lethe.blobs, held)
    assert kept(world, number) == THERE and get(world, number).content.startswith(PNG)
    assert lethe.keyring.exists(held) is lethe.blobs.exists(blob) is answered
    assert world.admin.delete(path).status_code == 204
    sweeper.purge_old_data(lethe)
    assert kept(world, number) == GONE and not lethe.keyring.exists(held) and not lethe.blobs.exists(blob)


def test_the_grid_of_the_version_that_serves_outlives_the_purge_of_its_request(world: World) -> None:
    """It shows what networks drew, not the set; and it goes with the next completed request."""
    number, request_id = drawn_for_a_request(world, Status.RELEASED)
    sweeper.purge_old_data(world.lethe)
    with world.lethe.store.read() as session:
        assert session.get_one(requests.Request, request_id).purged_at is not None
    assert kept(world, number) == THERE
    forgotten(world, "digits")
    sweeper.purge_old_data(world.lethe)
    assert kept(world, number) == GONE


class Killed(BaseException):
    """As if the process had died."""


@pytest.mark.parametrize(("step", "left"), [("key", (False, True, True)), ("blobs", (False, False, True))])
def test_a_crash_between_the_steps_leaves_what_nobody_can_read_and_the_sweeper_finishes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, left: tuple[bool, bool, bool]
) -> None:
    old = drawn(world, tmp_path)
    sweeper.purge_old_data(world.lethe)  # of the version before
    drawn(world, tmp_path)
    done: list[str] = []

    def dies(name: str) -> None:
        if step == "key":
            raise Killed
        delete(name)
        done.append(name)
        if len(done) == len(IMAGES):
            raise Killed

    delete = world.lethe.blobs.delete
    monkeypatch.setattr(world.lethe.blobs, "delete", dies)
    with pytest.raises(Killed):
        sweeper.purge_old_data(world.lethe)
    monkeypatch.undo()
    assert kept(world, old) == left
    refused(get(world, old), 410, "picture-erased")
    sweeper.purge_old_data(world.lethe)
    assert kept(world, old) == GONE


def test_one_that_cannot_be_erased_keeps_no_other_from_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = (drawn(world, tmp_path) for _ in range(2))
    drawn(world, tmp_path)
    delete, stuck = world.lethe.blobs.delete, version(world, bad).id

    def failing(name: str) -> None:
        if stuck in name:
            raise OSError(5, "Input/output error")
        delete(name)

    monkeypatch.setattr(world.lethe.blobs, "delete", failing)
    sweeper.purge_old_data(world.lethe)
    assert (kept(world, bad), kept(world, good)) == ((False, True, True), GONE)
    monkeypatch.undo()
    sweeper.purge_old_data(world.lethe)
    assert kept(world, bad) == GONE


def test_keys_that_a_restored_backup_brings_back_are_destroyed_again(world: World, tmp_path: Path) -> None:
    old = drawn(world, tmp_path)
    head = drawn(world, tmp_path)
    sweeper.purge_old_data(world.lethe)
    world.lethe.keyring.new_key(checkpoints.images_key(version(world, old).id))
    assert returned_keys.destroy_returned(world.lethe, "sweeper:test") >= 1
    assert (kept(world, old), kept(world, head)) == (GONE, THERE)


def test_what_was_stored_for_a_version_that_never_came_goes_with_its_key(world: World) -> None:
    lethe, blob, key_id = world.lethe, "images/ckpt_never/grid.png", checkpoints.images_key("ckpt_never")
    with lethe.store.write() as session:
        intents.declare(session, [blob], "job_gone", 1)
        session.get_one(intents.Intent, blob).created_at -= 2 * 86400
    lethe.keyring.new_key(key_id)
    lethe.blobs.put(blob, b"sealed")
    sweeper.delete_dead_blobs(lethe)
    assert not lethe.blobs.exists(blob) and not lethe.keyring.exists(key_id)
