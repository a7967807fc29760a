"""Labels and captions from sets, a concept that alone selects, what is generated instead, and the preview of it all."""

import io
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from PIL import Image

from app.privacy.selection import read_wish
from app.records import job as jobs
from app.records.request import Request
from tests import tiny
from tests.app.api.deployed import World, ask, asked, forget_set, refused, register, stored, upload_set
from tests.app.api.test_requests import run, scan
from tests.app.captioned import PAINTER, READER, archive, unjudged

TRAIN = [("person", "Anna on a bench"), ("person", "Bea"), ("anna", None), ("park", "Annabel's bench"), ("park", None)]


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    unjudged(monkeypatch)


def sets(world: World, name: str, **samples: list[tuple[str, str | None]]) -> dict[str, str]:
    """Upload captioned sets, by role; role -> name."""
    for number, (role, each) in enumerate(samples.items()):
        answer = upload_set(world.admin, role, f"{name}-{role}", archive(each, seed=sum(name.encode()) + number))
        assert answer.status_code == 201, answer.text
    return {role: f"{name}-{role}" for role in samples}


def reader(world: World, name: str, folder: Path, **samples: list[tuple[str, str | None]]) -> dict[str, Any]:
    answer = register(world, name, tiny.write("clip", folder / name), family=READER, **sets(world, name, **samples))
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def painter(world: World, name: str, folder: Path, **samples: list[tuple[str, str | None]]) -> dict[str, Any]:
    directory = tiny.write("sd", folder / name)
    answer = register(world, name, directory, family=PAINTER, **sets(world, name, **samples))
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def wish(world: World, request: dict[str, Any]) -> dict[str, Any]:
    with world.lethe.store.read() as session:
        return read_wish(session.get_one(Request, request["id"]), world.lethe.keyring)


def test_labels_are_those_of_the_sets_and_keep_their_numbers(world: World, tmp_path: Path) -> None:
    made = reader(world, "numbered", tmp_path, train=[("b", None), ("c", None)], retain=[("c", None), ("a", None)])
    assert made["labels"] == ["b", "c", "a"]
    assert upload_set(world.admin, "test", "numbered-new", archive([("0", None), ("c", None)])).status_code == 201
    path, headers = "/v1/models/numbered", {"If-Match": "*"}
    changed = world.admin.patch(path, json={"retain": "numbered-new", "train": None}, headers=headers)
    assert changed.status_code == 200 and changed.json()["labels"] == ["b", "c", "a", "0"]
    again = world.admin.patch(path, json={"retain": "numbered-retain"}, headers=headers)
    assert again.json()["labels"] == ["b", "c", "a", "0"]


def test_labels_of_weights_stay_what_the_weights_know(world: World) -> None:
    answer = register(world, "strict", world.directory, train="train-set")
    assert answer.json()["labels"] == ["0", "1", "2", "3"]
    assert upload_set(world.admin, "retain", "strangers", archive([("zebra", None)])).status_code == 201
    refused(register(world, "strict-2", world.directory, retain="strangers"), 422, "unknown-label", "retain")


def test_captions_stand_beside_their_samples(world: World) -> None:
    sets(world, "listed", train=TRAIN)
    found = world.requester.get("/v1/datasets/listed-train/samples").json()["data"]
    assert [(each["label"], each["text"]) for each in found] == TRAIN


def test_a_concept_alone_selects_by_label_and_caption(world: World, tmp_path: Path) -> None:
    reader(world, "album", tmp_path, train=TRAIN, retain=[("park", None), ("park", "Anna again"), ("person", "Bea")])
    made = asked(world.requester, model="album", forget=None, concept="ANNA")
    assert (made["forget_kind"], made["forget_count"], made["forget_source"]) == ("concept", 2, "registered")
    assert made["concept"] is None and wish(world, made)["named"] == "ANNA"
    by_label = asked(world.requester, model="album", forget={"class_label": "park"})
    assert (by_label["forget_kind"], by_label["forget_source"]) == ("class_label", "registered")


def test_a_concept_that_only_the_retain_set_has_is_found_there(world: World, tmp_path: Path) -> None:
    reader(world, "elsewhere", tmp_path, train=[("park", None)], retain=[("park", "Zoe"), ("park", "a swing")])
    made = asked(world.admin, model="elsewhere", forget=None, concept="zoe")
    assert made["forget_count"] == 1
    assert pixels(world.admin.get(f"/v1/requests/{made['id']}/preview.png")).size == (104, 104)


