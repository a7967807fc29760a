"""A dry run: the checks and refusals of the real POST, figures that were counted, bounded or measured, and nothing stored."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.privacy.fingerprints import in_order
from app.privacy.selection import read_index
from app.records import dataset as datasets
from app.records import tombstone as tombstones
from app.records.checkpoint import Status
from app.records.job import Job
from app.records.request import Request
from tests import reports
from tests.app.api.deployed import World, add_version, asked, forget_set, refused, register, stored

PATH = "/v1/requests/estimate"
SALUN = {"model": "digits", "forget": {"samples": ["0/0", "1/1"]}, "method": "salun"}
NOTHING = {"basis": "none", "about": "no earlier job of this model with this method", "n": 0, "min": None, "median": None, "max": None}  # fmt: skip


def estimated(world: World, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    answer = world.requester.post(PATH, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ran(world: World, folder: Path, seconds: float, memory: float | None = None, **recipe: Any) -> int:
    """A job of `digits` by salun that took so long; the number of its version."""
    made = asked(world.admin, recipe=recipe)
    report = reports.report(reports.figure("peak_memory", memory))
    times = {"status": "succeeded", "started_at": 1000.0, "finished_at": 1000.0 + seconds}
    with world.lethe.store.write() as session:
        session.execute(
            update(Job).where(Job.id == made["jobs"][0]["id"]).values(**times, unlearning_seconds=seconds / 2)
        )
    return add_version(world, folder, Status.QUARANTINED, report=report, request_id=made["id"])[0]


def test_it_says_what_the_request_then_is_and_stores_nothing(world: World) -> None:
    uploaded = forget_set(world.requester)
    bodies: list[dict[str, Any]] = [
        SALUN,
        {"model": "digits", "forget": {"class_label": "3"}},
        {"model": "digits", "forget": {"dataset": uploaded}, "concept": "anna"},
    ]
    for body in bodies:
        estimated(world, body, **{"Idempotency-Key": "estimated"})  # the secret of such keys is made at first use
        before = stored(world.lethe)
        found = estimated(world, body, **{"Idempotency-Key": "estimated"})
        assert stored(world.lethe) == before
        made = asked(world.requester, **{"method": "auto", **body})
        same = ("model", "forget_kind", "forget_count", "forget_source", "method")
        assert {name: found[name] for name in same} == {name: made[name] for name in same}
        assert [{"method": each["method"], "recipe": each["recipe"]} for each in found["ladder"]] == made["ladder"]
    assert found["retain_count"] == 24
    assert estimated(world, bodies[1])["retain_count"] == 18


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"model": "absent"}, 404, "not-found"),
        ({"method": "no_such"}, 422, "unknown-method"),
        ({"recipe": {"epochs": 0}}, 422, "out-of-bounds"),
        ({"forget": {"samples": ["9/9"]}}, 422, "unknown-samples"),
        ({"seed": -1}, 422, "invalid-input"),
        ({"due_at": "2000-01-01T00:00:00Z"}, 422, "out-of-bounds"),
        ({"reference": "absent"}, 422, "unknown-reference"),
    ],
)
def test_it_is_refused_as_the_request_is(world: World, change: dict[str, Any], status: int, code: str) -> None:
    before = stored(world.lethe)[0]
    problems = [world.requester.post(path, json={**SALUN, **change}) for path in (PATH, "/v1/requests")]
    one, other = (refused(each, status, code) for each in problems)
    assert one | {"request_id": ""} == other | {"request_id": ""}
    assert stored(world.lethe)[0] == before


def test_a_set_that_another_request_has_is_refused_and_a_stranger_s_is_not_there(world: World) -> None:
    uploaded = forget_set(world.requester)
    body = {"model": "digits", "forget": {"dataset": uploaded}}
    refused(world.stranger.post(PATH, json=body), 404, "not-found")
    asked(world.requester, **body)
    refused(world.requester.post(PATH, json=body), 409, "dataset-adopted", "forget.dataset")


def test_without_earlier_jobs_no_time_is_made_up(world: World) -> None:
    (rung,) = estimated(world, {**SALUN, "method": "finetune"})["ladder"]
    assert rung["seconds"] == rung["unlearning_seconds"] == rung["memory_bytes"]["host_peak"] == NOTHING
    assert rung["earlier_versions"] == []
    memory, touched = rung["memory_bytes"], rung["tensors_touched"]
    assert memory["weights"] == 2 * 4 * touched["of_elements"] and memory["gradients"] == 4 * touched["of_elements"]
    assert memory["at_least"] == memory["weights"] + memory["gradients"] + memory["optimizer"]
    assert touched["tensors"] == touched["of_tensors"] > 1 and touched["elements"] == touched["of_elements"]


def test_time_and_memory_are_those_of_earlier_jobs_of_the_model(world: World, tmp_path: Path) -> None:
    versions = [ran(world, tmp_path, *figures) for figures in ((10, 100), (40, 300), (20, None))]
    other = ran(world, tmp_path, 500, 900, epochs=3)
    (rung,) = estimated(world, SALUN)["ladder"]
    said = {"basis": "same_recipe", "about": "3 earlier jobs of this model with this recipe", "n": 3}
    assert rung["seconds"] == said | {"min": 10, "median": 20, "max": 40}
    assert rung["unlearning_seconds"] == said | {"min": 5, "median": 10, "max": 20}
    peak = rung["memory_bytes"]["host_peak"]
    assert (peak["n"], peak["min"], peak["max"]) == (2, 100_000_000, 300_000_000)
    assert rung["memory_bytes"]["device_peak"] == NOTHING
    changed = rung["earlier_versions"]
    assert [each["version"] for each in changed] == [other, *versions[::-1]]
    assert all(0 < each["tensors"] <= each["of_tensors"] == rung["tensors_touched"]["of_tensors"] for each in changed)
    (stronger,) = estimated(world, {**SALUN, "recipe": {"epochs": 4}})["ladder"]
    about = "4 earlier jobs of this model with this method and another recipe"
    assert (stronger["seconds"]["basis"], stronger["seconds"]["about"]) == ("same_method", about)
    assert stronger["seconds"]["max"] == 500
    register(world, "unasked", world.directory, train="train-set", retain="train-set")
    assert estimated(world, {**SALUN, "model": "unasked"})["ladder"][0]["seconds"] == NOTHING


def test_every_rung_of_a_ladder_is_told(world: World) -> None:
    slug, *later = estimated(world, {"model": "digits", "forget": {"class_label": "3"}})["ladder"]
    assert (slug["method"], slug["tensors_touched"]["tensors"]) == ("slug", 1)
    assert [each["method"] for each in later] == ["salun", "salun"]
    half = later[0]["tensors_touched"]
    assert half["about"] == "the whole network, 50% of its elements" and half["elements"] == half["of_elements"] // 2


def forgotten_by_others(world: World, sample: str) -> list[str]:
    """Ids of the model's train set, of which another request has forgotten `sample`."""
    first = asked(world.admin, forget={"samples": [sample]})
    with world.lethe.store.write() as session:
        train = datasets.find(session, "train-set")
        assert train is not None
        samples = {each["id"]: each for each in read_index(train, world.lethe.keyring, world.lethe.blobs)["samples"]}
        model_id = session.get_one(Request, first["id"]).model_id
        tombstones.lay(session, model_id, first["id"], {in_order(samples[sample])[0]})
    return list(samples)


def test_what_others_had_forgotten_is_not_told_by_the_count(world: World) -> None:
    ids = forgotten_by_others(world, "2/1")
    bodies = [{**SALUN, "forget": {"samples": [sample]}} for sample in ("2/1", "2/2")]
    counts = [estimated(world, body)["retain_count"] for body in bodies]
    assert counts == [len(ids) - 1] * 2


def test_what_others_had_forgotten_is_not_told_by_a_refusal(world: World) -> None:
    ids = forgotten_by_others(world, "2/1")
    bodies = [{**SALUN, "forget": {"samples": [each for each in ids if each != left]}} for left in ("2/1", "2/2")]
    answers = [world.requester.post(PATH, json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["retain_count"] for answer in answers] == [1, 1]
