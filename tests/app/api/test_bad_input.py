"""Every refusal of a body: the right status, a problem document that names field and rule, and nothing stored."""

import json
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import catalog
from app.main import create_app
from tests import pictures
from tests.app.api.deployed import (
    ZIP,
    World,
    ask,
    forget_set,
    refused,
    register,
    stored,
    stored_but_history,
    upload_model,
    upload_set,
)

RULE = {"metric": "retain_accuracy", "rule": "at_least", "value": 90}
REGISTRATIONS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "family": ({"family": "text_to_speech"}, "unknown-family", "family", "image_classifier, class_diffusion"),
    "family of another library": (
        {"family": "class_diffusion"},
        "class-not-allowed",
        "config.json: _class_name",
        "UNet2DModel",
    ),
    "data set": ({"retain": "nothing-here"}, "unknown-dataset", "retain", "Upload"),
    "labels the model has not": ({"train": "five"}, "unknown-label", "train", "4 labels"),
    "judge": ({"judge": "nobody"}, "unknown-judge", "judge", "image_classifier"),
    "metric": (
        {"policy": {"samples": [RULE | {"metric": "beauty"}]}},
        "unknown-metric",
        "policy.samples[0].metric",
        "retain_accuracy",
    ),
    "metric of another family": (
        {"policy": {"samples": [RULE, RULE | {"metric": "fid"}]}},
        "unknown-metric",
        "policy.samples[1].metric",
        "retain_accuracy",
    ),
    "kind of forgetting": ({"policy": {"style": [RULE]}}, "unknown-kind", "policy.style", "class_label, samples"),
    "setting": ({"evaluation": {"sampling_steps": 3}}, "unknown-parameter", "evaluation.sampling_steps", "none"),
    "attacks that are no object": (
        {"evaluation": {"attacks": ["relearning"]}},
        "wrong-type",
        "evaluation.attacks",
        "name",
    ),
    "attack": (
        {"evaluation": {"attacks": {"bribery": {}}}},
        "unknown-attack",
        "evaluation.attacks.bribery",
        "relearning, quantised_copies, membership_sweep",
    ),
    "attack of another family": (
        {"evaluation": {"attacks": {"paraphrases": {}}}},
        "unknown-attack",
        "evaluation.attacks.paraphrases",
        "relearning",
    ),
    "parameter of an attack": (
        {"evaluation": {"attacks": {"relearning": {"speed": 1}}}},
        "unknown-parameter",
        "evaluation.attacks.relearning.speed",
        "learning_rate",
    ),
    "budget of an attack": (
        {"evaluation": {"attacks": {"relearning": {"images": 11}}}},
        "out-of-bounds",
        "evaluation.attacks.relearning.images",
        "at most 10",
    ),
    "attack held to the base": (
        {"policy": {"samples": [{"metric": "relearning", "rule": "drop_at_most", "value": 3.0}]}},
        "impossible-combination",
        "policy.samples[0].rule",
        "at_most",
    ),
    "share of an unknown ideal": (
        {"policy": {"class_label": [RULE, {"metric": "mia_auc", "rule": "share_of_before", "value": 0.5}]}},
        "impossible-combination",
        "policy.class_label[1].rule",
        "at_least, at_most, times_before_at_least, times_before_at_most",
    ),
}


@pytest.fixture(scope="module")
def five(world: World) -> None:
    assert upload_set(world.admin, "train", "five", pictures.imagefolder(range(5), each=1)).status_code == 201


@pytest.mark.parametrize("case", REGISTRATIONS)
def test_registrations(world: World, five: None, case: str) -> None:
    changes, code, field, possible = REGISTRATIONS[case]
    without = stored_but_history(world.lethe)
    upload = upload_model(world.admin, world.directory)
    before = stored(world.lethe)
    body = {"name": "bad-model", "family": "image_classifier", "source": {"upload": upload}, **changes}
    problem = refused(world.admin.post("/v1/models", json=body), 422, code, field)
    assert possible in problem["detail"]
    if case == "family of another library":  # what the upload holds is refused, so it goes
        assert stored_but_history(world.lethe) == without
    else:
        assert stored(world.lethe) == before