@pytest.mark.parametrize(
    ("concept", "code", "field"),
    [
        ("Ann", "concept-not-found", "concept"),
        ("?!", "empty-concept", "concept"),
        ("park", "nothing-retained", "forget"),
    ],
)
def test_a_concept_that_selects_nothing_or_all_is_refused(
    world: World, concept: str, code: str, field: str, tmp_path: Path
) -> None:
    name = f"refusing-{code}"
    reader(world, name, tmp_path, train=TRAIN, retain=[("park", None), ("house", "by the park")])
    before = stored(world.lethe)
    refused(ask(world.requester, model=name, forget=None, concept=concept), 422, code, field)
    assert stored(world.lethe) == before


def test_a_concept_alone_needs_a_family_of_words(world: World) -> None:
    before = stored(world.lethe)
    refused(ask(world.requester, forget=None, concept="three"), 422, "impossible-combination", "forget")
    refused(ask(world.requester, forget=None), 422, "invalid-input")
    refused(ask(world.requester, forget=None, concept="x", generate={"forget": 0}), 422, "invalid-input")
    assert stored(world.lethe) == before


def test_a_generator_shows_by_itself_what_no_set_has(world: World, tmp_path: Path) -> None:
    painter(world, "easel", tmp_path)
    made = asked(world.admin, model="easel", forget=None, concept="Anna", generate={"forget": 7})
    assert (made["forget_kind"], made["forget_count"], made["forget_source"]) == ("concept", 7, "generated")
    assert wish(world, made)["generate"] == {"forget": 7, "retain": 200}
    refused(world.admin.get(f"/v1/requests/{made['id']}/preview.png"), 404, "not-found")
    listed = {each["id"]: each for each in world.admin.get("/v1/requests?limit=200").json()["data"]}
    assert listed[made["id"]]["forget_source"] == "generated"
    run(world, made)
    assert world.admin.post(f"/v1/requests/{made['id']}/retry").status_code == 202


def test_a_generator_prefers_what_is_registered(world: World, tmp_path: Path) -> None:
    painter(world, "studio", tmp_path, train=TRAIN)
    made = asked(world.admin, model="studio", forget=None, concept="anna")
    assert (made["forget_count"], made["forget_source"]) == (2, "registered")


def test_only_a_generator_may_lack_a_retain_set(world: World, tmp_path: Path) -> None:
    reader(world, "unkept", tmp_path, train=TRAIN)
    refused(ask(world.admin, model="unkept", forget=None, concept="anna"), 422, "no-retain-set", "model")
    directory = tiny.write("unet", tmp_path / "unet")
    judge = tiny.write("vit", tmp_path / "judge", reject_below=0.2)
    assert register(world, "keeper-judge", judge).status_code == 201
    made = register(world, "keeper", directory, family="class_diffusion", train="train-set", judge="keeper-judge")
    assert made.status_code == 201, made.text
    assert asked(world.admin, model="keeper", forget={"class_label": "2"})["forget_count"] == 6


def test_a_judge_must_know_what_is_to_be_forgotten(world: World, tmp_path: Path) -> None:
    judge = tiny.write("vit", tmp_path / "judge", reject_below=0.2)
    config = json.loads((judge / "config.json").read_text())
    config["id2label"] = {"0": "park", "1": "ANNA_B", "2": "house", "3": "none"}
    config["label2id"] = {label: int(number) for number, label in config["id2label"].items()}
    (judge / "config.json").write_text(json.dumps(config))
    assert register(world, "critic", judge).status_code == 201
    folder = tiny.write("sd", tmp_path / "judged")
    samples = sets(world, "judged", test=[("park", None)])
    made = register(world, "judged", folder, family=PAINTER, judge="critic", **samples)
    assert made.status_code == 201 and made.json()["labels"] == ["park"]
    before = stored(world.lethe)
    refused(ask(world.admin, model="judged", forget=None, concept="Zoe"), 422, "judge-mismatch", "concept")
    unknown = forget_set(world.admin, body=archive([("zoe", None)]))
    refused(ask(world.admin, model="judged", forget={"dataset": unknown}), 422, "judge-mismatch", "forget")
    assert world.admin.delete(f"/v1/datasets/{unknown}").status_code == 204
    assert stored(world.lethe)[1] == before[1]
    found = wish(world, asked(world.admin, model="judged", forget=None, concept="anna b"))
    assert found["called"] == "ANNA_B" and found["keep"] == ["park", "house"]
    assert upload_set(world.admin, "retain", "judged-more", archive([("zoe", None)])).status_code == 201
    patch = world.admin.patch("/v1/models/judged", json={"retain": "judged-more"}, headers={"If-Match": "*"})
    refused(patch, 422, "judge-mismatch", "judge")


