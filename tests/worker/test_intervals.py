"""Which figures carry an interval, and that it is the right one: shares and means of shares by Wilson, the
smallest share by Clopper and Pearson, AUCs by Newcombe, means by the bootstrap, others none."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from app.catalog import METRICS, Threshold, wilson
from app.report import Figure
from tests.app.test_report import beyond_the_schema
from tests.worker.metrics import test_reconstruction_metrics as restoring
from worker import by_name, evaluate, intervals
from worker.metrics import Answers, ClassifierAnswers, Evidence, GeneratorAnswers, NamingAnswers, integrity

LABELS = 6


def drawn(seed: int, each: int = 15) -> GeneratorAnswers:
    """A generator of six labels, label 1 to be forgotten; the judge errs or rejects now and then."""
    chance = np.random.default_rng(seed)
    asked = np.repeat(np.arange(LABELS), each)
    judged = np.where(chance.random(len(asked)) < 0.3, chance.integers(-1, LABELS, len(asked)), asked)
    return GeneratorAnswers(
        forget_labels=(1,), asked=asked, judged=judged, features=chance.random((len(asked), 4)),
        restored=judged[asked == 1], real_features=chance.random((30, 4)), real_labels=chance.integers(0, LABELS, 30),
        images=np.zeros((LABELS, 1, 2, 2, 1), dtype=np.uint8), forced=np.where(judged < 0, 0, judged),
        contexts=np.arange(len(asked)) % 3, context_forced=chance.integers(0, 3, len(asked)),
    )  # fmt: skip


def classified(seed: int) -> ClassifierAnswers:
    chance = np.random.default_rng(seed)
    sizes = {"forget": 37, "retain": 41, "test": 43}
    rows: dict[str, Any] = {name: chance.dirichlet(np.ones(LABELS), n) for name, n in sizes.items()}
    return ClassifierAnswers(**rows, **{f"{name}_labels": chance.integers(0, LABELS, n) for name, n in sizes.items()})


def named(seed: int) -> NamingAnswers:
    chance = np.random.default_rng(seed)
    return NamingAnswers(*(chance.random(n) < 0.6 for n in (17, 29, 31)))


def rows_of(family: str, before: Answers, after: Answers, *rules: Threshold) -> dict[str, dict[str, Any]]:
    rows = evaluate.figures(Evidence(before, after, None, 1.0, 1, 2), family, "class_label", rules, 3, None)
    assert beyond_the_schema([Figure.model_validate_json(json.dumps(row)) for row in rows]) == []
    return {row["metric"]: row for row in rows}


@pytest.mark.parametrize(
    ("family", "make"),
    [("class_diffusion", drawn), ("image_classifier", classified), ("clip", classified), ("vision_language", named)],
)
def test_every_share_is_a_count_and_has_its_wilson_interval(family: str, make: Any) -> None:
    rows = rows_of(family, make(1), make(2))
    for name, row in rows.items():
        assert (row["interval"] is None) == (METRICS[name].interval is None or row["value"] is None), name
        if METRICS[name].interval != "wilson" or row["value"] is None:
            continue
        for side, field in (("value", "interval"), ("before", "before_interval")):
            if row[side] is None:  # the base has no rows to be put back
                assert name == "unlearning_accuracy_row_restored" and row[field] is None
                continue
            count = row[side] * row["n"] / 100
            assert count == pytest.approx(round(count), abs=1e-4), name
            known = stats.binomtest(round(count), row["n"]).proportion_ci(method="wilson")
            given = row[field]
            assert (given["low"], given["high"]) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-5)
            assert (given["level"], given["by"]) == (95, "wilson") and given["low"] <= row[side] <= given["high"]


def test_distances_and_information_of_a_network_that_restores_have_no_interval() -> None:
    rows = rows_of("masked_autoencoder", restoring.ordinary(), restoring.answers())
    assert rows["reconstruction_distance_forget"]["value"] is not None
    assert {name for name, row in rows.items() if row["interval"] is not None} == {"separability"}


def scipy_s(right: int, n: int, method: str = "wilson", level: float = 0.95) -> tuple[float, float]:
    known = stats.binomtest(right, n).proportion_ci(confidence_level=level, method=method)
    return 100 * known.low, 100 * known.high


def test_the_mean_over_labels_that_were_asked_alike_has_the_interval_of_all_their_images() -> None:
    """Fifteen images of each label, and of each context over the five kept labels five: as one share of 75."""
    after = drawn(2)
    rows, kept = rows_of("text_to_image", drawn(1), after), after.asked != 1
    for name, hits in (
        ("kept_accuracy", after.judged == after.asked),
        ("ira", after.forced == after.asked),
        ("cra", after.context_forced == after.contexts),
    ):
        right, given = int(hits[kept].sum()), rows[name]["interval"]
        assert rows[name]["value"] == pytest.approx(100 * right / 75, abs=1e-5)
        assert (given["low"], given["high"]) == pytest.approx(scipy_s(right, 75), abs=1e-5), name
        assert given["by"] == "macro" and rows[name]["before_interval"]["by"] == "macro"


def test_the_mean_of_shares_of_unlike_n_is_never_surer_than_its_smaller_parts_allow() -> None:
    assert intervals.of_mean([(8, 10), (32, 40)]) == pytest.approx(intervals.of_mean([(32, 40), (8, 10)]))
    low, high = intervals.of_mean([(8, 10), (32, 40)])  # n = 4 / (1 / 10 + 1 / 40) = 32, of which 80 % are right
    n, z = 32, stats.norm.ppf(0.975)
    for end in (low / 100, high / 100):  # where the score statistic is z
        assert abs(0.8 - end) == pytest.approx(z * (end * (1 - end) / n) ** 0.5, abs=1e-9)
    low, high = intervals.of_mean([(20, 20)] * 9)
    assert (low, high) == pytest.approx(scipy_s(180, 180)) and low < 98


def test_the_worst_label_s_interval_holds_for_all_labels_at_once() -> None:
    after = drawn(2)
    row = rows_of("class_diffusion", drawn(1), after)["per_class_accuracy"]
    ends = [
        scipy_s(int(np.sum(after.judged[after.asked == label] == label)), 15, "exact", 0.95 ** (1 / 5))
        for label in (0, 2, 3, 4, 5)
    ]
    given = row["interval"]
    expected = min(low for low, _ in ends), min(high for _, high in ends)
    assert (given["low"], given["high"]) == pytest.approx(expected, abs=1e-5)
    assert given["by"] == "sidak" and given["low"] < row["value"] < given["high"]
    for right, n in ((0, 7), (3, 7), (7, 7)):
        assert intervals.of_smallest([(right, n)]) == pytest.approx(scipy_s(right, n, "exact"), abs=1e-9)


def test_the_intervals_of_several_shares_hold_the_truth_as_often_as_they_say() -> None:
    """Nine labels, of unlike chances for the mean: 95 % of 1,000 rounds, within three standard errors and Wilson's own waves; of
    like chances for the smallest, 95 % at least. The worst label's own interval does not: it was picked because it fell low."""
    chance, rounds = np.random.default_rng(5), 1000
    shares = np.linspace(0.5, 0.97, 9)
    held = {"mean": 0, "smallest": 0, "worst label's own": 0}
    for _ in range(rounds):
        low, high = intervals.of_mean([(right, 20) for right in chance.binomial(20, shares).tolist()])
        held["mean"] += low <= 100 * shares.mean() <= high
        alike = [(right, 20) for right in chance.binomial(20, 0.9, 9).tolist()]
        low, high = intervals.of_smallest(alike)
        held["smallest"] += low <= 90 <= high
        low, high = wilson(*min(alike))
        held["worst label's own"] += low <= 90 <= high
    assert 0.92 <= held["mean"] / rounds <= 0.99
    assert held["smallest"] / rounds >= 0.95
    assert held["worst label's own"] / rounds < 0.9


