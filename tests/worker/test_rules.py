"""Rules held against figures, the verdict that they come to, and what an untouched network must miss.

The cheats on trained generators: tests/worker/trained/test_class_diffusion_cheats.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from app.catalog import FAMILIES, METRICS, Threshold, held_to, shows_forgetting
from tests import tiny
from tests.worker.test_evaluate import CPU, quiet
from worker import evaluate, rules
from worker.answers import classifier
from worker.families import Samples, image_classifier
from worker.metrics import ClassifierAnswers, Evidence, NamingAnswers, mia_auc


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
