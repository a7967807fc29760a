"""Which figures carry an interval, and that it is the right one: shares by Wilson, means by the bootstrap, others none."""

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from app.catalog import METRICS, Threshold
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
        images=np.zeros((LABELS, 1, 2, 2, 1), dtype=np.uint8),
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
        assert METRICS[name].interval == "wilson" or row["interval"] is None or name == "integrity"
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
    assert {row["interval"] for row in rows.values()} == {None}


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


def test_a_bootstrap_s_metric_gives_the_values_that_it_is_the_mean_of() -> None:
    for name in METRICS:
        assert hasattr(by_name.metric(name), "per_image") == (METRICS[name].interval == "bootstrap"), name
