"""Whom one request forgot, no later one trains on: not from the set it came in, nor when the same bytes come again."""

import io
import signal
import zipfile
from collections.abc import Iterator

import pytest
from PIL import Image

from app.fingerprint_rotation import retire, rotate
from app.key_rotation import rotate_master
from app.privacy.selection import read_index
from app.records import dataset as datasets
from app.records import job as jobs
from tests import pictures
from tests.running import Running
from worker.lease import Lease
from worker.specification import Specification, specify

FORGOTTEN = ["0/0", "1/3", "2/5"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Embedded: the rule reads one table, in the same way on both databases."""
    folder = tmp_path_factory.mktemp("tombstones")
    deployment = Running(folder / "lethe")
    try:
        deployment.start("server", "gpu")
        deployment.add_classifier(folder)
        yield deployment
    finally:
        deployment.stop()


def forget(running: Running, samples: list[str]) -> str:
    return str(running.client.request("digits", {"samples": samples}, method="salun", recipe={"epochs": 1})["id"])


def marks(running: Running, name: str) -> list[str]:
    """The keyed digests of a registered set's samples, in order."""
    with running.lethe.store.read() as session:
        dataset = datasets.find(session, name)
        assert dataset is not None
    index = read_index(dataset, running.lethe.keyring, running.lethe.blobs)
    return [sample["fingerprint"] for sample in index["samples"]]


def specified(running: Running, request_id: str) -> Specification:
    """What a worker is told of a queued request. The job goes back to the queue."""
    lethe, settings = running.lethe, running.settings
    with lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.request_id == request_id
    lease = Lease(lethe.store, job.id, request_id, job.model_id, job.lease_token, "worker:test", 60.0)
    try:
        return specify(lethe.store, lease, lethe.keyring, lethe.blobs, settings, settings.data / "unused")
    finally:
        with lethe.store.write() as session:
            jobs.release(session, job.id, job.lease_token, "worker:test", "drained")


def again(seed: int) -> bytes:
    """The training set's bytes once more, in other files of other folders' order, and with one image that is new."""
    made, fresh = io.BytesIO(), io.BytesIO(pictures.imagefolder(each=6, seed=seed))
    with zipfile.ZipFile(fresh) as source, zipfile.ZipFile(made, "w") as archive:
        for number, name in enumerate(reversed(source.namelist())):
            archive.writestr(f"{name.split('/')[0]}/renamed-{number}.png", source.read(name))
        archive.writestr("3/new.png", pictures.png(987654))
    return made.getvalue()


def test_a_second_request_leaves_out_what_the_first_forgot(running: Running) -> None:
    client = running.client
    ids = [sample["id"] for sample in client.pages("/v1/datasets/digits-train/samples")]
    known = marks(running, "digits-train")
    gone = {known[ids.index(sample)] for sample in FORGOTTEN}
    first = client.wait(forget(running, FORGOTTEN))
    assert first["status"] == "completed" and client.report("digits", first["checkpoint"])["left_out"] == 0
    client.upload_dataset(again(seed=1), "retain", "digits-again")
    client.call("PATCH", "/v1/models/digits", json={"retain": "digits-again"}, headers={"If-Match": "*"})
    assert gone <= set(marks(running, "digits-again"))  # the same pixels are there, under other names

    worker = running.processes.pop("gpu")
    worker.send_signal(signal.SIGTERM)
    worker.wait(timeout=60)
    second = forget(running, ["3/1"])
    told = specified(running, second)
    renamed = marks(running, "digits-again")
    kept = {renamed[at] for at in told.message["sets"]["retain"]["positions"]}
    assert kept == set(renamed) - gone - {known[ids.index("3/1")]} and told.left_out == len(gone)

    running.start("gpu")
    done = client.wait(second)
    report = client.report("digits", done["checkpoint"])
    assert (done["status"], report["left_out"]) == ("completed", 3)
    assert report["base"] == client.call("GET", f"/v1/models/digits/checkpoints/{first['checkpoint']}")["digest"]


def test_a_rolled_back_request_stays_out_of_later_retain_sets(running: Running) -> None:
    """Un-forgotten in what serves, and still in no training: the head, from which versions are made, never went back."""
    client = running.client
    client.set_alias("digits", "production", client.call("GET", "/v1/models/digits")["head"], "release")
    client.roll_back("digits", "production", "wrong answers", to_version=1)
    assert len(list(client.pages("/v1/requests", status="reopened"))) == 2
    done = client.wait(forget(running, ["2/2"]))
    report = client.report("digits", done["checkpoint"])
    assert (done["status"], report["left_out"]) == ("completed", 4)
    client.set_alias("digits", "production", done["checkpoint"], "the way forward")
    assert list(client.pages("/v1/requests", status="reopened")) == []


def test_keys_are_rotated_beside_a_running_service_and_what_was_forgotten_stays_out(running: Running) -> None:
    """The same images come again, encoded anew, when neither the master key nor the fingerprint key is that of before."""
    client, archive = running.client, io.BytesIO()
    assert rotate_master(running.lethe, None).unreadable == 0
    rotated = rotate(running.lethe)
    assert (rotated.name, rotated.translated, rotated.kept) == ("fingerprint-2", 5, 0)
    with zipfile.ZipFile(io.BytesIO(again(seed=1))) as source, zipfile.ZipFile(archive, "w") as made:
        for name in source.namelist():
            file = io.BytesIO()
            Image.open(io.BytesIO(source.read(name))).save(file, "WEBP", lossless=True)
            made.writestr(name.replace(".png", ".webp"), file.getvalue())
    client.upload_dataset(archive.getvalue(), "retain", "digits-webp")
    client.call("PATCH", "/v1/models/digits", json={"retain": "digits-webp"}, headers={"If-Match": "*"})
    assert retire(running.lethe, "fingerprint", "expired", yes=True).dropped == 0
    done = client.wait(forget(running, ["1/1"]))
    assert (done["status"], client.report("digits", done["checkpoint"])["left_out"]) == ("completed", 5)


def test_with_a_retain_set_of_nothing_but_forgotten_images_a_job_fails_and_says_why(running: Running) -> None:
    client, archive = running.client, io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(pictures.imagefolder(each=6, seed=1))) as source,
        zipfile.ZipFile(archive, "w") as made,
    ):
        for name in FORGOTTEN:
            made.writestr(f"{name}.png", source.read(f"{name}.png"))
    client.upload_dataset(archive.getvalue(), "retain", "digits-forgotten")
    client.call("PATCH", "/v1/models/digits", json={"retain": "digits-forgotten"}, headers={"If-Match": "*"})
    posted = client.request("digits", {"samples": ["3/3"]}, method="finetune", recipe={"epochs": 1})
    done = client.wait(posted["id"])
    assert (done["status"], done["reason"]) == ("failed", "nothing_retained")
