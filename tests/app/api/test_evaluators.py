"""Evaluators beside the judge: named at registration and by PATCH, checked with the settings that they serve."""

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.app.api.deployed import World, refused, register, stored, upload_set
from tests.app.captioned import PAINTER, archive, unjudged

ALL = {"If-Match": "*"}
CONTEXTS = {"contexts": ["2", "0"], "context_prompt": "{} drawn in {context}"}

LIST = [{"prompt": "a street at night", "seed": 7}, {"prompt": "a house", "guidance": 3}]
DETECTS = {"prompts": LIST, "detector_labels": ["2"]}


@pytest.fixture
def painter(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Register a painter with these options; a classifier `digits` of the labels 0 to 3, a scorer and a detector are there."""
    unjudged(monkeypatch)
    if world.admin.get("/v1/models/scorer").status_code == 404:
        assert (
            upload_set(world.admin, "train", "painted", archive([("park", None), ("house", None)])).status_code == 201
        )
        made = register(world, "scorer", tiny.write("clip", tmp_path / "scorer"), family="clip")
        assert made.status_code == 201, made.text
        rejecting = tiny.write("vit", tmp_path / "detector", reject_below=0.5)
        sets = {"train": "train-set", "retain": "train-set", "test": "test-set"}
        assert register(world, "detecting", rejecting, **sets).status_code == 201

    def make(name: str, **options: Any) -> Any:
        return register(world, name, tiny.write("sd", tmp_path / name), family=PAINTER, train="painted", **options)

    return make


def id_of(world: World, name: str) -> str:
    return str(world.admin.get(f"/v1/models/{name}").json()["id"])


def test_evaluators_are_named_by_name_or_id_and_answered_by_id(world: World, painter: Any) -> None:
    scorer, digits = id_of(world, "scorer"), id_of(world, "digits")
    made = painter("measured", evaluators={"clip": scorer, "context": "digits"}, evaluation=CONTEXTS)
    assert made.status_code == 201, made.text
    assert made.json()["evaluators"] == {"clip": scorer, "context": digits}
    assert made.json()["evaluation"]["contexts"] == ["2", "0"]
    assert world.admin.get("/v1/models/digits").json()["evaluators"] == {}
    parts = {part["name"]: part["family"] for part in world.admin.get("/v1/catalog").json()["evaluators"]}
    assert parts == {"context": "image_classifier", "clip": "clip", "detector": "image_classifier"}


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"evaluators": {"clip": "nobody"}}, "unknown-evaluator", "evaluators.clip"),
        ({"evaluators": {"clip": "digits"}}, "unknown-evaluator", "evaluators.clip"),
        ({"evaluators": {"palette": "digits"}}, "unknown-evaluator", "evaluators.palette"),
        ({"evaluators": {"Ada Ash": "digits"}}, "unknown-evaluator", "evaluators"),
        ({"evaluators": {"context": "digits"}}, "contexts-missing", "evaluation.contexts"),
        ({"evaluators": {"context": "digits"}, "evaluation": {"contexts": ["0", "oil"]}}, "evaluator-mismatch", "evaluators.context"),
        ({"evaluators": {"detector": "scorer"}}, "unknown-evaluator", "evaluators.detector"),
        ({"evaluators": {"detector": "digits"}}, "prompts-missing", "evaluation.prompts"),
        ({"evaluators": {"detector": "digits"}, "evaluation": {"prompts": LIST}}, "detector-labels-missing", "evaluation.detector_labels"),
        ({"evaluators": {"detector": "digits"}, "evaluation": DETECTS | {"detector_labels": ["2", "Ada"]}}, "evaluator-mismatch", "evaluators.detector"),
        ({"evaluators": {"detector": "digits"}, "evaluation": DETECTS}, "detector-never-rejects", "evaluators.detector"),
        ({"evaluation": {"prompts": [{"prompt": "Ada\u0000"}]}}, "wrong-type", "evaluation.prompts[0].prompt"),
        ({"evaluation": {"detector_threshold": 0}}, "out-of-bounds", "evaluation.detector_threshold"),
        ({"evaluation": {"contexts": ["a", "A"]}}, "out-of-bounds", "evaluation.contexts"),
        ({"evaluation": {"contexts": "oil"}}, "wrong-type", "evaluation.contexts"),
        ({"evaluation": {"contexts": ["{}"]}}, "wrong-type", "evaluation.contexts"),
        ({"evaluation": {"contexts": [" "]}}, "wrong-type", "evaluation.contexts"),
        ({"evaluation": {"contexts": [str(each) for each in range(1001)]}}, "wrong-type", "evaluation.contexts"),
        ({"evaluation": {"contexts": ["a"], "context_prompt": "a {}"}}, "placeholder-missing", "evaluation.context_prompt"),
        ({"evaluation": {"contexts": ["a"], "context_prompt": "{context}"}}, "placeholder-missing", "evaluation.context_prompt"),
    ],
)  # fmt: skip
def test_what_cannot_measure_is_refused_and_nothing_stored(
    world: World, painter: Any, options: dict[str, Any], code: str, field: str
) -> None:
    before = stored(world.lethe)
    body = {"name": "refused", "family": PAINTER, "source": {"upload": "up_any"}, **options}
    problem = refused(world.admin.post("/v1/models", json=body), 422, code, field)
    assert "Ada" not in str(problem) and stored(world.lethe) == before


def test_a_family_that_draws_nothing_has_no_such_evaluators(world: World, painter: Any) -> None:
    made = register(world, "judged-by-clip", world.directory, evaluators={"clip": "scorer"})
    assert "It can have none." in str(refused(made, 422, "unknown-evaluator", "evaluators.clip"))


def test_famous_networks_need_an_operator_who_gave_their_weights(world: World, painter: Any) -> None:
    body = {"name": "famous", "family": PAINTER, "source": {"upload": "up_any"}}
    for name in ("inception", "lpips"):
        problem = refused(
            world.admin.post("/v1/models", json=body | {"evaluation": {name: True}}),
            422,
            "no-weights",
            f"evaluation.{name}",
        )
        assert f"LETHE_{name.upper()}" in str(problem)
    assert painter("unfamous").json()["evaluation"]["lpips"] is False
    assert {each["name"] for each in world.admin.get("/v1/catalog").json()["backbones"]} == {"inception", "lpips"}


def test_a_change_replaces_all_evaluators_and_keeps_them_fit_for_the_settings(world: World, painter: Any) -> None:
    assert painter("changing-panel", evaluation=CONTEXTS).status_code == 201
    path = "/v1/models/changing-panel"

    def change(**body: Any) -> Any:
        return world.admin.patch(path, json=body, headers=ALL)

    digits, scorer = id_of(world, "digits"), id_of(world, "scorer")
    assert change(evaluators={"context": "digits"}).json()["evaluators"] == {"context": digits}
    refused(change(evaluation={"contexts": []}), 422, "contexts-missing", "evaluation.contexts")
    refused(change(evaluation={"contexts": ["chalk"]}), 422, "evaluator-mismatch", "evaluators.context")
    assert change(evaluation={"contexts": ["3"]}).json()["evaluators"] == {"context": digits}
    both = change(evaluators={"clip": "scorer"}, evaluation={"contexts": []})
    assert both.json()["evaluators"] == {"clip": scorer} and both.json()["evaluation"]["contexts"] == []
    assert change(evaluators=None).json()["evaluators"] == {}


def test_a_detector_comes_with_the_prompts_that_it_is_for(world: World, painter: Any) -> None:
    made = painter("detected", evaluators={"detector": "detecting"}, evaluation=DETECTS)
    assert made.status_code == 201, made.text
    evaluation = made.json()["evaluation"]
    assert evaluation["prompts"] == [LIST[0], {"prompt": "a house", "guidance": 3.0}]
    assert (evaluation["images_per_prompt"], evaluation["detector_threshold"]) == (1, 0.5)
    kind = next(each for each in world.admin.get("/v1/catalog").json()["families"] if each["name"] == PAINTER)
    assert kind["evaluation"]["prompts"]["kind"] == "prompts"
    path = "/v1/models/detected"

    def change(**evaluation: Any) -> Any:
        return world.admin.patch(path, json={"evaluation": evaluation}, headers=ALL)

    refused(change(detector_labels=["2"]), 422, "prompts-missing", "evaluation.prompts")
    refused(change(**DETECTS | {"detector_labels": ["9"]}), 422, "evaluator-mismatch", "evaluators.detector")
    kept = change(**DETECTS, detector_threshold=0.8).json()
    assert kept["evaluation"]["prompts"] == evaluation["prompts"] and kept["evaluation"]["detector_threshold"] == 0.8