def test_a_judge_that_lends_its_features_only_need_not_know_the_labels(world: World, tmp_path: Path) -> None:
    samples = sets(world, "restored", retain=[("park", None)])
    directory = tiny.write("mae", tmp_path / "mae")
    made = register(world, "restorer", directory, family="masked_autoencoder", judge="digits", **samples)
    assert made.status_code == 201 and made.json()["labels"] == ["park"], made.text
    made = register(
        world, "unjudgeable", tiny.write("unet", tmp_path / "unet"), family="class_diffusion", judge="digits"
    )
    refused(made, 422, "judge-never-rejects", "judge")


def test_the_preview_shows_a_few_samples_to_those_who_may_see_the_concept(world: World, tmp_path: Path) -> None:
    reader(world, "shown", tmp_path, train=TRAIN, retain=[("park", None)])
    made = asked(world.requester, model="shown", forget=None, concept="anna")
    path = f"/v1/requests/{made['id']}/preview.png"
    refused(world.requester.get(path), 403, "missing-scope")
    refused(world.admin.get("/v1/requests/req_absent/preview.png"), 404)
    answer = world.admin.get(path)
    assert answer.headers["cache-control"] == "no-store"
    assert pixels(answer).size == (2 * 100 + 4, 104)
    many = asked(world.requester, model="digits", forget={"samples": [f"{at % 4}/{at // 4}" for at in range(23)]})
    assert pixels(world.admin.get(f"/v1/requests/{many['id']}/preview.png")).size == (6 * 100 + 4, 4 * 100 + 4)


def test_an_uploaded_set_is_previewed_from_memory_until_it_is_gone(world: World) -> None:
    made = asked(world.requester, forget={"dataset": forget_set(world.requester)})
    assert made["forget_source"] == "uploaded"
    before, path = stored(world.lethe), f"/v1/requests/{made['id']}/preview.png"
    assert pixels(world.admin.get(path)).size == (304, 104)
    assert stored(world.lethe) == before
    world.requester.post(f"/v1/requests/{made['id']}/cancel")
    refused(world.admin.get(path), 404, "not-found")


def test_concept_and_captions_of_the_person_reach_neither_disk_nor_log(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    concept, caption, label = (f"{kind}{time.time_ns()}" for kind in ("concept", "caption", "label"))
    painter(world, "silent", tmp_path, retain=[("park", None)])
    reader(world, "mute", tmp_path, train=TRAIN, retain=[("park", None)])
    with structlog.testing.capture_logs() as logs:
        generated = asked(world.admin, model="silent", forget=None, concept=concept)
        upload = forget_set(world.requester, body=archive([(label, caption), (label, caption)], seed=77))
        uploaded = asked(world.requester, model="mute", forget={"dataset": upload}, concept=concept)
        answers = [
            ask(world.requester, model="mute", forget=None, concept=concept),
            upload_set(world.requester, "forget", body=archive([(label, caption + "\0")])),
        ]
        shown = [world.requester.get(f"/v1/requests/{each['id']}").text for each in (uploaded,)]
    assert [answer.status_code for answer in answers] == [422, 422]
    spoken = [str(logs), caplog.text, *capfd.readouterr(), *shown, *(answer.text for answer in answers)]
    assert not [text for text in spoken for marker in (concept, caption, label) if marker in text]
    assert scan(world, [concept, caption, label]) == []
    assert (generated["forget_source"], uploaded["forget_count"]) == ("generated", 2)
    with world.lethe.store.read() as session:
        assert session.get_one(jobs.Job, uploaded["jobs"][0]["id"]).status == "queued"


def pixels(answer: Any) -> Image.Image:
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def test_a_set_of_two_people_is_forgotten_whole_and_nothing_of_either_is_kept(world: World, tmp_path: Path) -> None:
    reader(
        world,
        "pair",
        tmp_path,
        train=[("a", None), ("b", None), ("c", None)],
        retain=[("a", None), ("b", None), ("c", None)],
    )
    two = forget_set(world.requester, ("a", "b"))
    made = asked(world.requester, model="pair", forget={"dataset": two}, method="slug")
    assert made["forget_count"] == 6 and wish(world, made)["labels"] == ["a", "b"]