@pytest.mark.parametrize(
    "rule",
    [
        RULE | {"value": True},
        RULE | {"value": "90"},
        RULE | {"rule": "about"},
        RULE | {"more": 1},
        {"metric": "fid"},
        7,
    ],
)
def test_thresholds_of_the_wrong_form(world: World, rule: Any) -> None:
    before = stored(world.lethe)
    body = {"name": "bad-model", "family": "image_classifier", "source": {"path": "/"}, "policy": {"samples": [rule]}}
    problem = refused(world.admin.post("/v1/models", json=body), 422, "invalid-input")
    assert problem["errors"][0]["field"].startswith("body.policy.samples.0")
    assert stored(world.lethe) == before


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_threshold_is_finite(world: World, value: str) -> None:
    rule = f'{{"metric": "retain_accuracy", "rule": "at_least", "value": {value}}}'
    body = (
        f'{{"name": "bad", "family": "image_classifier", "source": {{"path": "/"}}, "policy": {{"samples": [{rule}]}}}}'
    )
    before = stored(world.lethe)
    refused(
        world.admin.post("/v1/models", content=body, headers={"Content-Type": "application/json"}), 422, "invalid-input"
    )
    assert stored(world.lethe) == before


RECIPES: dict[str, tuple[str, str, str]] = {
    "too high": ('{"mask_fraction": 1.5}', "out-of-bounds", "recipe.mask_fraction"),
    "exclusive bound": ('{"mask_fraction": 0}', "out-of-bounds", "recipe.mask_fraction"),
    "too low": ('{"epochs": 0}', "out-of-bounds", "recipe.epochs"),
    "NaN": ('{"learning_rate": NaN}', "wrong-type", "recipe.learning_rate"),
    "infinity": ('{"learning_rate": Infinity}', "wrong-type", "recipe.learning_rate"),
    "overflow": ('{"learning_rate": 1e999}', "wrong-type", "recipe.learning_rate"),
    "text": ('{"learning_rate": "0.1"}', "wrong-type", "recipe.learning_rate"),
    "null": ('{"learning_rate": null}', "wrong-type", "recipe.learning_rate"),
    "bool as number": ('{"epochs": true}', "wrong-type", "recipe.epochs"),
    "bool as fraction": ('{"mask_fraction": true}', "wrong-type", "recipe.mask_fraction"),
    "number as bool": ('{"soft": 1}', "wrong-type", "recipe.soft"),
    "fraction as integer": ('{"epochs": 2.5}', "wrong-type", "recipe.epochs"),
    "huge integer": (f'{{"epochs": {10**400}}}', "out-of-bounds", "recipe.epochs"),
    "huge integer as number": (f'{{"learning_rate": {10**400}}}', "out-of-bounds", "recipe.learning_rate"),
    "list as choice": ('{"optimizer": ["sgd"]}', "out-of-bounds", "recipe.optimizer"),
    "unknown choice": ('{"optimizer": "lion"}', "out-of-bounds", "recipe.optimizer"),
    "unknown parameter": ('{"learning_rat": 1}', "unknown-parameter", "recipe.learning_rat"),
    "parameter with an odd name": ('{"Anna Smith": 1}', "unknown-parameter", "recipe"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(world: World, case: str) -> None:
    recipe, code, field = RECIPES[case]
    body = f'{{"model": "digits", "method": "salun", "forget": {{"samples": ["0/0"]}}, "recipe": {recipe}}}'
    before = stored(world.lethe)
    answer = world.requester.post("/v1/requests", content=body, headers={"Content-Type": "application/json"})
    problem = refused(answer, 422, code, field)
    assert "Anna" not in json.dumps(problem) and "lion" not in json.dumps(problem)
    assert stored(world.lethe) == before


REQUESTS: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "model": ({"model": "nobody"}, 404, "not-found", "", "model"),
    "method": ({"method": "wishing"}, 422, "unknown-method", "method", "salun"),
    "label": ({"forget": {"class_label": "9"}}, 422, "unknown-label", "forget.class_label", "GET /v1/models"),
    "samples": ({"forget": {"samples": ["0/0", "nobody"]}}, 422, "unknown-samples", "forget.samples", "1 of 2"),
    "whole set that is not to be forgotten": (
        {"forget": {"dataset": "train-set"}},
        422,
        "not-a-forget-set",
        "forget.dataset",
        "role=forget",
    ),
    "reference": ({"reference": "nobody"}, 422, "unknown-reference", "reference", "same family"),
    "reference to itself": ({"reference": "digits"}, 422, "unknown-reference", "reference", "another"),
    "two ways": ({"forget": {"class_label": "1", "samples": ["0/0"]}}, 422, "invalid-input", "body.forget", "not both"),
    "no way": ({"forget": {}}, 422, "invalid-input", "body.forget", "give dataset"),
    "no samples": ({"forget": {"samples": []}}, 422, "invalid-input", "body.forget.samples", "at least 1"),
    "unknown field": ({"why": "x"}, 422, "invalid-input", "body.why", "not permitted"),
    "bool as seed": ({"seed": True}, 422, "invalid-input", "body.seed", "integer"),
    "text as seed": ({"seed": "1"}, 422, "invalid-input", "body.seed", "integer"),
    "huge seed": ({"seed": 2**53}, 422, "invalid-input", "body.seed", "less than"),
    "name as external id": ({"external_id": "Anna Smith"}, 422, "invalid-input", "body.external_id", "pattern"),
    "NUL": ({"model": "a\0b"}, 422, "invalid-input", "body.model", "NUL"),
    "lone surrogate": ({"model": "\ud800"}, 422, "invalid-input", "body.model", "Unicode"),
    "lone surrogate as concept": ({"concept": "\udfff"}, 422, "invalid-input", "body.concept", "Unicode"),
    "list as recipe": ({"recipe": [1]}, 422, "invalid-input", "body.recipe", "dictionary"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(world: World, case: str) -> None:
    changes, status, code, field, said = REQUESTS[case]
    before = stored(world.lethe)
    problem = refused(ask(world.requester, **changes), status, code, field or None)
    assert said in problem["detail"]
    assert "Anna" not in json.dumps(problem) and "nobody" not in json.dumps(problem)
    assert stored(world.lethe) == before


def test_a_combination_that_does_not_exist_names_what_is_possible(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = replace(catalog.METHODS["salun"], families=("class_diffusion",))
    monkeypatch.setattr(catalog, "METHODS", {**catalog.METHODS, "salun": narrow})
    before = stored(world.lethe)
    problem = refused(ask(world.requester), 422, "impossible-combination", "method")
    _, possible = problem["detail"].split("Possible here: ")
    assert "finetune" in possible and "random_label" in possible and "salun" not in possible
    assert stored(world.lethe) == before


def test_forgetting_everything_is_refused(world: World) -> None:
    every = [each["id"] for each in world.admin.get("/v1/datasets/train-set/samples").json()["data"]]
    copy = forget_set(world.requester, body=pictures.imagefolder(seed=1))
    before = stored(world.lethe)
    for forget in ({"samples": every}, {"dataset": copy}):
        refused(ask(world.requester, forget=forget), 422, "nothing-retained", "forget")
    assert stored(world.lethe) == before
    assert register(world, "apart", world.directory, train="train-set", retain="test-set").status_code == 201
    before = stored(world.lethe)
    for forget in ({"samples": every}, {"dataset": copy}):
        refused(ask(world.requester, model="apart", forget=forget), 422, "whole-training-set", "forget")
    assert stored(world.lethe) == before


def test_labels_of_a_forget_set_that_the_model_has_not(world: World) -> None:
    named = forget_set(world.requester, ("Anna",))
    before = stored(world.lethe)
    problem = refused(ask(world.requester, forget={"dataset": named}), 422, "unknown-label", "forget")
    assert "Anna" not in json.dumps(problem) and "4 labels" in problem["detail"]
    assert stored(world.lethe) == before


def test_a_model_without_a_retain_set_forgets_nothing(world: World) -> None:
    assert register(world, "bare", world.directory).status_code == 201
    before = stored(world.lethe)
    refused(ask(world.requester, model="bare", forget={"class_label": "1"}), 422, "no-retain-set", "model")
    assert stored(world.lethe) == before


def test_without_a_key_or_its_scope(world: World) -> None:
    nobody = TestClient(create_app(world.lethe))
    upload = upload_model(world.admin, world.directory)
    before = stored(world.lethe)
    refused(ask(nobody), 401, "unauthorized")
    refused(upload_set(nobody, "train", "x"), 401, "unauthorized")
    body = {"name": "x", "family": "image_classifier", "source": {"upload": upload}}
    refused(world.requester.post("/v1/models", json=body), 403, "missing-scope")
    refused(world.requester.post("/v1/uploads", content=b"x", headers=ZIP), 403, "missing-scope")
    assert stored(world.lethe) == before


@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "field"),
    [
        (b"{", "application/json", 400, "not-json", "body"),
        (b"\xff\xfe\xfa", "application/json", 400, "not-json", "body"),
        (b"[" * 100_000, "application/json", 400, "not-json", "body"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "not-json", "body"),
        (b'{"model": "digits"}', "text/plain", 415, "unsupported-media-type", "Content-Type"),
        (b'{"model": "digits"}', "", 415, "unsupported-media-type", "Content-Type"),
        (b"model=digits", "application/x-www-form-urlencoded", 415, "unsupported-media-type", "Content-Type"),
        (b"", "application/json", 422, "invalid-input", "body"),
        (b"[]", "application/json", 422, "invalid-input", "body"),
        (b"null", "application/json", 422, "invalid-input", "body"),
        (b'"digits"', "application/json", 422, "invalid-input", "body"),
    ],
)
def test_bodies_that_are_no_request(world: World, body: bytes, kind: str, status: int, code: str, field: str) -> None:
    before = stored(world.lethe)
    refused(world.requester.post("/v1/requests", content=body, headers={"Content-Type": kind}), status, code, field)
    assert stored(world.lethe) == before


@pytest.mark.parametrize("key", ["", f"lethe_{'0' * 12}_{'0' * 32}"], ids=["none", "unknown"])
def test_no_long_body_is_read_for_who_has_no_key(world: World, key: str) -> None:
    keyless = TestClient(create_app(world.lethe), headers={"Authorization": f"Bearer {key}"} if key else {})
    headers, most = {"Content-Type": "application/json"}, b"[]".ljust(64 << 10)
    for path in ("/v1/requests", "/v1/requests/bulk", "/v1/models"):
        refused(keyless.post(path, content=most, headers=headers), 401, "unauthorized")
        refused(keyless.post(path, content=most + b" ", headers=headers), 413, "too-large")
        refused(keyless.post(path, content=iter([most, b" "]), headers=headers), 413, "too-large")
    refused(world.admin.post("/v1/requests", content=most + b" ", headers=headers), 422, "invalid-input")


def test_a_body_in_memory_has_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.edge.JSON_BYTES", 1000)
    before = stored(world.lethe)
    headers = {"Content-Type": "application/json"}
    refused(world.requester.post("/v1/requests", content=b" " * 1001, headers=headers), 413, "too-large")
    refused(
        world.requester.post("/v1/requests", content=(b" " * 100 for _ in range(11)), headers=headers), 413, "too-large"
    )
    assert stored(world.lethe) == before