def test_aucs_have_newcombe_s_of_both_sets_sizes() -> None:
    """At its ends |area - t| is 1.96 standard deviations after Hanley and McNeil, with both sizes replaced by their mean."""
    answers, restored = classified(2), restoring.answers()
    sizes = {
        "mia_auc": (37, len(answers.test_labels)),
        "separability": (len(restored.features["forget"]), len(restored.features["test"])),
    }
    for side, (name, (m, n)) in zip((answers, restored), sizes.items(), strict=True):
        module, evidence = by_name.metric(name), Evidence(side, side, None, 1.0, 1, 2)
        value, measured = module.measure(side, evidence)
        given = intervals.interval(module, name, side, evidence, value, measured, 0)
        assert given is not None and given["by"] == "newcombe" and given["low"] < value < given["high"] < 100
        for end in (given["low"] / 100, given["high"] / 100):
            spread = (m + n) / 2 - 1
            variance = end * (1 - end) + spread * (end / (2 - end) + 2 * end**2 / (1 + end) - 2 * end**2)
            assert abs(value / 100 - end) == pytest.approx(1.959964 * (variance / (m * n)) ** 0.5, abs=1e-6), name


def test_a_retrained_network_s_target_has_an_interval_and_an_ideal_has_none() -> None:
    before, after, reference = (classified(seed) for seed in (1, 2, 3))
    judged = drawn(1), drawn(2), drawn(3)
    for family, sides in (("image_classifier", (before, after, reference)), ("class_diffusion", judged)):
        own = rows_of(family, sides[0], sides[2])
        rows = evaluate.figures(Evidence(*sides, 1.0, 1, 2), family, "class_label", (), 3, None)
        assert beyond_the_schema([Figure.model_validate_json(json.dumps(row)) for row in rows]) == []
        targets = {row["metric"]: row for row in rows if row["target_is"] == "retrained"}
        assert {"integrity", "kept_accuracy"} <= set(targets) or {"mia_auc", "retain_accuracy"} <= set(targets)
        for name, row in targets.items():
            assert row["target_interval"] == own[name]["interval"], name
            assert (row["target_interval"] is not None) == (METRICS[name].interval is not None), name
        assert all(row["target_interval"] is None for row in rows if row["target_is"] != "retrained")
        assert all(row["target_interval"] is None for row in own.values())


