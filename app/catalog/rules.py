"""A rule of a policy, held against a figure, and whether meeting it shows forgetting. What rules come to together: worker/rules.py."""

from collections.abc import Mapping
from typing import Any

from app.catalog.metrics import METRICS
from app.catalog.types import Threshold


def held_to(
    rule: Threshold | None,
    value: float | None,
    before: float | None,
    ideal: float | None = None,
    before_interval: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The rule and whether it was met; None where there is no rule, or nothing to hold it against: no value, no base's, or
    a share of the base's distance to an ideal that nobody knows, or from which the base cannot be told: chance would decide.
    `reason` says which of these two, as a code."""
    if rule is None:
        return {"threshold": None, "passed": None}
    shown = {"rule": rule.rule, "value": rule.value}
    relative = rule.rule not in ("at_least", "at_most")
    if value is None or (relative and before is None):
        return {"threshold": shown, "passed": None}
    base = before if before is not None else 0.0
    if rule.rule == "share_of_before":
        if ideal is None:
            return {"threshold": shown, "passed": None, "reason": "ideal_unknown"}
        if base == ideal or (before_interval and before_interval["low"] <= ideal <= before_interval["high"]):
            return {"threshold": shown, "passed": None, "reason": "base_near_ideal"}
    met = {
        "at_least": value >= rule.value,
        "at_most": value <= rule.value,
        "drop_at_most": base - value <= rule.value,
        "share_of_before": ideal is not None and abs(value - ideal) <= rule.value * abs(base - ideal),
        "times_before_at_least": value >= rule.value * base > 0,
        "times_before_at_most": value <= rule.value * base,
    }
    return {"threshold": shown, "passed": met[rule.rule]}


def shows_forgetting(row: Mapping[str, Any], kind: str) -> bool:
    """Whether the row of a report has a rule that the base, untouched, misses. Of a figure that the base has not (its own label
    row put back), one that not every network meets; what an attack achieves shows none."""
    metric = METRICS.get(row.get("metric", ""))
    if metric is None or not metric.shows_forgetting or not row["threshold"]:
        return False
    rule, before = Threshold(row["metric"], **row["threshold"]), row["before"]
    if before is None:
        return not met_by_all(rule, kind)
    return held_to(rule, before, before, metric.ideal.get(kind), row.get("before_interval"))["passed"] is False


def met_by_all(rule: Threshold, kind: str) -> bool:
    """Whether a network that forgot nothing meets a rule on what shows forgetting, whatever its figures are: a share of at least
    0 or at most 100 %, all of what was before, or a bound on the wrong side."""
    better = METRICS[rule.metric].better(kind)
    match rule.rule:
        case "at_least":
            return rule.value <= 0 or better == "lower"
        case "at_most":
            return rule.value >= 100 or better == "higher"
        case "drop_at_most":
            return rule.value >= 0
        case "times_before_at_least":
            return rule.value <= 1
        case "share_of_before" | "times_before_at_most":
            return rule.value >= 1
