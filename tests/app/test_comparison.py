"""Two reports side by side: what both have, what one lacks, and in what they were measured unlike."""

from typing import Any

from app import figures
from app.comparison import compare
from tests import reports


def test_each_figure_has_both_sides_and_the_difference() -> None:
    rule = {"rule": "at_least", "value": 95.0}
    one = reports.report(reports.figure("forget_rejected", 10.0), reports.figure("kept_accuracy", 96.0))
    other = reports.report(
        reports.figure("forget_rejected", 2.5, n=80, threshold=rule, passed=False), reports.figure("fid", 0.5)
    )
    found = compare(one, other, same_forgotten=True)
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
    (figure,) = compare(reports.report(*rows), reports.report(*rows), same_forgotten=True)["figures"]
    assert figure["sides"][0]["rules"] == [{**rules[0], "passed": False}, {**rules[1], "passed": True}]
    assert figure["difference"] == 0.0


def test_what_was_not_measured_has_no_difference() -> None:
    one, other = (reports.report(reports.figure("fid", value)) for value in (None, 1.0))
    assert compare(one, other, same_forgotten=True)["figures"][0]["difference"] is None


def test_it_says_in_what_the_two_were_measured_unlike() -> None:
    alike, unlike = reports.report(), reports.report(judge="sha256:other", settings={})
    assert compare(alike, reports.report(), same_forgotten=True)["unlike"] == []
    assert compare(alike, unlike, same_forgotten=True)["unlike"] == ["settings", "judge"]
    assert compare(alike, reports.report(), same_forgotten=False)["unlike"] == ["forgotten"]
    assert compare(alike, unlike, same_forgotten=False)["unlike"] == ["settings", "judge", "forgotten"]


def test_attacks_stand_beside_each_other_with_value_interval_and_n_of_each_side() -> None:
    rule = {"rule": "at_most", "value": 20.0}
    not_made = {"value": None, "interval": None, "n": 0, "sides": {}, "budget": {}, "reason": "It reads no words."}
    one = reports.report(
        attacks=[
            reports.attack("relearning", 30, 40, threshold=rule, passed=False),
            reports.attack("quantised_copies", 1, 50),
        ]
    )
    other = reports.report(
        attacks=[reports.attack("relearning", 2, 20), reports.attack("paraphrases", 0, 40, **not_made)]
    )
    found = compare(one, other, same_forgotten=True)
    relearning, quantised, paraphrases = found["attacks"]
    assert [row["attack"] for row in found["attacks"]] == ["relearning", "quantised_copies", "paraphrases"]
    assert relearning["title"] == "Relearning" and relearning["difference"] == -65.0
    assert [side["value"] for side in relearning["sides"]] == [75.0, 10.0]
    assert [side["n"] for side in relearning["sides"]] == [40, 20]
    assert [round(side["interval"]["high"]) for side in relearning["sides"]] == [86, 30]
    assert [side["rules"] for side in relearning["sides"]] == [[{**rule, "passed": False}], []]
    assert quantised["sides"][1] is None and quantised["difference"] is None
    assert paraphrases["sides"][0] is None and paraphrases["sides"][1]["reason"] == "It reads no words."


def test_promises_of_both_are_kept_broken_or_unprobed() -> None:
    def promise(request: str, kept: bool | None, reason: str | None = None) -> dict[str, Any]:
        return {"request": request, "kind": "samples", "probe": None, "figures": [], "kept": kept, "reason": reason}

    one = reports.report(promises=[promise("req_1", True), promise("req_2", None, "forget_set_purged")])
    other = reports.report(promises=[promise("req_1", False), promise("req_3", None, "nothing_promised")])
    assert compare(one, other, same_forgotten=False)["promises"] == [
        {
            "request": "req_1",
            "kind": "samples",
            "sides": [{"kept": "kept", "reason": None}, {"kept": "broken", "reason": None}],
        },
        {
            "request": "req_2",
            "kind": "samples",
            "sides": [{"kept": "unprobed", "reason": "forget_set_purged"}, None],
        },
        {
            "request": "req_3",
            "kind": "samples",
            "sides": [None, {"kept": "not binding", "reason": "nothing_promised"}],
        },
    ]


def test_reports_of_earlier_versions_have_neither() -> None:
    old = reports.report(reports.figure("fid", 1.0))
    found = compare(old, old, same_forgotten=True)
    assert found["attacks"] == found["promises"] == [] and len(found["figures"]) == 1


def test_a_rule_that_was_left_out_is_said_to_be() -> None:
    rule = {"rule": "share_of_before", "value": 0.5}
    gap = reports.report(reports.figure("gap_to_retrain", None, threshold=rule, passed=None, left_out=True))
    (figure,) = compare(gap, gap, same_forgotten=True)["figures"]
    assert figure["sides"][0]["rules"] == [{**rule, "passed": None, "left_out": True}]
    assert figures.met(gap["figures"][0]) == "left out"
