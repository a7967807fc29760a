"""Wilson's interval against scipy's, and the n at which a threshold on a share can be shown at all."""

from typing import Any

import pytest
from scipy.stats import binomtest

from app.catalog import ATTACKS, FAMILIES, METRICS, Threshold, n_needed, wilson
from app.recipe import check_evaluation, policy_warnings
from worker.rules import needed


@pytest.mark.parametrize("n", [1, 2, 7, 20, 73, 500, 100_000])
def test_wilson_s_interval_is_scipy_s(n: int) -> None:
    for right in {0, 1, n // 3, n // 2, n - 1, n}:
        known = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(right, n) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-9)


def test_an_interval_ends_exactly_where_nothing_more_is_possible() -> None:
    assert wilson(0, 9)[0] == 0.0 and wilson(9, 9)[1] == 100.0


@pytest.mark.parametrize("value", [0.5, 20.0, 50.0, 90.0, 95.0, 99.0, 99.9])
def test_the_n_needed_is_the_smallest_at_which_the_best_answer_reaches_the_threshold(value: float) -> None:
    n = n_needed(Threshold("forget_rejected", "at_least", value))
    assert n is not None and wilson(n, n)[0] >= value
    assert n == 1 or wilson(n - 1, n - 1)[0] < value
    n = n_needed(Threshold("forget_rejected", "at_most", value))
    assert n is not None and wilson(0, n)[1] <= value
    assert n == 1 or wilson(0, n - 1)[1] > value


def test_some_needs_by_hand() -> None:
    needs = {value: n_needed(Threshold("unlearning_accuracy", "at_least", value)) for value in (95.0, 90.0, 0.0, 100.0)}
    assert needs == {95.0: 73, 90.0: 35, 0.0: 1, 100.0: None}
    assert n_needed(Threshold("forget_rejected", "at_most", 20.0)) == 16
    assert n_needed(Threshold("forget_rejected", "at_most", 0.0)) is None
    assert n_needed(Threshold("kept_accuracy", "drop_at_most", 3.0)) is None
    assert n_needed(Threshold("unlearning_accuracy", "at_least", 99.99999999999999)) is not None


def test_shares_have_wilson_s_interval_and_what_is_none_has_not() -> None:
    shares = {name for name, metric in METRICS.items() if metric.interval == "wilson"}
    assert shares == {
        "unlearning_accuracy", "forget_top1", "forget_top5", "retain_accuracy", "test_accuracy", "mia_efficacy",
        "forget_rejected", "unlearning_accuracy_row_restored", "detected_prompts", "detector_rejected",
    }  # fmt: skip
    assert all(METRICS[name].unit == "%" for name in shares)
    means = {name for name, metric in METRICS.items() if metric.interval == "bootstrap"}
    assert means == {"integrity", "clip_score", "clip_similarity", "integrity_lpips"}
    others = {
        name: metric.interval for name, metric in METRICS.items() if name not in shares | means and metric.interval
    }
    assert others == {
        "kept_accuracy": "macro", "ira": "macro", "cra": "macro", "per_class_accuracy": "sidak", "mia_auc": "newcombe",
        "separability": "newcombe",
    }  # fmt: skip


def test_a_metric_s_n_follows_a_set_or_a_setting_that_its_family_has() -> None:
    for name, metric in METRICS.items():
        settings = [FAMILIES[family].evaluation for family in metric.families]
        known = metric.n_from in (None, "retain", "test") or any(metric.n_from in each for each in settings)
        assert known, name


def test_what_a_warning_compares_with_stands_in_the_report_too() -> None:
    """Else a rule would be warned of when it is written, and its row in the report would say nothing."""
    for name, metric in METRICS.items():
        rule = Threshold(name, "at_least", 80.0)
        assert needed(rule, metric) == (16 if metric.interval == "wilson" or metric.n_from else None), name
        assert needed(None, metric) is None
    assert needed(Threshold("per_class_accuracy", "at_least", 80.0), METRICS["per_class_accuracy"]) == 16


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_s_own_policy_asks_for_more_than_its_own_settings_can_show(family: str) -> None:
    policy = {kind: [vars(rule) for rule in rules] for kind, rules in FAMILIES[family].default_policy.items()}
    assert policy_warnings(family, policy, check_evaluation(family, {})) == []


def test_too_few_images_for_a_threshold_are_said_with_the_n_that_it_needs() -> None:
    rules = [
        {"metric": "unlearning_accuracy", "rule": "at_least", "value": 95.0},
        {"metric": "forget_rejected", "rule": "at_most", "value": 20.0},
        {"metric": "kept_accuracy", "rule": "drop_at_most", "value": 3.0},
        {"metric": "per_class_accuracy", "rule": "at_least", "value": 80.0},
    ]
    evaluation = check_evaluation("class_diffusion", {"forget_samples": 40, "samples_per_label": 10})
    found = policy_warnings("class_diffusion", {"class_label": rules}, evaluation)
    assert [(each["field"], each["n"], each["n_needed"]) for each in found] == [
        ("policy.class_label[0]", 40, 73),
        ("policy.class_label[3]", 10, 16),
    ]
    assert "91.2" in found[0]["rule"] and "forget_samples" in found[0]["remedy"] and "73" in found[0]["remedy"]
    assert "samples_per_label" in found[1]["remedy"]


