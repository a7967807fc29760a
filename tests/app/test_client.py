"""The Python client against a real server: uploads, paging, waiting, and pulls that resume and check."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.client import Damaged, Lethe, Problem
from app.records import job as jobs
from app.records import job_event
from app.records.checkpoint import Status
from tests import pictures
from tests.app.api.deployed import World, add_version, packed
from tests.app.serving import key_of, served
from tests.conftest import key_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def world(server: tuple[World, str]) -> World:
    return server[0]


@pytest.fixture
def lethe(server: tuple[World, str]) -> Iterator[Lethe]:
    with Lethe(server[1], key_of(server[0])) as client:
        yield client


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_an_archive_and_bytes_are_uploaded_alike(lethe: Lethe, tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(pictures.imagefolder([0, 1], each=2, seed=3))
    for label in "01":
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(2):
            (tmp_path / "set" / label / f"{number}.png").write_bytes(pictures.png(number))
    made = [
        lethe.upload_dataset(tmp_path / "set", "train", "from-folder"),
        lethe.upload_dataset(archive, "train", "from-archive"),
        lethe.upload_dataset(archive.read_bytes(), "train", "from-bytes"),
    ]
    assert [(each["labels"], each["count"]) for each in made] == [(["0", "1"], 4)] * 3
    assert lethe.upload_dataset(archive, "forget")["sealed"] is True


def test_a_model_is_registered_from_a_folder_and_from_an_archive(lethe: Lethe, world: World, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(packed(world.directory))
    first = lethe.register_model(world.directory, "client-folder", "image_classifier", retain="train-set", test=None)
    second = lethe.register_model(tmp_path / "model.zip", "client-zip", "image_classifier")
    assert (first["head"], second["head"], first["test"]) == (1, 1, None) and first["retain"] is not None


def test_a_refusal_is_a_problem_with_its_document(lethe: Lethe, server: tuple[World, str]) -> None:
    with pytest.raises(Problem, match="no such model") as caught:
        lethe.request("absent", {"class_label": "1"})
    assert (caught.value.status, caught.value.type) == (404, "urn:lethe:problem:not-found")
    with pytest.raises(Problem, match="salun") as caught:
        lethe.request("digits", {"samples": ["0/0"]}, method="wishing")
    assert caught.value.document["errors"][0]["field"] == "method"
    with Lethe(server[1], "lethe_wrong_key") as stranger, pytest.raises(Problem) as caught:
        stranger.call("GET", "/v1/models")
    assert caught.value.status == 401


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with Lethe("http://127.0.0.1:9", "x") as lethe, pytest.raises(httpx.ConnectError):
        lethe.call("GET", "/healthz")


def test_address_and_key_come_from_the_environment(server: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_URL", server[1])
    monkeypatch.setenv("LETHE_KEY", key_of(server[0]))
    with Lethe() as lethe:
        assert "digits" in [model["name"] for model in lethe.pages("/v1/models")]


def test_pages_are_walked_to_their_end(lethe: Lethe) -> None:
    made = [lethe.request("digits", {"samples": ["0/0"]}, external_id="walk")["id"] for _ in range(5)]
    assert [each["id"] for each in lethe.pages("/v1/requests", limit=2, external_id="walk", status=None)] == made[::-1]


def test_waiting_hands_over_each_event_once_and_ends_with_the_request(lethe: Lethe, world: World) -> None:
    made = lethe.request("digits", {"samples": ["0/1"]}, method="salun")
    job_id = made["jobs"][0]["id"]
    with world.lethe.store.write() as session:
        for other in jobs.of_request(session, made["id"]):
            other.deadline = -1.0
    events: list[int] = []
    done: list[dict[str, object]] = []
    waiter = threading.Thread(
        target=lambda: done.append(lethe.wait(made["id"], lambda event: events.append(event["seq"]), poll=0.02))
    )
    waiter.start()
    with world.lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.id == job_id
        token = job.lease_token
    for step in range(5):
        with world.lethe.store.write() as session:
            job_event.write(session, job_id, token, "progress", {"step": step, "total": 5, "seconds_left": 1.0})
    with world.lethe.store.write() as session:
        jobs.fail(session, job_id, token, "worker:test", {"code": "out_of_memory", "detail": ""})
    waiter.join(timeout=20)
    assert [each["status"] for each in done] == ["failed"] and events == [1, 2, 3, 4, 5]


def test_a_pull_is_byte_for_byte_what_was_saved(lethe: Lethe, world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    told: list[tuple[int, int]] = []
    assert (
        lethe.pull("digits", number, tmp_path / "pulled", on_bytes=lambda done, total: told.append((done, total)))
        == tmp_path / "pulled"
    )
    assert contents(tmp_path / "pulled") == contents(directory)
    size = sum(len(content) for content in contents(directory).values())
    assert told[-1] == (size, size) and told == sorted(told)
    assert contents(lethe.pull("digits", "head", tmp_path / "head")) == contents(directory)
    assert contents(lethe.pull("digits", 1, tmp_path / "base")) == contents(world.directory)


@pytest.mark.parametrize("have", [1, 1000, "all", "more"])
def test_a_partial_file_is_resumed(lethe: Lethe, world: World, tmp_path: Path, have: int | str) -> None:
    whole = (world.directory / "model.safetensors").read_bytes()
    partial = {"all": whole, "more": whole + b"x"}.get(str(have)) or whole[: int(have)]
    (tmp_path / "model.safetensors.part").write_bytes(partial)
    asked: list[str] = []
    lethe.http.event_hooks["request"].append(
        lambda request: asked.append(f"{request.url.path.rpartition('/')[2]} {request.headers.get('range')}")
    )
    lethe.pull("digits", 1, tmp_path)
    assert contents(tmp_path) == contents(world.directory)
    expected = {1: "bytes=1-", 1000: "bytes=1000-", "more": "None"}.get(have)
    assert [each for each in asked if each.startswith("model.safetensors")] == (
        [f"model.safetensors {expected}"] if expected else []
    )


def test_a_whole_file_is_not_fetched_again_and_an_old_one_is_replaced(
    lethe: Lethe, world: World, tmp_path: Path
) -> None:
    lethe.pull("digits", 1, tmp_path)
    (tmp_path / "config.json").write_bytes(b"old")
    asked: list[str] = []
    lethe.http.event_hooks["request"].append(lambda request: asked.append(request.url.path.rpartition("/")[2]))
    lethe.pull("digits", 1, tmp_path)
    assert asked == ["1", "config.json"] and contents(tmp_path) == contents(world.directory)


def test_a_partial_file_of_other_bytes_is_refused_and_dropped(lethe: Lethe, world: World, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.part").write_bytes(b"not the file's beginning")
    with pytest.raises(Damaged, match="SHA-256"):
        lethe.pull("digits", 1, tmp_path)
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "model.safetensors.part").exists()
    lethe.pull("digits", 1, tmp_path)
    assert contents(tmp_path) == contents(world.directory)


def test_bytes_that_were_damaged_in_the_store_are_refused(lethe: Lethe, world: World, tmp_path: Path) -> None:
    model = lethe.register_model(world.directory, "rotten", "image_classifier")
    pack = world.lethe.blobs.root / f"packs/{model['id']}"
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(bytes(content))
    with pytest.raises(Damaged, match="model.safetensors"):
        lethe.pull("rotten", 1, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "model.safetensors").exists()


def test_a_store_that_breaks_in_the_middle_cuts_the_connection(lethe: Lethe, world: World, tmp_path: Path) -> None:
    model = lethe.register_model(world.directory, "broken", "image_classifier")
    pack = world.lethe.blobs.root / f"packs/{model['id']}"
    pack.write_bytes(pack.read_bytes()[: pack.stat().st_size // 2])
    with pytest.raises(httpx.TransportError):
        lethe.pull("broken", 1, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "model.safetensors").exists()
    with (
        pytest.raises(httpx.TransportError),
        lethe.http.stream("GET", "/v1/models/broken/checkpoints/1/archive") as response,
    ):
        response.read()
    assert lethe.call("GET", "/healthz") == {"status": "ok"}


def test_a_quarantined_version_is_pulled_with_a_reason_only(lethe: Lethe, world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path, Status.QUARANTINED)
    with pytest.raises(Problem, match="quarantined") as caught:
        lethe.pull("digits", number, tmp_path / "pulled")
    assert caught.value.status == 422
    lethe.pull("digits", number, tmp_path / "pulled", reason="to compare")
    assert contents(tmp_path / "pulled") == contents(directory)


def test_two_versions_are_compared_by_who_may_see_whether_they_forgot_the_same(
    lethe: Lethe, server: tuple[World, str], tmp_path: Path
) -> None:
    world, address = server
    first, again, elsewhere = (lethe.request("digits", {"class_label": each}, method="salun")["id"] for each in "112")
    of_first, of_again, of_other = (
        ("digits", add_version(world, tmp_path, request_id=request)[0]) for request in (first, again, elsewhere)
    )
    assert lethe.compare(of_first, of_first)["unlike"] == lethe.compare(of_first, of_again)["unlike"] == []
    assert lethe.compare(of_again, of_first)["unlike"] == []
    assert lethe.compare(of_first, of_other)["unlike"] == ["forgotten"]
    nobodys = ("digits", add_version(world, tmp_path)[0])
    assert lethe.compare(nobodys, nobodys)["unlike"] == ["forgotten"]
    for role in ("requester", "owner"):  # sees nobody else's requests; sees none at all
        with Lethe(address, key_for(world.lethe, role)) as other:
            assert other.compare(of_first, of_again)["unlike"] == ["forgotten"], role
            assert other.compare(of_first, of_first)["unlike"] == []


def test_reports_and_pictures(lethe: Lethe, world: World, tmp_path: Path) -> None:
    number, _ = add_version(world, tmp_path)
    assert lethe.report("digits", number)["verdict"] == "passed"
    assert lethe.report_page("digits", number).startswith(b"<!DOCTYPE html>")
    assert lethe.picture("digits", number, "grid.png").startswith(b"\x89PNG")
    with pytest.raises(Problem):
        lethe.picture("digits", number, "absent.png")
    with pytest.raises(Problem):
        lethe.report_page("digits", 1)
