"""Which rules a figure takes: none that a version meets which is worse, or as it was."""

from typing import Any, get_args

import pytest

from app.catalog import FAMILIES, METRICS
from app.catalog.types import Rule
from app.errors import Refused
from app.protocols.schema import Protocol
from app.recipe import check_policy
from demo.networks import CLASSIFIER_POLICY
from tests.app.test_protocols import PLAIN

CASES = [
    (family, kind, name, rule)
    for family, each in FAMILIES.items()
    for kind in each.default_policy
    for name, metric in METRICS.items()
    if family in metric.families
    for rule in get_args(Rule)
]


def takes(family: str, kind: str, name: str, rule: str) -> bool:
    try:
        check_policy(family, {kind: [{"metric": name, "rule": rule, "value": 0.5}]})
    except Refused as refused:
        assert (refused.code, refused.field) == ("impossible-combination", f"policy.{kind}[0].rule")
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_its_own_policy(family: str) -> None:
    own: dict[str, Any] = {
        kind: [vars(rule) for rule in rules] for kind, rules in FAMILIES[family].default_policy.items()
    }
    assert check_policy(family, own) == own


def test_the_demo_s_policy_is_taken() -> None:
    assert check_policy("image_classifier", {"samples": CLASSIFIER_POLICY})["samples"] == CLASSIFIER_POLICY


def test_a_share_is_taken_of_a_distance_to_a_known_ideal_alone() -> None:
    shares = {case for case in CASES if case[3] == "share_of_before"}
    assert {case for case in shares if takes(*case)} == {case for case in shares if case[1] in METRICS[case[2]].ideal}
    assert {case[:3] for case in shares if case[2] == "mia_auc" and takes(*case)} == {
        ("image_classifier", "samples", "mia_auc")
    }
    assert not takes("clip", "class_label", "test_accuracy", "share_of_before")


def test_a_drop_is_bounded_of_what_is_kept_alone() -> None:
    taken = {case[2] for case in CASES if case[3] == "drop_at_most" and takes(*case)}
    assert taken == {
        "retain_accuracy", "test_accuracy", "kept_accuracy", "per_class_accuracy", "inception_score", "ira", "cra",
        "clip_score", "clip_similarity",
    }  # fmt: skip


def test_no_worse_version_meets_a_multiple_of_before() -> None:
    taken = {rule: {case[2] for case in CASES if case[3] == rule and takes(*case)} for rule in get_args(Rule)}
    up, down = taken["times_before_at_least"], taken["times_before_at_most"]
    assert {"reconstruction_distance_forget", "kept_accuracy", "unlearning_accuracy"} <= up
    assert {"reconstruction_distance_retain", "fid", "forget_top1", "detected_prompts", "gap_to_retrain"} <= down
    assert up & down == {"mia_efficacy", "mia_auc", "unlearning_accuracy", "separability", "changed_weights"}
    assert takes("image_classifier", "samples", "unlearning_accuracy", "times_before_at_most")
    assert not takes("image_classifier", "class_label", "unlearning_accuracy", "times_before_at_most")


def test_a_value_of_its_own_is_taken_of_every_figure() -> None:
    assert all(takes(*case) for case in CASES if case[3] in ("at_least", "at_most"))


def test_a_protocol_s_drop_is_of_what_is_kept_too() -> None:
    def protocol(figure: str) -> Protocol:
        rule = {"figure": figure, "rule": "drop_at_most", "value": 10.0}
        return Protocol.model_validate(PLAIN | {"figures": [figure], "thresholds": [rule]})

    assert protocol("retain_accuracy").thresholds
    for name in ("fid", "forget_top1"):
        with pytest.raises(ValueError, match=f"{name} is no such figure"):
            protocol(name)