def test_a_threshold_that_no_n_can_show_says_so() -> None:
    rules = [
        {"metric": "unlearning_accuracy", "rule": "at_least", "value": 95.0},
        {"metric": "forget_rejected", "rule": "at_most", "value": 0.0},
    ]
    (found,) = policy_warnings("class_diffusion", {"class_label": rules}, check_evaluation("class_diffusion", {}))
    assert found["n_needed"] is None and "above 0" in found["remedy"]


def warned(family: str, rule: dict[str, Any], evaluation: dict[str, Any] | None = None, **sets: Any) -> list[Any]:
    """With a rule that shows forgetting before it."""
    showing = next(
        rule for rule in FAMILIES[family].default_policy["class_label"] if METRICS[rule.metric].shows_forgetting
    )
    policy = {"class_label": [vars(showing), rule]}
    found = policy_warnings(family, policy, check_evaluation(family, evaluation or {}), sets)
    assert all(each["field"] == "policy.class_label[1]" for each in found)
    return [(each["n"], each["n_needed"], each["remedy"]) for each in found]


def test_the_size_of_a_registered_set_is_the_most_that_n_can_be() -> None:
    for name in ("test", "retain"):
        rule = {"metric": f"{name}_accuracy", "rule": "at_least", "value": 95.0}
        assert warned("image_classifier", rule, **{name: 72}) == [(72, 73, f"Name a {name} set of at least 73 images.")]
        assert warned("image_classifier", rule, **{name: 73}) == warned("image_classifier", rule) == []
        drop = {"metric": f"{name}_accuracy", "rule": "drop_at_most", "value": 2.0}
        assert warned("image_classifier", drop, **{name: 1}) == []


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "test" in metric.needs])
def test_a_figure_that_needs_a_test_set_is_warned_of_where_there_is_none(name: str) -> None:
    rule = {"metric": name, "rule": "share_of_before", "value": 0.5}
    for family in METRICS[name].families:
        ((n, needs, remedy),) = warned(family, rule, test=None)
        assert (n, needs) == (0, None) and remedy
        assert warned(family, rule, test=9) == warned(family, rule) == []


@pytest.mark.parametrize("name", ATTACKS)
def test_a_rule_on_an_attack_is_warned_of_where_it_is_not_made_or_asks_too_few(name: str) -> None:
    attack, rule = ATTACKS[name], {"metric": name, "rule": "at_most", "value": 5.0}
    family = attack.families[0]
    assert [each[:2] for each in warned(family, rule)] == [(0, None)]
    for measured, found in ((72, [(72, 73)]), (73, [])):
        parameters = {"measured": measured} if "measured" in attack.parameters else {}
        if "shadows" not in attack.parameters:
            given = warned(family, rule, {"attacks": {name: parameters}})
            assert [each[:2] for each in given] == (found if attack.counts else [])
            assert all(f"attacks.{name}.measured" in each[2] for each in given)


def test_where_the_forget_set_decides_n_nothing_is_said_beforehand() -> None:
    rules = [{"metric": "unlearning_accuracy", "rule": "at_least", "value": 99.9}]
    assert policy_warnings("image_classifier", {"class_label": rules}, {}) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_asks_for_no_forgetting_is_warned_of_and_says_what_would(family: str) -> None:
    defaults = {kind: [vars(rule) for rule in rules] for kind, rules in FAMILIES[family].default_policy.items()}
    showing = {name for name, metric in METRICS.items() if metric.shows_forgetting}
    for kind, rules in defaults.items():
        keeping = [rule for rule in rules if rule["metric"] not in showing]
        for left in ([], keeping):
            (found,) = policy_warnings(family, {**defaults, kind: left}, check_evaluation(family, {}))
            assert (found["field"], found["n"], found["n_needed"]) == (f"policy.{kind}", None, None)
            named = {name for name in showing if name in found["remedy"]}
            assert named and all(family in METRICS[name].families for name in named)


@pytest.mark.parametrize(
    ("metric", "rule", "value", "shows"),
    [
        ("unlearning_accuracy", "at_least", 0.0, False),
        ("unlearning_accuracy", "at_least", 0.1, True),
        ("unlearning_accuracy", "at_most", 50.0, False),
        ("gap_to_retrain", "at_most", 100.0, False),
        ("gap_to_retrain", "share_of_before", 1.0, False),
        ("gap_to_retrain", "share_of_before", 0.9, True),
        ("unlearning_accuracy", "times_before_at_least", 1.0, False),
        ("gap_to_retrain", "times_before_at_most", 1.0, False),
    ],
)
def test_a_rule_that_every_network_meets_asks_for_no_forgetting(
    metric: str, rule: str, value: float, shows: bool
) -> None:
    policy = {"class_label": [{"metric": metric, "rule": rule, "value": value}]}
    fields = [each["field"] for each in policy_warnings("image_classifier", policy, {})]
    assert ("policy.class_label" not in fields) is shows
