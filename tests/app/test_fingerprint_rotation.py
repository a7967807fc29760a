"""Fingerprint keys come and go, and whom a request forgot stays out of later retain sets, as long as a key can tell."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from app import keyring_status
from app.deployment import Deployment
from app.errors import Conflict, Refused
from app.fingerprint_keys import KeyLost
from app.fingerprint_rotation import retire, rotate
from app.privacy.fingerprints import marks_of, parted
from app.privacy.selection import read_index
from app.records import checkpoint as checkpoints
from app.records import dataset as datasets
from app.records import held_tombstone as held_tombstones
from app.records import job as jobs
from app.records import named_key as named_keys
from app.records import tombstone as tombstones
from app.records.checkpoint import Status
from app.records.dataset import Dataset
from app.records.request import Request
from tests import pictures
from tests.app.api.deployed import World, asked, audited, build, forget_set, forgotten, upload_set
from worker.lease import Lease
from worker.specification import Specification, specify

FIRST, SECOND = "fingerprint", "fingerprint-2"


@pytest.fixture
def world(lethe: Deployment, tmp_path: Path) -> World:
    return build(lethe, tmp_path)


def reencoded(content: bytes) -> bytes:
    """The same pixels in another file."""
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).save(file, "WEBP", lossless=True, exact=True)
    return file.getvalue()


def told(world: World, request_id: str) -> Specification:
    """What a worker is told of a queued request; its job fails then."""
    lethe, options = world.lethe, world.lethe.settings
    with lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.request_id == request_id
    lease = Lease(lethe.store, job.id, request_id, job.model_id, job.lease_token, "worker:test", 60.0)
    try:
        return specify(lethe.store, lease, lethe.keyring, lethe.blobs, options, options.data / "unused")
    finally:
        with lethe.store.write() as session:
            jobs.fail(session, job.id, job.lease_token, "worker:test", {"code": "test", "detail": ""})


def forget(world: World, **forgotten_: Any) -> str:
    """A request whose tombstones are laid as when it completes."""
    request = asked(world.requester, forget=forgotten_)
    marks = told(world, request["id"]).fingerprints
    with world.lethe.store.write() as session:
        model_id = jobs.of_request(session, request["id"])[0].model_id
        tombstones.lay(session, model_id, request["id"], marks)
    return str(request["id"])


def laid(world: World) -> dict[str, int]:
    with world.lethe.store.read() as session:
        return tombstones.counts(session)


def index_of(world: World, name: str) -> dict[str, Any]:
    with world.lethe.store.read() as session:
        dataset = datasets.find(session, name)
    assert dataset is not None
    return read_index(dataset, world.lethe.keyring, world.lethe.blobs)


def keys_of(world: World, name: str) -> set[tuple[str, ...]]:
    """By which keys the samples of a set are known, the newest first."""
    samples = index_of(world, name)["samples"]
    return {
        tuple(parted(each)[0] for each in (sample["fingerprint"], *sample.get("fingerprints", ())))
        for sample in samples
    }


def left_out(world: World, name: str, again: bytes) -> int:
    """How many samples a request leaves out of a new retain set of fresh images and this one."""
    files = pictures.folder(range(4), each=2, seed=50) | {"2/again.webp": reencoded(again)}
    answer = upload_set(world.admin, "retain", name, pictures.archive(files))
    assert answer.status_code == 201, answer.text
    changed = world.admin.patch("/v1/models/digits", json={"retain": name}, headers={"If-Match": "*"})
    assert changed.status_code == 200, changed.text
    return told(world, asked(world.requester, forget={"samples": ["3/3"]})["id"]).left_out


def image(label: int, number: int, seed: int) -> bytes:
    return pictures.folder([label], number + 1, seed)[f"{label}/{number}.png"]


def test_a_sample_forgotten_under_the_old_key_stays_out_under_the_new_one_and_without_the_old(world: World) -> None:
    assert left_out(world, "before", image(0, 0, seed=1)) == 0
    world.admin.patch("/v1/models/digits", json={"retain": "train-set"}, headers={"If-Match": "*"})
    forget(world, samples=["0/0", "1/1"])
    assert laid(world) == {FIRST: 2}
    done = rotate(world.lethe)
    assert (done.name, done.sets, done.samples, done.translated, done.kept) == (SECOND, 3, 57, 2, 0)
    assert laid(world) == {SECOND: 2} and keys_of(world, "train-set") == {(SECOND, FIRST)}
    assert left_out(world, "rotated", image(0, 0, seed=1)) == 1
    with world.lethe.store.write() as session:  # laid by a job that was told of its samples before the rotation
        (model_id, request_id), old = next((row.model_id, row.request_id) for row in tombstones.under(session, SECOND)), {
            mark for mark in marks_of(index_of(world, "train-set")["samples"][9]) if parted(mark)[0] == FIRST
        }  # fmt: skip
        tombstones.lay(session, model_id, request_id, old)
    assert retire(world.lethe, FIRST, "expired", yes=True).dropped == 0 and laid(world) == {SECOND: 3}
    assert keys_of(world, "train-set") == {(SECOND,)} == keys_of(world, "rotated")
    assert not world.lethe.keyring.has_named(FIRST) and left_out(world, "retired", image(0, 0, seed=1)) == 1
    entries = {each["action"]: each["details"] for each in audited(world, resource="keyring")}
    assert entries["fingerprints.key_made"] == {"name": SECOND} and entries["fingerprints.rotated"]["translated"] == 2
    assert entries["fingerprints.retired"] == {"name": FIRST, "code": "expired", "tombstones": 0, "models": 0}


def test_a_sample_that_no_set_has_stays_out_until_its_key_is_retired(world: World) -> None:
    set_id = forget_set(world.requester, body=pictures.imagefolder((2,), each=1, seed=77))
    forget(world, dataset=set_id)
    done = rotate(world.lethe)
    assert (done.translated, done.kept) == (0, 1) and laid(world) == {FIRST: 1}
    assert left_out(world, "rotated", image(2, 0, seed=77)) == 1 and keys_of(world, "rotated") == {(SECOND, FIRST)}
    world.admin.patch("/v1/models/digits", json={"retain": "train-set"}, headers={"If-Match": "*"})
    assert world.admin.delete("/v1/datasets/rotated", headers={"If-Match": "*"}).status_code == 204
    with pytest.raises(Refused, match="1 forget sets"):  # it may be retried, and would be known by this key only
        retire(world.lethe, FIRST, "expired", yes=True)
    with world.lethe.store.write() as session:
        datasets.purge(session, session.get_one(Dataset, set_id), "test", "the request ended")
    assert retire(world.lethe, FIRST, "expired", yes=False).dropped == 1 and laid(world)[FIRST] == 1
    gone = retire(world.lethe, FIRST, "expired", yes=True)
    assert (gone.dropped, gone.models) == (1, 1) and FIRST not in laid(world)
    assert left_out(world, "retired", image(2, 0, seed=77)) == 0
    assert retire(world.lethe, FIRST, "expired", yes=True).dropped == 0  # again, as after a crash
    assert len(audited(world, resource="keyring", action="fingerprints.retired")) == 1


def test_a_quarantined_version_s_digests_are_translated_or_keep_their_key(world: World) -> None:
    known = [sample["fingerprint"] for sample in index_of(world, "train-set")["samples"]]
    _, request_id = forgotten(world, "digits", Status.QUARANTINED)
    with world.lethe.store.write() as session:
        (version,) = checkpoints.of_request(session, request_id)
        held_tombstones.hold(session, version.id, {known[0], "e" * 64})
    rotate(world.lethe)
    with world.lethe.store.read() as session:
        held = held_tombstones.of_checkpoint(session, version.id)
    assert held == {index_of(world, "train-set")["samples"][0]["fingerprint"], "e" * 64}
    with pytest.raises(Refused, match="1 samples of quarantined versions"):
        retire(world.lethe, FIRST, "expired", yes=True)


def test_a_set_that_a_completed_request_keeps_needs_no_key_and_a_lost_key_waits_for_none(world: World) -> None:
    kept = forget(world, dataset=forget_set(world.requester, body=pictures.imagefolder((2,), each=1, seed=78)))
    rotate(world.lethe)
    with pytest.raises(Refused, match="1 forget sets"):
        retire(world.lethe, FIRST, "expired", yes=True)
    with world.lethe.store.write() as session:
        session.get_one(Request, kept).status = "completed"
    assert retire(world.lethe, FIRST, "expired", yes=False).dropped == 1
    forget_set(world.requester)  # waits for a request, and has a mark under the second key
    rotate(world.lethe)
    with pytest.raises(Refused, match="1 forget sets"):
        retire(world.lethe, SECOND, "lost", yes=True)
    world.lethe.keyring.destroy_named(SECOND)
    assert retire(world.lethe, SECOND, "lost", yes=True).done


def test_an_interrupted_rotation_goes_on_with_the_same_key_and_meanwhile_nothing_is_lost(world: World) -> None:
    lethe = world.lethe
    forget(world, samples=["0/0"])
    with lethe.store.read() as session:
        found = datasets.find(session, "test-set")
    assert found is not None
    with lethe.blobs.open(found.blob) as file:
        kept = file.read()
    lethe.blobs.delete(found.blob)
    with pytest.raises(Refused, match="Restore the blobs"):
        rotate(lethe)
    assert {each["event"] for each in keyring_status.warnings(lethe)} == {"fingerprint_key.joining"}
    assert left_out(world, "meanwhile", image(0, 0, seed=1)) == 1 and laid(world) == {FIRST: 1}
    assert keys_of(world, "meanwhile") == {(SECOND, FIRST)}
    lethe.blobs.put(found.blob, kept)
    assert rotate(lethe).name == SECOND and laid(world) == {SECOND: 1} and keyring_status.warnings(lethe) == []
    assert rotate(lethe).name == "fingerprint-3" and keys_of(world, "train-set") == {("fingerprint-3", SECOND, FIRST)}


def test_a_key_that_was_lost_while_it_joined_is_given_up(world: World) -> None:
    with world.lethe.store.write() as session:
        named_keys.add(session, SECOND, "0" * 32)
    assert upload_set(world.admin, "retain", "refused").status_code == 503
    with pytest.raises(KeyLost):
        rotate(world.lethe)
    assert retire(world.lethe, SECOND, "lost", yes=True).dropped == 0
    assert upload_set(world.admin, "retain", "taken").status_code == 201 and rotate(world.lethe).name == "fingerprint-3"


def test_an_upload_that_began_before_a_key_joined_is_sent_again(world: World) -> None:
    rotate(world.lethe)
    with world.lethe.store.write() as session, pytest.raises(Conflict, match="send it again"):
        named_keys.confirm(session, {FIRST: "0" * 32})


def test_images_that_changed_on_the_disk_are_not_marked_anew(world: World) -> None:
    with world.lethe.store.read() as session:
        one, other = (datasets.find(session, name) for name in ("train-set", "test-set"))
    assert one is not None and other is not None
    with world.lethe.blobs.open(other.blob) as file:
        world.lethe.blobs.put(one.blob, file.read())
    with pytest.raises(Refused, match="not those that it was registered with"):
        rotate(world.lethe)
    assert laid(world) == {} and keys_of(world, "train-set") == {(FIRST,)}
