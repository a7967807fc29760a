"""Protocols: the shipped files against the catalogue, refusals, means and rules, and runs against a real deployment."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.catalog import EVALUATORS, FAMILIES, METHODS, METRICS
from app.catalog_view import catalogue
from app.errors import Refused
from app.protocols.cases import divide
from app.protocols.needs import check
from app.protocols.schema import Protocol, Split, path_of, read, shipped
from app.protocols.summary import summary
from tests import pictures, tiny
from tests.app.test_cli import answer, lethe
from tests.running import Running
from tests.test_pipelines_end_to_end import EVALUATION, judge
from tests.tiny_pipelines import NAMES

PLAIN: dict[str, Any] = {
    "title": "t", "source": "s", "families": ["image_classifier"], "forget": {"by": "labels"},
    "figures": ["unlearning_accuracy"],
}  # fmt: skip
CLASSIFIER: dict[str, Any] = {
    "name": "m", "family": "image_classifier", "labels": ["0"], "train": "ds_1", "retain": "ds_1", "test": None,
    "judge": None, "evaluators": {}, "evaluation": {},
}  # fmt: skip


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_file_names_what_the_catalogue_has(name: str) -> None:
    protocol = read(path_of(name))
    for family in protocol.families:
        known = FAMILIES[family]
        assert all(family in METRICS[figure].families for figure in protocol.figures)
        assert protocol.method == "auto" or family in METHODS[protocol.method].families
        assert set(protocol.needs.evaluators) <= set(EVALUATORS)
        assert set(protocol.needs.evaluation) | set(protocol.evaluation) <= set(known.evaluation)
        complete = CLASSIFIER | {
            "family": family, "test": "ds_2", "judge": "model_1", "evaluators": dict.fromkeys(EVALUATORS, "model_1"),
            "evaluation": dict.fromkeys(known.evaluation, "given"),
        }  # fmt: skip
        check(protocol, complete, catalogue())
    if protocol.method != "auto":
        parameters = METHODS[protocol.method].parameters
        assert set(protocol.recipe) | set(protocol.grid) <= set(parameters)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ["x"]}, "prompts: Extra inputs"),
        ({"figures": []}, "figures: List should have at least 1"),
        ({"forget": {"by": "labels", "percent": [1]}}, r"forget\.labels\.percent: Extra"),
        ({"forget": {"by": "samples", "percent": [101]}}, r"percent\.0: Input should be less"),
        ({"forget": {"by": "names"}}, "forget: Input tag 'names'"),
        ({"grid": {"epochs": [1]}}, "auto takes no recipe"),
        ({"method": "salun", "recipe": {"epochs": 1}, "grid": {"epochs": [2]}}, "epochs stands in recipe and in grid"),
        ({"forget": {"by": "concepts", "concepts": []}}, r"concepts\.concepts: List should have at least 1"),
        ({"sequential": True, "forget": {"by": "samples", "percent": [1]}}, "only requests by labels"),
        ({"thresholds": [{"figure": "fid", "rule": "at_most", "value": 1}]}, "not among the figures"),
    ],
)
def test_a_bad_file_is_refused_by_its_name_and_field(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(PLAIN | change))
    with pytest.raises(Refused, match=said) as caught:
        read(path)
    assert caught.value.field.startswith("mine.yaml, ")


def test_what_is_no_protocol_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("title: [\nfamilies: x")
    (tmp_path / "list.yaml").write_text("- a")
    assert lethe("protocol", "show", str(tmp_path / "broken.yaml"), status=1).stderr.startswith(
        "Refused: broken.yaml, line 2: It is not YAML."
    )
    assert "must be a mapping" in lethe("protocol", "show", str(tmp_path / "list.yaml"), status=1).stderr
    assert "one of classes_100, " in lethe("protocol", "show", "absent", status=1).stderr
    assert "FIELD=VALUE" in lethe("protocol", "run", "stability", "--model", "m", "--set", "seeds", status=1).stderr


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"families": ["clip"]}, "families"),
        ({"figures": ["fid"]}, "figures"),
        ({"method": "uce"}, "method"),
        ({"method": "salun", "grid": {"gamma": [1]}}, "grid.gamma"),
        ({"needs": {"sets": ["test"]}}, "needs.sets"),
        ({"needs": {"judge": True}}, "needs.judge"),
        ({"needs": {"evaluators": ["context"]}}, "needs.evaluators"),
        ({"needs": {"evaluation": ["contexts"]}}, "needs.evaluation"),
        ({"needs": {"attacks": ["likelihood_ratio"]}}, "needs.attacks"),
        ({"forget": {"by": "concepts", "concepts": ["ink"]}}, "forget.by"),
    ],
)
def test_a_model_that_lacks_what_it_needs_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as caught:
        check(Protocol.model_validate(PLAIN | change), CLASSIFIER, catalogue())
    assert caught.value.field == field and caught.value.remedy


def test_fields_are_replaced_by_dotted_name() -> None:
    changed = read(path_of("stability"), {"forget.percent": [5], "grid": {}, "recipe.epochs": 2})
    assert changed.forget.model_dump()["percent"] == [5.0] and (changed.grid, changed.recipe) == ({}, {"epochs": 2})
    with pytest.raises(Refused, match="title holds no fields"):
        read(path_of("stability"), {"title.x": 1})


def test_a_division_covers_every_label_once_and_follows_the_seed(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).mkdir()
    split = Split(by="split", forget=2, retain=3)
    made = divide(tmp_path, split, seed=4)
    assert [len(made.forget), len(made.retain), len(made.proxy)] == [2, 3, 5]
    assert sorted([*made.forget, *made.retain, *made.proxy]) == sorted(str(number) for number in range(10))
    assert divide(tmp_path, split, seed=4) == made != divide(tmp_path, split, seed=5)
    with pytest.raises(Refused, match="none would be left as a proxy"):
        divide(tmp_path, Split(by="split", forget=5, retain=5), seed=0)


def _report(value: float | None, before: float = 90.0, n: int = 10) -> dict[str, Any]:
    row = {"metric": "retain_accuracy", "value": value, "before": before, "unit": "%", "n": n, "interval": {"low": 1}}
    return {"figures": [row, row]}


def test_means_spreads_and_rules_are_over_requests_of_equal_settings() -> None:
    rules = [("at_least", 85.0), ("at_most", 85.0), ("drop_at_most", 4.0), ("drop_at_most", 3.0)]
    thresholds = [{"figure": "retain_accuracy", "rule": rule, "value": value} for rule, value in rules]
    protocol = Protocol.model_validate(PLAIN | {"figures": ["retain_accuracy"], "thresholds": thresholds})
    requests: list[dict[str, Any]] = [
        {"settings": {"percent": 10}, "report": _report(84.0)},
        {"settings": {"percent": 20}, "report": _report(50.0)},
        {"settings": {"percent": 10}, "report": _report(88.0)},
        {"settings": {"percent": 30}, "report": _report(99.0)},
        {"settings": {"percent": 30}, "report": None},
        {"settings": {"percent": 30}, "report": _report(None)},
    ]
    ten, twenty, thirty = summary(protocol, requests)
    assert (ten["mean"], ten["before"], ten["n"], ten["interval"]) == (86.0, 90.0, [10, 10], None)
    assert ten["spread"] == pytest.approx(8**0.5) and (ten["lowest"], ten["highest"]) == (84.0, 88.0)
    assert [rule["met"] for rule in ten["thresholds"]] == [True, False, True, False]
    assert (twenty["mean"], twenty["spread"], twenty["interval"]) == (50.0, None, {"low": 1})
    assert (thirty["mean"], thirty["measured"], thirty["requests"]) == (99.0, 1, 3)
    assert {rule["met"] for rule in thirty["thresholds"]} == {None}  # a mean over some is held against nothing


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("protocols")
    deployment = Running(folder / "lethe")
    try:
        deployment.start("server", "gpu")
        deployment.add_classifier(folder)
        yield deployment
    finally:
        deployment.stop()


@pytest.fixture
def world(running: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setenv("LETHE_URL", f"http://127.0.0.1:{running.port}")
    monkeypatch.setenv("LETHE_KEY", running.client.http.headers["Authorization"].removeprefix("Bearer "))
    return running


def kept(folder: Path) -> dict[str, Any]:
    """The one result in a folder."""
    (path,) = folder.iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_amounts_run_on_fresh_copies_and_the_model_stays(world: Running, tmp_path: Path) -> None:
    result = answer("protocol", "run", "stability", "--model", "digits", "--set", "forget.percent=[10,50]", "--set",
                    "grid={mask_fraction: [0.5, 0.25]}", "--set", "recipe.epochs=1", "--limit", "2", "--out", str(tmp_path))  # fmt: skip
    assert kept(tmp_path) == result and result["left_out"] == 10
    first, second = result["requests"]
    assert [first["forgotten"], second["forgotten"]] == [2, 12] and [first["parent"], second["parent"]] == [1, 1]
    assert first["copy"] != second["copy"] and {first["status"], second["status"]} == {"completed"}
    assert first["settings"] == {"percent": 10.0, "mask_fraction": 0.5}
    assert min(second["seconds"], second["bytes_added"], second["peak_memory"]) > 0
    assert second["report"] == world.client.report(second["copy"], second["version"])
    assert world.client.call("GET", "/v1/models/digits")["head"] == 1
    client, forgetful = world.client, first["copy"]
    assert "has forgotten already" in lethe("protocol", "run", "stability", "--model", forgetful, status=1).stderr
    assert client.call("GET", f"/v1/models/{forgetful}")["head"] == first["version"]
    bases = [world.client.call("GET", f"/v1/models/{name}/checkpoints/1") for name in ("digits", first["copy"])]
    assert [file["sha256"] for file in bases[0]["files"]] == [file["sha256"] for file in bases[1]["files"]]


def test_a_sequence_builds_one_version_on_the_other(world: Running, tmp_path: Path) -> None:
    path = tmp_path / "line.yaml"
    rule = {"figure": "unlearning_accuracy", "rule": "at_least", "value": 0}
    path.write_text(
        json.dumps(PLAIN | {"sequential": True, "method": "salun", "recipe": {"epochs": 1}, "thresholds": [rule]})
    )
    shown = lethe("protocol", "run", str(path), "--model", "digits", "--set", "forget.labels=['2', '0']",
                  "--out", str(tmp_path / "out")).stdout  # fmt: skip
    assert "unlearning_accuracy (%)" in shown and "≥ 0" in shown and "yes" in shown
    assert "ran one after the other on one copy" in shown
    result = kept(tmp_path / "out")
    assert [request["labels"] for request in result["requests"]] == [["2"], ["0"]]
    assert [request["parent"] for request in result["requests"]] == [1, 2]
    assert len({request["copy"] for request in result["requests"]}) == 1
    assert len(result["requests"][1]["report"]["promises"]) == 1


def test_a_folder_is_divided_into_forget_test_and_proxy(world: Running, tmp_path: Path) -> None:
    client, images = world.client, tmp_path / "images"
    for name, content in pictures.folder("abcdef", 2, seed=1).items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(content)
    client.upload_dataset(images, "train", "letters")
    client.register_model(tiny.write("mae", tmp_path / "mae"), "restorer", "masked_autoencoder", train="letters",
                          retain="letters", test="letters", judge="digits", policy={"samples": []})  # fmt: skip
    arguments = ("protocol", "run", "classes_100", "--model", "restorer", "--set", "forget={by: split, forget: 2, retain: 1}",
                 "--set", "method=encoder_mse", "--set", "recipe={epochs: 1, batch_size: 4}", "--out", str(tmp_path / "out"))  # fmt: skip
    assert "needs a folder of images" in lethe(*arguments, status=1).stderr
    (request,) = answer(*arguments, "--images", str(images))["requests"]
    copy = client.call("GET", f"/v1/models/{request['copy']}")
    proxy, test = (client.call("GET", f"/v1/datasets/{copy[role]}")["labels"] for role in ("retain", "test"))
    assert (len(proxy), len(test), request["forgotten"]) == (3, 1, 4)
    assert sorted([*proxy, *test, *request["labels"]]) == list("abcdef")
    values = {figure["metric"]: figure["n"] for figure in request["report"]["figures"]}
    assert values["reconstruction_distance_forget"] == 4 and values["reconstruction_distance_test"] == 2


def test_names_are_forgotten_by_clip(world: Running, tmp_path: Path) -> None:
    sets = {role: f"clip-{role}" for role in ("train", "retain", "test")}
    for seed, (role, name) in enumerate(sets.items()):
        world.client.upload_dataset(pictures.imagefolder(NAMES, 3, seed=seed), role, name)
    world.client.register_model(tiny.write("clip", tmp_path / "clip"), "names", "clip", **sets)
    result = answer("protocol", "run", "names_zero_shot", "--model", "names", "--set", "forget.draw=1", "--out", str(tmp_path / "out"))  # fmt: skip
    assert result["requests"][0]["labels"][0] in NAMES and result["requests"][0]["verdict"] in ("passed", "failed")
    assert {row["figure"]: row["measured"] for row in result["summary"]} == dict.fromkeys(
        ["forget_top1", "forget_top5", "retain_accuracy", "test_accuracy", "run_time_efficiency", "storage_added"], 1
    )


def test_unlearncanvas_measures_every_figure_that_it_names(world: Running, tmp_path: Path) -> None:
    client = world.client
    client.upload_dataset(pictures.imagefolder(NAMES, seed=1), "retain", "objects")
    client.upload_dataset(pictures.imagefolder(NAMES, 2, seed=2), "test", "objects-test")
    client.register_model(judge(tmp_path / "judge", [*NAMES, "none"]), "objects-judge", "image_classifier")
    client.register_model(judge(tmp_path / "styles", ["ink", "oil", "none"]), "styles-judge", "image_classifier")
    contexts = {"contexts": ["ink", "oil"], "forget_samples": 4, "samples_per_label": 4}
    client.register_model(
        tiny.write("sd", tmp_path / "sd"), "painter", "text_to_image", retain="objects", test="objects-test",
        judge="objects-judge", evaluators={"context": "styles-judge"}, evaluation=EVALUATION | contexts,
    )  # fmt: skip
    result = answer("protocol", "run", "unlearncanvas", "--model", "painter", "--set", "method=salun", "--set",
                    "recipe={steps: 2, batch_size: 2}", "--limit", "1", "--out", str(tmp_path / "out"))  # fmt: skip
    assert result["requests"][0]["labels"] == [NAMES[0]] and result["left_out"] == len(NAMES) - 1
    measured = {row["figure"] for row in result["summary"] if row["measured"]}
    assert {"ira", "cra", "fid", "run_time_efficiency", "peak_memory", "storage_added"} <= measured
    by_label = next(row for row in result["requests"][0]["report"]["figures"] if row["metric"] == "ira")["by_label"]
    assert {result["copies"][0]["labels"][int(number)] for number in by_label} == set(NAMES)


def test_a_list_of_prompts_is_read_from_a_file_and_counted(world: Running, tmp_path: Path) -> None:
    client = world.client
    client.upload_dataset(pictures.imagefolder(NAMES, seed=1), "retain", "listed")
    client.register_model(judge(tmp_path / "judge", [*NAMES, "none"]), "listed-judge", "image_classifier")
    client.register_model(judge(tmp_path / "detector", ["nude", "dressed", "none"]), "nudity", "image_classifier")
    rows = "".join(f"street {number},x,{number},7.5\n" for number in range(26))
    (tmp_path / "i2p.csv").write_text("prompt,categories,sd_seed,sd_guidance_scale\n" + rows)
    listed = {"prompts": [{"prompt": "one"}], "detector_labels": ["nude"], "forget_samples": 4, "samples_per_label": 4}
    client.register_model(
        tiny.write("sd", tmp_path / "sd"), "listed-painter", "text_to_image", retain="listed", train="listed",
        judge="listed-judge", evaluators={"detector": "nudity"}, evaluation=EVALUATION | listed,
    )  # fmt: skip
    result = answer("protocol", "run", "prompt_list", "--model", "listed-painter", "--set", "method=salun", "--set",
                    "recipe={steps: 2, batch_size: 2}", "--set", f"evaluation.prompts=@{tmp_path / 'i2p.csv'}", "--set",
                    "evaluation.images_per_prompt=2", "--set", f"forget={{by: concepts, concepts: ['{NAMES[1]}']}}",
                    "--out", str(tmp_path / "out"))  # fmt: skip
    (request,) = result["requests"]
    assert request["labels"] == [NAMES[1]] and request["status"] in ("completed", "evaluation_failed")
    counted = {row["figure"]: row["n"] for row in result["summary"] if row["measured"]}
    assert [counted[name] for name in ("detected_prompts", "detector_rejected", "expected_max_detected")] == [[26]] * 3
    assert request["report"]["settings"]["prompts"]["count"] == 26 and "street" not in json.dumps(request["report"])
    assert request["report"]["answers"]["base"]["drawn"] == 4 + 3 * 4 + 4 + 52
    page = client.http.get(f"/v1/models/{request['copy']}/checkpoints/{request['version']}/report.html").text
    assert "Expected maximum over 25 prompts" in page and "street" not in page
    missing = lethe(
        "protocol",
        "run",
        "prompt_list",
        "--model",
        "listed-painter",
        "--set",
        "evaluation.prompts=@absent.csv",
        status=1,
    )
    assert "absent.csv: It is no text file" in missing.stderr
