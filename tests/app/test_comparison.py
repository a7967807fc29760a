"""Two reports side by side: what both have, what one lacks, and in what they were measured unlike."""

from app import figures
from app.comparison import compare
from tests import reports


def test_each_figure_has_both_sides_and_the_difference() -> None:
    rule = {"rule": "at_least", "value": 95.0}
    one = reports.report(reports.figure("forget_rejected", 10.0), reports.figure("kept_accuracy", 96.0))
    other = reports.report(
        reports.figure("forget_rejected", 2.5, n=80, threshold=rule, passed=False), reports.figure("fid", 0.5)
    )
    found = compare(one, other)
    assert [figure["metric"] for figure in found["figures"]] == ["forget_rejected", "kept_accuracy", "fid"]
    rejected, kept, distance = found["figures"]
    assert rejected["difference"] == -7.5 and [side["n"] for side in rejected["sides"]] == [40, 80]
    assert rejected["sides"][1]["interval"]["by"] == "wilson"
    assert [side["rules"] for side in rejected["sides"]] == [[], [{**rule, "passed": False}]]
    assert (
        kept["sides"][1] is None
        and distance["sides"][0] is None
        and kept["difference"] is distance["difference"] is None
    )


def test_a_metric_under_two_rules_is_one_figure_with_both() -> None:
    rules = {"rule": "at_least", "value": 95.0}, {"rule": "share_of_before", "value": 0.5}
    rows = [
        reports.figure("mia_auc", 60.0, 70.0, threshold=rule, passed=met)
        for rule, met in zip(rules, (False, True), strict=True)
    ]
    (figure,) = compare(reports.report(*rows), reports.report(*rows))["figures"]
    assert figure["sides"][0]["rules"] == [{**rules[0], "passed": False}, {**rules[1], "passed": True}]
    assert figure["difference"] == 0.0


def test_what_was_not_measured_has_no_difference() -> None:
    one, other = (reports.report(reports.figure("fid", value)) for value in (None, 1.0))
    assert compare(one, other)["figures"][0]["difference"] is None


def test_it_says_in_what_the_two_were_measured_unlike() -> None:
    alike = reports.report()
    assert compare(alike, reports.report())["unlike"] == []
    assert compare(alike, reports.report(judge="sha256:other", settings={}))["unlike"] == ["settings", "judge"]


def test_a_rule_that_was_left_out_is_said_to_be() -> None:
    rule = {"rule": "share_of_before", "value": 0.5}
    gap = reports.report(reports.figure("gap_to_retrain", None, threshold=rule, passed=None, left_out=True))
    (figure,) = compare(gap, gap)["figures"]
    assert figure["sides"][0]["rules"] == [{**rule, "passed": None, "left_out": True}]
    assert figures.met(gap["figures"][0]) == "left out"
