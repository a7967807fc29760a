"""What the rules of a policy come to together. Each against its figure: app/catalog/rules.py.

What could not be measured is missed. One thing alone is left out, and said so: a rule on a figure that is a distance to a
retrained network, where the request names none and another rule of the policy shows forgetting.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from app.catalog import METRICS, Metric, Threshold, n_needed, shows_forgetting

NEEDS = {  # figures of an earlier request that nobody can measure again: earlier bases remember someone, and are not opened
    "gap_to_retrain": "needs_reference",
    "mutual_information_to_noise": "needs_base",
    "unlearning_accuracy_row_restored": "needs_base",
}
COMPARES = tuple(  # figures of an earlier request that are asked again with the test set
    name for name, each in METRICS.items() if each.shows_forgetting and "test" in each.needs and name not in NEEDS
)


def needed(rule: Threshold | None, metric: Metric) -> int | None:
    """The smallest n at which a share can be shown to meet the rule; None where no such n is known. What a policy's warnings
    compare with, too."""
    return n_needed(rule) if rule and (metric.interval == "wilson" or metric.n_from) else None


def without_reference(rows: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Where the request names no retrained network: the rows, `left_out` where a rule is on a figure that needs one. Only
    if another rule was met that the base misses: else nothing was shown, and that one is missed, too."""
    shown = any(row["passed"] for row in rows if shows_forgetting(row, kind))
    return [{**row, "left_out": True} if shown and row["threshold"] and _compares(row) else dict(row) for row in rows]


def _compares(row: Mapping[str, Any]) -> bool:
    return "reference" in METRICS[row["metric"]].needs


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Passed when every rule was met that is not left out. What could not be measured is missed."""
    ruled = [row for row in rows if row["threshold"] is not None and not row.get("left_out")]
    return "passed" if all(row["passed"] for row in ruled) else "failed"


def by_unfit(unfit: Set[str], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows, where judges of these digests are unfit: what they measured is shown, and met no rule and missed none."""
    return [{**row, "passed": None} if unfit & set(row.get("evaluators", ())) else dict(row) for row in rows]


def why_failed(
    rows: Sequence[Mapping[str, Any]], promises: Sequence[Mapping[str, Any]], unfit: Set[str] = frozenset()
) -> list[str]:
    """Nothing when the verdict is passed. `unfit`: digests of judges that are."""
    missed = ["threshold_missed"] if verdict(rows) == "failed" else []
    if any(unfit & set(row.get("evaluators", ())) for row in rows if row["threshold"]):
        missed += ["judge_unfit"]
    return missed + (["broken_promise"] if any(each["kept"] is False for each in promises) else [])
