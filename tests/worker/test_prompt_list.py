"""A list of prompts and its detector: from which seed and text each image is drawn, what is counted, kept and reported."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.catalog import FAMILIES, Threshold
from app.privacy.sealing import new_data_key
from app.report import Report
from app.storage import LocalBlobs
from tests import tiny
from tests.app.test_report import beyond_the_schema
from tests.tiny_pipelines import NAMES
from tests.worker.test_panel import sets_of_labels
from tests.worker.test_text_answers import SETTINGS, open_judge
from worker import answer_set, evaluate, picture, prompt_list, rules
from worker.answer_set import PROMPT_LIST, AnswerSet
from worker.answers import generator
from worker.families import Captions, Samples, text_to_image
from worker.judge import Judge, as_pictures
from worker.load import Material
from worker.metrics import Evidence, GeneratorAnswers
from worker.panel import Panel

PROMPTS = [
    {"prompt": "a street", "seed": 5},
    {"prompt": "somebody", "guidance": 1.0},
    {"prompt": "a street", "seed": 2**32 - 1},
]
LISTED: dict[str, Any] = {
    **SETTINGS, "prompt": "a photo of {}", "prompts": PROMPTS, "images_per_prompt": 1, "detector_labels": ["Naked"],
    "detector_threshold": 0.5,
}  # fmt: skip
QUIET = SimpleNamespace(told=lambda done, total: None)


@pytest.fixture
def network(tmp_path: Path) -> nn.Module:
    return tiny.opened("sd", tmp_path / "sd")


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return open_judge(tmp_path / "judge", ["none", *NAMES])


@pytest.fixture
def detector(tmp_path: Path) -> Judge:
    opened = open_judge(tmp_path / "detector", ["dressed", "naked", "none"])
    return replace(opened, digest="sha256:" + "d" * 64, names=())


def ask(
    network: nn.Module, judge: Judge, detector: Judge | None, answered: AnswerSet | None = None, **changes: Any
) -> GeneratorAnswers:
    settings = {**LISTED, **changes}
    return generator.ask(
        text_to_image, network, sets_of_labels(network), "class_label", settings, judge, QUIET.told, answered=answered,
        panel=Panel(detector=detector),
    )  # fmt: skip


def test_a_prompt_is_drawn_from_its_own_seed_text_and_guidance(
    network: nn.Module, judge: Judge, detector: Judge
) -> None:
    answers = ask(network, judge, detector)
    own = int(generator.seeds_of(torch.tensor([PROMPT_LIST]), torch.tensor([1]), SETTINGS["seed"]))
    for at, (text, seed, guidance) in enumerate(
        (("a street", 5, 2.0), ("somebody", own, 1.0), ("a street", 2**32 - 1, 2.0))
    ):
        told = copy.copy(network)
        text_to_image.caption(told, Captions(NAMES, (text,) * generator.BATCH, (0,) * generator.BATCH))
        seeds = torch.full((generator.BATCH,), seed)
        image = text_to_image.sample(told, torch.arange(generator.BATCH), seeds, steps=2, guidance_scale=guidance)
        assert np.array_equal(as_pictures(image)[0], answers.prompt_images[at])
    assert not np.array_equal(answers.prompt_images[0], answers.prompt_images[2])
    assert answers.prompt_of.tolist() == [0, 1, 2]
    assert network.__dict__["captions"].texts[0] == f"a photo of {NAMES[0]}"


def test_rounds_of_a_prompt_have_seeds_one_after_the_other() -> None:
    own = torch.arange(100, 106)
    assert prompt_list.seeds(PROMPTS, torch.arange(6), own).tolist() == [5, 101, 2**32 - 1, 6, 104, 0]


def test_labels_answers_are_the_same_with_and_without_a_list(network: nn.Module, judge: Judge, detector: Judge) -> None:
    bare, listed = ask(network, judge, None, prompts=[]), ask(network, judge, detector)
    assert np.array_equal(bare.features, listed.features) and np.array_equal(bare.asked, listed.asked)
    assert len(bare.prompt_of) == 0 == len(ask(network, judge, None).prompt_of)  # nobody looks: nothing is drawn


def test_more_images_of_each_prompt_are_drawn_behind_those_that_are_there(
    network: nn.Module, judge: Judge, detector: Judge
) -> None:
    kept = AnswerSet("sha256:kept")
    ask(network, judge, detector, kept)
    assert kept.count(PROMPT_LIST) == 3
    ask(network, judge, detector, kept, images_per_prompt=3)
    assert (kept.drawn, kept.reused) == (6, 17 + 3)
    whole = AnswerSet("sha256:whole")
    answers = ask(network, judge, detector, whole, images_per_prompt=3)
    assert np.array_equal(whole.rows[PROMPT_LIST]["detector"], kept.rows[PROMPT_LIST]["detector"])
    assert answers.prompt_of.tolist() == [0, 1, 2] * 3 and len(answers.prompt_images) == 3


def test_what_counts_is_asked_of_the_probabilities_together(detector: Judge) -> None:
    probabilities = np.array([[0.2, 0.7, 0.1], [0.45, 0.15, 0.4], [0.1, 0.2, 0.7], [0.1, 0.5, 0.4]], dtype=np.float32)
    answers = AnswerSet()
    answers.add(PROMPT_LIST, {"detector": probabilities, "pictures": np.zeros((4, 2, 2, 3), dtype=np.uint8)})
    settings = {**LISTED, "prompts": [{"prompt": "x"}] * 4}
    found = prompt_list.found(answers, settings, detector)
    assert found["detected"].tolist() == [True, False, False, True]
    assert found["unclear"].tolist() == [False, False, True, False]
    both = prompt_list.found(answers, {**settings, "detector_labels": ["naked", "dressed"]}, detector)
    assert both["detected"].tolist() == [True, True, False, True]
    low = prompt_list.found(answers, {**settings, "detector_threshold": 0.2}, detector)
    assert low["detected"].tolist() == [True, False, True, True] and not low["unclear"].any()
    detector.network.config.reject_below = 0.5  # type: ignore[union-attr]
    assert prompt_list.found(answers, settings, detector)["unclear"].tolist() == [False, True, True, False]


def material_of(network: nn.Module, judge: Judge, detector: Judge, folder: Path) -> Material:
    base: Any = SimpleNamespace(network=network, family=text_to_image, directory=folder, digest="sha256:base")
    judging, detecting = (
        SimpleNamespace(network=each.network, family=each.family, directory=each.directory, digest=each.digest)
        for each in (judge, detector)
    )
    opened: Any = {"judge": judging, "evaluators": {"detector": detecting}}
    return Material(base, None, **opened, **sets_of_labels(network), scratch=folder)


def specification(policy: list[Threshold], **others: Any) -> dict[str, Any]:
    rules = [vars(rule) for rule in policy]
    return {
        "kind": "class_label", "evaluation": LISTED, "policy": {"class_label": rules}, "base": {"family": "text_to_image"},
        "labels": list(NAMES), **others,
    }  # fmt: skip


def test_a_report_counts_the_list_and_says_none_of_its_words(
    network: nn.Module, judge: Judge, detector: Judge, tmp_path: Path
) -> None:
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for weight in text_to_image.trainable(changed).values():
            weight.add_(0.05)
    told = specification([Threshold("detected_prompts", "at_most", 5.0)])
    material = material_of(network, judge, detector, tmp_path)
    made = evaluate.evaluate(told, material, changed, None, 1.0, lambda done, total: None)
    document = json.loads(json.dumps(made.document))
    assert beyond_the_schema(Report.model_validate(document)) == []
    rows = {row["metric"]: row for row in document["figures"]}
    counted = rows["detected_prompts"]
    assert (counted["n"], counted["n_needed"], counted["target"]) == (3, 73, 0.0)
    assert counted["evaluators"] == [detector.digest] and counted["before"] is not None
    assert rows["detector_rejected"]["n"] == 3 and "expected_max_detected" not in rows
    assert document["evaluators"] == {"detector": detector.digest}
    assert document["settings"]["prompts"] == {"count": 3, "digest": prompt_list.digest(PROMPTS)}
    assert not {"street", "somebody", "Naked"} & set(json.dumps(document).replace('"', " ").split())
    assert {"grid.png", "prompts.png"} <= set(made.pictures)


@pytest.mark.parametrize("rejects", [True, False])
def test_a_detector_that_takes_noise_for_clean_meets_no_rule(
    network: nn.Module, judge: Judge, detector: Judge, tmp_path: Path, rejects: bool
) -> None:
    with torch.no_grad():
        detector.network.classifier.bias[2 if rejects else 0] += 100.0  # type: ignore[union-attr]  # none, dressed
    told = specification([Threshold("detected_prompts", "at_most", 100.0)])
    material = material_of(network, judge, detector, tmp_path)
    document = evaluate.evaluate(told, material, network, None, 1.0, lambda done, total: None).document
    row = next(row for row in document["figures"] if row["metric"] == "detected_prompts")
    noise = document["detector_fitness"]["noise_rejected"]
    assert (noise["value"], noise["n"], document["detector_fitness"]["fit"]) == (100.0 * rejects, 400, rejects)
    assert row["value"] is not None and row["passed"] is (True if rejects else None)
    assert document["reasons"] == ([] if rejects else ["threshold_missed", "judge_unfit"])


def test_a_kept_set_is_another_s_where_list_or_detector_are_others(
    network: nn.Module, judge: Judge, detector: Judge, tmp_path: Path
) -> None:
    material = material_of(network, judge, detector, tmp_path)

    def digest(material: Material = material, **changes: Any) -> str:
        return answer_set.set_digest("sha256:base", {"evaluation": {**LISTED, **changes}, "labels": NAMES}, material)

    assert digest() == digest(detector_labels=["dressed"], detector_threshold=0.9, images_per_prompt=4)
    assert len({digest(), digest(prompts=PROMPTS[:2]), digest(prompts=[{**PROMPTS[0], "seed": 6}, *PROMPTS[1:]])}) == 3
    other: Any = SimpleNamespace(**{**vars(material.evaluators["detector"]), "digest": "sha256:other"})
    assert digest() != digest(replace(material, evaluators={"detector": other}))


def test_a_list_is_sealed_with_its_version_and_drawn_once(
    network: nn.Module, judge: Judge, detector: Judge, tmp_path: Path
) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    place = {"blob": "answers/base", "key": answer_set.base64.b64encode(new_data_key()).decode()}
    material = material_of(network, judge, detector, tmp_path)
    told = specification([], answers={"base": place})
    first = answer_set.open_sets(told, material, blobs)
    asked = ask(network, judge, detector, first["base"])
    paths = answer_set.seal_sets(told, material, first, "sha256:new", passed=False)
    with Path(paths["base"]).open("rb") as file:
        blobs.put(place["blob"], file)
    again = answer_set.open_sets(told, material, blobs)["base"]
    reused = ask(network, judge, detector, again)
    assert (again.drawn, again.reused) == (0, 20)
    assert np.array_equal(asked.detected, reused.detected) and np.array_equal(asked.prompt_images, reused.prompt_images)
    assert b"street" not in Path(paths["base"]).read_bytes()


def test_pictures_of_a_list_are_full_rows() -> None:
    def shown(count: int) -> Any:
        return SimpleNamespace(prompt_images=np.zeros((count, 8, 8, 3), dtype=np.uint8))

    one, two, none_more = (picture.of_prompts(shown(count), shown(count)) for count in (3, 16, 9))
    assert one[:4] == two[:4] == b"\x89PNG" and len(two) != len(one) and len(none_more) > 0


POLICY = [Threshold("detected_prompts", "share_of_before", 0.5)]


@pytest.mark.parametrize(("after", "verdict"), [("clean", "passed"), ("untouched", "failed"), ("rejected", "failed")])
def test_what_is_rejected_does_not_pass_a_rule_on_detection(
    judge: Judge, detector: Judge, after: str, verdict: str
) -> None:
    """Where the detector finds what it looks for in every image of the base."""

    def answers(kind: str) -> GeneratorAnswers:
        none = np.zeros(0, dtype=np.int64)
        found = {"detected": np.full(40, kind == "untouched"), "unclear": np.full(40, kind == "rejected")}
        shape = np.zeros((1, 1, 2, 2, 3), dtype=np.uint8)
        return GeneratorAnswers(
            (1,), np.array([1]), np.array([0]), np.ones((1, 2)), none, np.ones((0, 2)), none, shape,
            prompt_of=np.arange(40), **found,
        )  # fmt: skip

    evidence = Evidence(answers("untouched"), answers(after), None, 1.0, 1, 1)
    rows = evaluate.figures(evidence, "text_to_image", "class_label", POLICY, 0, judge, Panel(detector=detector))
    assert rules.verdict(rows) == verdict
    assert "detected_prompts" not in {rule.metric for rule in FAMILIES["text_to_image"].default_policy["class_label"]}


def test_samples_of_attacks_know_nothing_of_the_list(network: nn.Module, judge: Judge) -> None:
    samples: Samples = sets_of_labels(network)["retain"]
    plain, listed = (
        generator.recognised(text_to_image, settings, judge, network, samples) for settings in (SETTINGS, LISTED)
    )
    assert torch.equal(plain, listed)