def test_what_was_not_measured_has_no_interval() -> None:
    answers = classified(1)
    without = ClassifierAnswers(
        answers.forget, answers.forget_labels, answers.retain, answers.retain_labels, answers.test[:0], answers.test_labels[:0]
    )  # fmt: skip
    row = rows_of("image_classifier", without, without)["test_accuracy"]
    assert row["value"] is row["interval"] is row["before_interval"] is None


def test_the_rows_say_which_n_their_rule_needs() -> None:
    rules = Threshold("unlearning_accuracy", "at_least", 95.0), Threshold("kept_accuracy", "at_least", 90.0)
    rows = rows_of("class_diffusion", drawn(1), drawn(2), *rules)
    assert rows["unlearning_accuracy"]["n_needed"] == 73 > rows["unlearning_accuracy"]["n"]
    assert rows["kept_accuracy"]["n_needed"] is None and rows["forget_rejected"]["n_needed"] is None


def test_integrity_s_interval_is_scipy_s_percentile_bootstrap() -> None:
    before, after = drawn(1, each=40), drawn(2, each=40)
    row = rows_of("class_diffusion", before, after)["integrity"]
    each = integrity.per_image(after, Evidence(before, after, None, 1.0, 1, 2))
    assert row["value"] == pytest.approx(each.mean(), abs=1e-6) and row["n"] == len(each) == 200
    known = stats.bootstrap((each,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(8))
    width = known.confidence_interval.high - known.confidence_interval.low
    assert row["interval"]["by"] == "bootstrap"
    assert row["interval"]["low"] == pytest.approx(known.confidence_interval.low, abs=width / 10)
    assert row["interval"]["high"] == pytest.approx(known.confidence_interval.high, abs=width / 10)
    assert row["before_interval"] is None  # the base's distance to itself is 0, and nothing varies
    assert rows_of("class_diffusion", before, after)["integrity"]["interval"] == row["interval"]


def test_too_few_images_have_no_bootstrap() -> None:
    assert intervals.bootstrap(np.arange(intervals.LEAST - 1.0), 0) is None
    assert intervals.bootstrap(np.arange(float(intervals.LEAST)), 0) is not None
    assert intervals.bootstrap(np.ones(100), 0) is None


def test_a_metric_gives_what_its_interval_is_made_from() -> None:
    for name in METRICS:
        assert hasattr(by_name.metric(name), "counts") == (METRICS[name].interval in ("macro", "sidak")), name
        assert hasattr(by_name.metric(name), "sizes") == (METRICS[name].interval == "newcombe"), name
        assert hasattr(by_name.metric(name), "per_image") == (METRICS[name].interval == "bootstrap"), name
