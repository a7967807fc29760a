"""From answers to a verdict: the same questions at equal seeds, thresholds, and what must never pass.

The cheats on trained generators: tests/worker/trained/test_class_diffusion_cheats.py.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from app.catalog import FAMILIES, METRICS, Threshold, held_to, shows_forgetting
from app.errors import JobError
from app.report import Report
from tests import tiny
from tests.app.test_report import beyond_the_schema
from worker import evaluate, robustness, rules
from worker.answers import classifier, generator
from worker.families import Samples, class_diffusion, image_classifier
from worker.judge import Judge
from worker.load import Material
from worker.metrics import ClassifierAnswers, Evidence, GeneratorAnswers, NamingAnswers, mia_auc

CPU = torch.device("cpu")
SETTINGS = {
    "sampling_steps": 3,
    "guidance_scale": 2.0,
    "eta": 0.0,
    "forget_samples": 6,
    "samples_per_label": 2,
    "seed": 5,
}
GENERATOR_RULES = list(FAMILIES["class_diffusion"].default_policy["class_label"])


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def open_judge(directory: Path) -> Judge:
    return Judge(image_classifier.load(directory, CPU), image_classifier, directory, "sha256:judge")


@pytest.fixture
def unet(tmp_path: Path) -> nn.Module:
    return class_diffusion.load(tiny.write("unet", tmp_path / "unet"), CPU)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return open_judge(tiny.write("vit", tmp_path / "judge"))


def sets_of(network: nn.Module, label: int) -> dict[str, Samples | None]:
    every = tiny.samples(network, class_diffusion, 40)
    forget = every.y == label
    return {
        "forget": Samples(every.x[forget], every.y[forget]),
        "retain": Samples(every.x[~forget], every.y[~forget]),
        "test": tiny.samples(network, class_diffusion, 24, seed=1),
    }


def ask(network: nn.Module, judge: Judge, base: nn.Module | None = None, label: int = 1) -> GeneratorAnswers:
    sets = sets_of(network, label)
    answers = generator.ask(class_diffusion, network, sets, "class_label", SETTINGS, judge, quiet, base)
    assert isinstance(answers, GeneratorAnswers)
    return answers


def test_every_network_is_asked_the_same(unet: nn.Module, judge: Judge) -> None:
    first, second = ask(unet, judge), ask(unet, judge)
    assert first.asked.tolist() == [0] * 2 + [1] * 6 + [2] * 2 + [3] * 2
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.images, second.images)
    assert first.images.shape == (4, 2, 8, 8, 1)
    assert len(first.restored) == 0


def test_images_do_not_depend_on_how_they_are_cut(
    unet: nn.Module, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(unet, judge)
    monkeypatch.setattr(generator, "BATCH", 5)
    cut = ask(unet, judge)
    assert np.array_equal(whole.judged, cut.judged)
    assert np.abs(whole.features - cut.features).max() < 1e-4


def test_the_row_is_put_back_and_taken_out_again(unet: nn.Module, judge: Judge) -> None:
    moved = copy.deepcopy(unet)
    with torch.no_grad():
        moved.class_embedding.weight[1] += 3.0
    before = {name: tensor.clone() for name, tensor in moved.state_dict().items()}
    asked = ask(moved, judge, base=unet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in moved.state_dict().items())
    of_base = ask(unet, judge)
    assert np.array_equal(asked.restored, of_base.judged[of_base.of_forgotten])


def test_rows_that_are_the_base_s_anyway_are_not_asked_about_twice(unet: nn.Module, judge: Judge) -> None:
    moved, told = copy.deepcopy(unet), []
    with torch.no_grad():
        moved.conv_in.weight += 0.3
    sets = sets_of(unet, 1)
    generator.ask(class_diffusion, moved, sets, "class_label", SETTINGS, judge, lambda *at: told.append(at), unet)
    assert told[-1] == (12, 12)
    alone = ask(moved, judge)
    assert np.array_equal(ask(moved, judge, base=unet).restored, alone.judged[alone.of_forgotten])
    with torch.no_grad():
        moved.class_embedding.weight[1, 0] += 1e-3
    generator.ask(class_diffusion, moved, sets, "class_label", SETTINGS, judge, lambda *at: told.append(at), unet)
    assert told[-1] == (18, 18)


def test_a_judge_is_needed_and_must_know_the_labels(unet: nn.Module, tmp_path: Path) -> None:
    sets = sets_of(unet, 0)
    with pytest.raises(JobError, match="judge"):
        generator.ask(class_diffusion, unet, sets, "class_label", SETTINGS, None, quiet)
    stranger = open_judge(tiny.write("vit", tmp_path / "three", labels=3))
    with pytest.raises(JobError, match="3 labels"):
        generator.ask(class_diffusion, unet, sets, "class_label", SETTINGS, stranger, quiet)


def test_the_judge_rejects_by_label_and_by_confidence(judge: Judge) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels, features, probabilities, forced = judge(pictures)
    assert probabilities.shape == (12, 4) and probabilities.sum(axis=1) == pytest.approx(1)
    assert features.shape == (12, 16) and set(labels.tolist()) <= set(range(4))
    judge.network.config.reject_below = 1.01
    assert set(judge(pictures)[0].tolist()) == {-1}
    assert np.array_equal(forced, labels) and np.array_equal(judge(pictures).forced, probabilities.argmax(axis=1))
    judge.network.config.reject_below = 0.0
    judge.network.config.id2label = {0: "none", 1: "cat", 2: "dog", 3: "cow"}
    assert judge.label_count() == 3
    assert judge(pictures)[0].tolist() == [label - 1 for label in labels.tolist()]
    assert judge(pictures).forced.tolist() == probabilities[:, 1:].argmax(axis=1).tolist()


def test_forgetting_a_label_leaves_it_out_of_the_test_set(tmp_path: Path) -> None:
    network = image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)
    every = tiny.samples(network, image_classifier, 60)
    sets = {"forget": Samples(every.x[every.y == 2], every.y[every.y == 2]), "retain": every, "test": every}
    whole = classifier.ask(image_classifier, network, sets, "samples", {}, None, quiet)
    part = classifier.ask(image_classifier, network, sets, "class_label", {}, None, quiet)
    assert isinstance(whole, ClassifierAnswers) and isinstance(part, ClassifierAnswers)
    assert 2 in whole.test_labels and 2 not in part.test_labels
    assert np.allclose(whole.forget.sum(axis=1), 1) and whole.forget.shape == (int((every.y == 2).sum()), 4)


def report(
    directory: Path,
    change: Callable[[nn.Module], None],
    rules: list[Threshold] = GENERATOR_RULES,
    reject_below: float = 0.0,
    tested: bool = True,
) -> evaluate.Report:
    """Through the whole of `evaluate`, with a tiny generator and a tiny judge, which is sure of nothing."""
    judge = tiny.write("vit", directory / "judge", reject_below=reject_below)
    paths = {"base": tiny.write("unet", directory / "base"), "judge": judge}
    loaded: dict[str, Any] = {
        "base": SimpleNamespace(network=class_diffusion.load(paths["base"], CPU), family=class_diffusion),
        "judge": SimpleNamespace(network=image_classifier.load(paths["judge"], CPU), family=image_classifier),
    }
    for name, each in loaded.items():
        each.directory, each.digest = paths[name], f"sha256:{name}"
    sets: Any = sets_of(loaded["base"].network, 1)
    sets |= {} if tested else {"test": None}
    material = Material(loaded["base"], None, loaded["judge"], **sets, scratch=directory)
    network = copy.deepcopy(loaded["base"].network)
    change(network)
    policy = [vars(rule) for rule in rules]
    specification = {
        "kind": "class_label",
        "evaluation": SETTINGS,
        "policy": {"class_label": policy},
        "base": {"family": "class_diffusion"},
    }
    steps: list[tuple[int, int]] = []
    made = evaluate.evaluate(
        specification, material, network, None, 2.5, lambda done, total: steps.append((done, total))
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    return made


def test_the_report_is_json_says_who_judged_and_never_says_erased(tmp_path: Path) -> None:
    made = report(tmp_path, lambda network: None)
    text = json.dumps(made.document, allow_nan=False)
    assert beyond_the_schema(Report.model_validate_json(text)) == []
    assert "erase" not in text.lower() and "guarantee" not in text.lower()
    rows = {row["metric"]: row for row in made.document["figures"]}
    assert rows["integrity"]["value"] == 0.0 and rows["integrity"]["name"] == "integrity[judge]"
    assert rows["fid"]["name"] == "fid[judge]" and rows["fid"]["evaluators"] == ["sha256:judge"]
    assert rows["changed_weights"]["evaluators"] == []
    assert rows["changed_weights"]["value"] == 0.0
    assert rows["run_time_efficiency"]["value"] == 2.5
    assert rows["unlearning_accuracy"]["n"] == 6 and rows["unlearning_accuracy"]["seed"] == 5
    always = {name for name, metric in METRICS.items() if "class_diffusion" in metric.families and not metric.optional}
    assert set(rows) == always
    assert made.document["verdict"] == "failed"
    assert made.pictures["grid.png"].startswith(b"\x89PNG")


ANY = [Threshold("unlearning_accuracy", "at_least", 0.0), Threshold("kept_accuracy", "at_least", 0.0)]


def test_a_judge_that_takes_noise_for_labels_shows_figures_that_meet_no_rule(tmp_path: Path) -> None:
    document = report(tmp_path, lambda network: None, ANY).document
    noise = document["judge_fitness"]["noise_rejected"]
    assert not document["judge_fitness"]["fit"] and (noise["value"], noise["n"], noise["least"]) == (0.0, 400, 95.0)
    ruled = [row for row in document["figures"] if row["threshold"]]
    assert {row["metric"] for row in ruled} == {"unlearning_accuracy", "kept_accuracy"}
    assert all(row["passed"] is None and row["value"] is not None for row in ruled)
    assert document["verdict"] == "failed" and document["reasons"] == ["threshold_missed", "judge_unfit"]


def test_rules_on_what_no_judge_measures_do_not_mind_an_unfit_one(tmp_path: Path) -> None:
    document = report(tmp_path, lambda network: None, [Threshold("changed_weights", "at_most", 50.0)]).document
    assert not document["judge_fitness"]["fit"]
    assert (document["verdict"], document["reasons"]) == ("passed", [])


def test_a_judge_that_rejects_noise_is_fit_unless_it_is_wrong_on_real_images(tmp_path: Path) -> None:
    alone = report(tmp_path / "alone", lambda network: None, ANY, reject_below=1.01, tested=False).document
    assert alone["judge_fitness"]["fit"] and alone["judge_fitness"]["real_right"] is None
    assert (alone["verdict"], alone["reasons"]) == ("passed", [])
    tested = report(tmp_path / "tested", lambda network: None, ANY, reject_below=1.01).document
    real = tested["judge_fitness"]["real_right"]
    assert tested["judge_fitness"]["noise_rejected"]["value"] == 100.0
    assert (real["value"], real["n"], real["least"]) == (0.0, 24, 97.0)
    assert not tested["judge_fitness"]["fit"] and tested["reasons"] == ["threshold_missed", "judge_unfit"]


def test_changed_weights_are_counted_bit_by_bit(tmp_path: Path) -> None:
    def change(network: nn.Module) -> None:
        with torch.no_grad():
            network.class_embedding.weight[1, :4] += 1.0

    rows = {row["metric"]: row for row in report(tmp_path, change).document["figures"]}
    share = rows["changed_weights"]
    assert share["value"] == pytest.approx(100 * 4 / share["n"], abs=1e-5)


@pytest.mark.parametrize(
    ("rule", "value", "before", "expected"),
    [
        (Threshold("m", "at_least", 95.0), 95.0, None, True),
        (Threshold("m", "at_least", 95.0), 94.9, 0.0, False),
        (Threshold("m", "at_most", 20.0), 20.1, 0.0, False),
        (Threshold("m", "drop_at_most", 3.0), 95.0, 98.0, True),
        (Threshold("m", "drop_at_most", 3.0), 94.9, 98.0, False),
        (Threshold("m", "share_of_before", 0.5), 5.0, 10.0, True),
        (Threshold("m", "share_of_before", 0.5), 5.1, 10.0, False),
        (Threshold("m", "share_of_before", 0.5), 5.0, None, None),
        (Threshold("m", "at_least", 0.0), None, 3.0, None),
    ],
)
def test_a_rule_is_met_or_missed(
    rule: Threshold, value: float | None, before: float | None, expected: bool | None
) -> None:
    assert held_to(rule, value, before, 0.0)["passed"] is expected


def test_a_share_is_of_the_distance_to_the_ideal_on_either_side() -> None:
    half = Threshold("mia_auc", "share_of_before", 0.5)
    met = {value: held_to(half, value, 70.0, 50.0)["passed"] for value in (70.0, 61.0, 60.0, 50.0, 40.0, 39.0)}
    assert met == {70.0: False, 61.0: False, 60.0: True, 50.0: True, 40.0: True, 39.0: False}


@pytest.mark.parametrize("family", ["image_classifier", "clip", "vision_language"])
def test_an_untouched_network_that_still_answers_misses_the_default_policy_for_a_label(family: str) -> None:
    """It answers rightly everywhere, on the forgotten label too."""
    if family == "vision_language":
        right = np.ones(9, dtype=bool)
        asked: Any = [NamingAnswers(right, right, right) for _ in range(2)]
    else:
        labels = np.arange(9) % 3
        sure = np.eye(6)[labels]
        asked = [ClassifierAnswers(sure, labels, sure, labels, sure, labels) for _ in range(2)]
    policy = FAMILIES[family].default_policy["class_label"]
    rows = evaluate.figures(Evidence(*asked, None, 1.0, 0, 1), family, "class_label", policy, 0, None)
    assert rules.verdict(rows) == "failed"
    assert {row["metric"] for row in rows if row["passed"] is False} == {"unlearning_accuracy"}


@pytest.mark.parametrize("metric", ["forget_top1", "forget_top5"])
def test_an_untouched_network_misses_a_rule_on_what_shows_forgetting(metric: str) -> None:
    labels = np.arange(9) % 3
    sure = np.eye(6)[labels]
    asked = ClassifierAnswers(sure, labels, sure, labels, sure, labels)
    rule = [Threshold(metric, "at_most", 50.0)]
    rows = evaluate.figures(Evidence(asked, asked, None, 1.0, 0, 1), "clip", "class_label", rule, 0, None)
    assert METRICS[metric].shows_forgetting and rules.verdict(rows) == "failed"


def test_an_untouched_generator_scores_as_the_base_with_its_own_rows_put_back(tmp_path: Path) -> None:
    rows = {row["metric"]: row for row in report(tmp_path, lambda network: None).document["figures"]}
    restored = rows["unlearning_accuracy_row_restored"]
    assert restored["n"] == 6 and restored["value"] == rows["unlearning_accuracy"]["before"]
    assert METRICS["unlearning_accuracy_row_restored"].shows_forgetting


def test_an_untouched_classifier_fails_without_a_reference(tmp_path: Path) -> None:
    """The default policy: keeping everything is not enough where nothing shows forgetting."""
    network = image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)
    every, test = (tiny.samples(network, image_classifier, 60, seed) for seed in (0, 1))
    sets = {"forget": Samples(every.x[:20], every.y[:20]), "retain": Samples(every.x[20:], every.y[20:]), "test": test}
    asked = [classifier.ask(image_classifier, network, sets, "samples", {}, None, quiet) for _ in range(2)]
    policy = FAMILIES["image_classifier"].default_policy["samples"]
    evidence = Evidence(asked[0], asked[1], None, 1.0, *evaluate.count_changes(network, network))
    figures = evaluate.figures(evidence, "image_classifier", "samples", policy, 0, None)
    assert rules.verdict(figures) == "failed" and not any(row.get("left_out") for row in figures)
    assert {row["metric"] for row in figures if row["threshold"] and not row["passed"]} == {"mia_auc", "gap_to_retrain"}


def row(metric: str, passed: bool | None, ruled: bool = True, before: float = 97.0) -> dict[str, Any]:
    half = {"rule": "share_of_before", "value": 0.5}
    return {"metric": metric, "before": before, "passed": passed, "threshold": half if ruled else None}


def test_the_verdict_needs_every_rule() -> None:
    good = [row("unlearning_accuracy", True), row("kept_accuracy", True), row("fid", None, ruled=False)]
    assert rules.verdict(good) == "passed"
    assert rules.verdict([*good, row("forget_rejected", False)]) == "failed"


def test_what_could_not_be_measured_does_not_pass_on_its_own() -> None:
    kept = row("retain_accuracy", True)
    assert rules.verdict([kept, row("gap_to_retrain", None)]) == "failed"
    assert rules.verdict([row("mia_auc", True), row("test_accuracy", None)]) == "failed"
    assert (
        rules.verdict([row("reconstruction_distance_forget", True), row("mutual_information_to_noise", None)])
        == "failed"
    )


def test_a_gap_is_left_out_where_there_is_no_reference_and_another_figure_shows_forgetting() -> None:
    gap, kept, also = row("gap_to_retrain", None), row("retain_accuracy", True), row("mia_auc", True)
    rows = rules.without_reference([gap, kept, also], "samples")
    assert rows == [{**gap, "left_out": True}, kept, also] and rules.verdict(rows) == "passed"
    assert rules.verdict([gap, kept, also]) == "failed"  # there is one, and it could not be measured against it
    met_by_the_base = {**also, "threshold": {"rule": "at_most", "value": 100.0}}
    for other in (row("mia_auc", False), row("mia_auc", None), row("mia_auc", None, ruled=False), met_by_the_base):
        alone = rules.without_reference([gap, kept, other], "samples")
        assert not any(each.get("left_out") for each in alone) and rules.verdict(alone) == "failed"


@pytest.mark.parametrize(
    ("metric", "rule", "value", "before", "shows"),
    [
        ("unlearning_accuracy", "at_least", 95.0, 3.0, True),
        ("unlearning_accuracy", "at_least", 0.0, 3.0, False),
        ("unlearning_accuracy", "at_least", 95.0, 97.0, False),
        ("unlearning_accuracy", "at_most", 50.0, 3.0, False),
        ("unlearning_accuracy_row_restored", "at_least", 90.0, None, True),
        ("unlearning_accuracy_row_restored", "at_least", 0.0, None, False),
        ("mutual_information_to_noise", "at_most", 25.0, 100.0, True),
        ("reconstruction_distance_forget", "times_before_at_least", 3.0, 0.2, True),
        ("reconstruction_distance_forget", "times_before_at_least", 1.0, 0.2, False),
        ("forget_top1", "share_of_before", 0.5, 98.0, True),
        ("forget_top1", "share_of_before", 1.0, 98.0, False),
        ("retain_accuracy", "at_least", 99.0, 98.0, False),
    ],
)
def test_a_rule_shows_forgetting_where_the_untouched_base_misses_it(
    metric: str, rule: str, value: float, before: float | None, shows: bool
) -> None:
    figure = {"metric": metric, "before": before, "threshold": {"rule": rule, "value": value}}
    assert shows_forgetting(figure, "class_label") is shows
    assert not shows_forgetting({**figure, "threshold": None}, "class_label")


def classified(network: nn.Module, test: Samples | None, count: int = 20) -> ClassifierAnswers:
    every = tiny.samples(network, image_classifier, 60)
    sets = {"forget": Samples(every.x[:count], every.y[:count]), "retain": every, "test": test}
    answers = classifier.ask(image_classifier, network, sets, "samples", {}, None, quiet)
    assert isinstance(answers, ClassifierAnswers)
    return answers


def test_the_report_of_a_classifier_says_that_the_gap_was_left_out(tmp_path: Path) -> None:
    network = image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)
    test = tiny.samples(network, image_classifier, 60, 1)
    moved = image_classifier.load(tiny.write("vit", tmp_path / "moved", seed=5), CPU)
    areas = [mia_auc.measure(answers, None)[0] for answers in (classified(network, test), classified(moved, test))]
    side = "at_most" if areas[1] < areas[0] else "at_least"  # that the base misses
    policy = [Threshold("mia_auc", side, sum(areas) / 2), Threshold("gap_to_retrain", "share_of_before", 0.5)]

    def judged(
        test: Samples | None, reference: nn.Module | None, made: nn.Module = moved
    ) -> tuple[str, dict[str, Any]]:
        before, after = classified(network, test), classified(made, test)
        third = None if reference is None else classified(reference, test)
        rows = evaluate.figures(
            Evidence(before, after, third, 1.0, 0, 1), "image_classifier", "samples", policy, 0, None
        )
        return rules.verdict(rows), {each["metric"]: each for each in rows if each["threshold"]}

    verdict, rows = judged(test, None)
    assert (
        verdict == "passed" and rows["gap_to_retrain"]["left_out"] is True and rows["gap_to_retrain"]["passed"] is None
    )
    assert "left_out" not in rows["mia_auc"]
    assert judged(None, None)[0] == "failed"  # nor is the AUC measured without a test set
    assert judged(test, None, network)[0] == "failed"
    verdict, rows = judged(test, image_classifier.load(tiny.write("vit", tmp_path / "retrained", seed=3), CPU), network)
    assert verdict == "failed" and rows["gap_to_retrain"]["passed"] is False  # untouched, and as far away as before


def test_a_base_at_its_ideal_shows_nothing_by_a_share_of_it() -> None:
    """An untouched network would meet it: none of nothing is left."""
    half = Threshold("mia_auc", "share_of_before", 0.5)
    assert [held_to(half, value, 50.0, 50.0)["passed"] for value in (50.0, 50.1, 20.0)] == [None] * 3
    gap = Threshold("gap_to_retrain", "share_of_before", 0.5)
    assert held_to(gap, 0.0, 0.0, 0.0)["passed"] is None and held_to(gap, 0.0, 1.0, 0.0)["passed"] is True


def test_an_untouched_network_whose_base_is_at_the_ideal_does_not_pass(tmp_path: Path) -> None:
    network = image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)
    every = tiny.samples(network, image_classifier, 60)
    alike = Samples(every.x[:20], every.y[:20])  # the unseen images are the forgotten ones: nothing tells them apart
    asked = [classified(network, alike) for _ in range(2)]
    policy = FAMILIES["image_classifier"].default_policy["samples"]
    rows = evaluate.figures(Evidence(*asked, None, 1.0, 0, 1), "image_classifier", "samples", policy, 0, None)
    told = {each["metric"]: each for each in rows if each["threshold"]}
    assert told["mia_auc"]["before"] == told["mia_auc"]["value"] == 50.0
    assert told["mia_auc"]["passed"] is None and rules.verdict(rows) == "failed"


@pytest.mark.parametrize(("area", "passed", "reason"), [(51.0, None, "base_near_ideal"), (80.0, True, None)])
def test_a_share_of_what_chance_may_have_given_is_missed(area: float, passed: bool | None, reason: str | None) -> None:
    """60 forgotten and 1,200 unseen images: an area of 51 is no trace of having seen the 60, whatever it is afterwards."""
    half = [Threshold("mia_auc", "share_of_before", 0.5)]

    def answering(area: float) -> ClassifierAnswers:
        sureness = [np.arange(60) + area / 100 * 1200 - 30, np.arange(1200)]  # the forgotten lie around that rank
        forget, unseen = ([(own + 0.5) / 2400, 1 - (own + 0.5) / 2400] for own in sureness)
        labels = [np.zeros(n, dtype=np.int64) for n in (60, 1200)]
        return ClassifierAnswers(
            np.stack(forget, 1), labels[0], np.stack(forget, 1), labels[0], np.stack(unseen, 1), labels[1]
        )

    asked = answering(area), answering(50.0)
    rows = evaluate.figures(Evidence(*asked, None, 1.0, 0, 1), "image_classifier", "samples", half, 0, None)
    told = {each["metric"]: each for each in rows}["mia_auc"]
    assert told["before"] == pytest.approx(area, abs=0.1) and told["value"] == pytest.approx(50.0, abs=0.1)
    assert (told["before_interval"]["low"] <= 50) is (area == 51)
    assert (told["passed"], told.get("reason")) == (passed, reason)
    assert rules.verdict(rows) == ("passed" if passed else "failed")
    assert shows_forgetting(told, "samples") is bool(passed)


def test_a_share_of_a_distance_to_an_unknown_ideal_is_missed() -> None:
    """Of a forgotten label the AUC has none: from 97 to 5 is not halved, but leaks from the other side."""
    half = [Threshold("mia_auc", "share_of_before", 0.5)]
    sure, unsure, labels = np.full((9, 2), [0.9, 0.1]), np.full((9, 2), [0.1, 0.9]), np.zeros(9, dtype=np.int64)
    base, after = (
        ClassifierAnswers(own, labels, sure, labels, other, labels) for own, other in ((sure, unsure), (unsure, sure))
    )
    for kind, passed in (("class_label", None), ("samples", False)):
        rows = evaluate.figures(Evidence(base, after, None, 1.0, 0, 1), "image_classifier", kind, half, 0, None)
        told = {each["metric"]: each for each in rows}["mia_auc"]
        assert (told["before"], told["value"], told["passed"]) == (100.0, 0.0, passed)
        assert told.get("reason") == (None if kind == "samples" else "ideal_unknown")
        assert rules.verdict(rows) == "failed"


def attacked(directory: Path, attacks: dict[str, Any], rules: list[Threshold]) -> tuple[evaluate.Report, nn.Module]:
    """Through the whole of `evaluate`, with a tiny classifier that moved a little and a reference."""
    loaded: Any = [
        SimpleNamespace(
            network=image_classifier.load(tiny.write("vit", directory / name, seed), CPU),
            family=image_classifier,
            directory=directory / name,
            digest=f"sha256:{name}",
        )
        for seed, name in enumerate(("base", "reference"))
    ]
    every, test = (tiny.samples(loaded[0].network, image_classifier, 60, seed) for seed in (0, 1))
    sets = {"forget": Samples(every.x[:20], every.y[:20]), "retain": Samples(every.x[20:], every.y[20:]), "test": test}
    network = copy.deepcopy(loaded[0].network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01)
    specification = {
        "kind": "samples",
        "evaluation": {"attacks": attacks},
        "policy": {"samples": [vars(rule) for rule in rules]},
        "base": {"family": "image_classifier"},
    }
    told: list[tuple[int, int]] = []
    before = copy.deepcopy((loaded[0].network.state_dict(), network.state_dict()))
    made = evaluate.evaluate(
        specification, Material(*loaded, None, **sets, scratch=directory), network, None, 1.0,
        lambda done, total: told.append((done, total)),
    )  # fmt: skip
    for state, side in zip(before, (loaded[0].network, network), strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in side.state_dict().items())
    assert told == sorted(told) and told[-1][0] == told[-1][1] == (3 + len(attacks)) * evaluate.PART
    return made, network


RELEARNING = {"images": 4, "retain_images": 4, "steps": 2, "batch_size": 4, "learning_rate": 0.001, "measured": 50}
ALL_MET = [Threshold("unlearning_accuracy", "at_least", 0.0)]


def test_the_attacks_that_are_named_stand_in_the_report_with_counts_and_budget(tmp_path: Path) -> None:
    named = {"relearning": RELEARNING, "quantised_copies": {"bits": 8, "measured": 50}, "membership_sweep": {}}
    made, _ = attacked(tmp_path, named, ALL_MET)
    assert beyond_the_schema(Report.model_validate(made.document)) == []
    rows = {row["attack"]: row for row in made.document["attacks"]}
    json.dumps(made.document, allow_nan=False)
    assert set(rows) == set(named) and made.document["not_tested"] == ["likelihood ratio"]
    assert all(set(row["sides"]) == {"unlearned", "base", "reference"} for row in rows.values())
    curve = rows["relearning"]
    assert curve["budget"] == {"images": 4, "retain_images": 4, "steps": 2} and curve["settings"] == RELEARNING
    assert [row["step"] for row in curve["sides"]["unlearned"]["rows"]] == [0, 1, 2]
    assert curve["n"] == 10 == curve["sides"]["reference"]["before"]["total"]
    assert curve["value"] == 100 * curve["sides"]["unlearned"]["after"]["success"] / 10
    counts = list(counts_of([row["sides"] for row in rows.values()]))
    assert len(counts) == 3 * (2 + 2 * 3 + 2 + 2 * 4 + 1 + 4 + 1)  # before, after and rows, most with what is kept
    for count in counts:
        known = stats.binomtest(count["success"], count["total"]).proportion_ci(method="wilson")
        given = count["interval"]
        assert (given["low"], given["high"]) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-5)
        assert (given["level"], given["by"]) == (95, "wilson")
    assert made.pictures["relearning.png"].startswith(b"\x89PNG")
    assert made.document["verdict"] == "passed"


def counts_of(part: Any) -> Iterator[dict[str, Any]]:
    """Every count in it, at whatever depth."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and "success" in part:
        yield part
    for each in inner:
        yield from counts_of(each)


def test_nothing_is_attacked_unless_it_is_named(tmp_path: Path) -> None:
    made, _ = attacked(tmp_path, {}, ALL_MET)
    assert made.document["attacks"] == [] and made.pictures == {}
    untested = ["relearning", "quantised copies", "membership sweep", "likelihood ratio"]
    assert made.document["not_tested"] == untested


def rules_n(made: evaluate.Report) -> tuple[int, int | None]:
    row = made.document["attacks"][0]
    return row["n"], row["n_needed"]


def test_a_rule_on_an_attack_quarantines_when_it_is_missed_or_was_not_made(tmp_path: Path) -> None:
    named = {"relearning": RELEARNING}
    for most, verdict in ((100.0, "passed"), (-1.0, "failed")):
        made, _ = attacked(tmp_path / str(most), named, [*ALL_MET, Threshold("relearning", "at_most", most)])
        assert made.document["verdict"] == verdict
        assert made.document["attacks"][0]["threshold"] == {"rule": "at_most", "value": most}
    assert rules_n(attacked(tmp_path / "few", named, [*ALL_MET, Threshold("relearning", "at_most", 5.0)])[0]) == (
        10,
        73,
    )
    made, _ = attacked(tmp_path / "other", named, [*ALL_MET, Threshold("quantised_copies", "at_most", 100.0)])
    row = made.document["attacks"][1]
    assert (row["attack"], row["value"], row["passed"], made.document["verdict"]) == (
        "quantised_copies", None, None, "failed"
    )  # fmt: skip
    assert "does not name it" in row["reason"]


def test_an_attack_that_cannot_be_made_says_why_and_stays_untested(tmp_path: Path) -> None:
    base: Any = SimpleNamespace(network=nn.Linear(1, 1), family=image_classifier)
    material = Material(base, None, None, *(Samples(torch.zeros(9, 1), torch.zeros(9).long()),) * 2, None, tmp_path)
    specification = {
        "kind": "samples",
        "evaluation": {"attacks": {"membership_sweep": {}}},
        "base": {"family": "image_classifier"},
    }
    row = robustness.attack(specification, material, nn.Linear(1, 1), None, "membership_sweep", quiet)
    assert row["value"] is None and "test set" in row["reason"] and row["n"] == 0
    assert "membership sweep" in evaluate.not_tested([row], "image_classifier")
