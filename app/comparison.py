"""Two reports side by side: each figure of both, how far apart they are, and which rule each met.

It says in what the two were measured unlike, too: figures by different judges, or of different settings, differ for that alone.
"""

from collections.abc import Mapping
from typing import Any

ALIKE = (
    "kind",
    "settings",
    "base",
    "judge",
    "evaluators",
    "reference",
)  # what tells whether two reports measured the same way


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`difference` is the second value less the first; None, and no side, where a report lacks the figure."""
    sides = [_by_metric(report) for report in (one, other)]
    names = list(dict.fromkeys(name for side in sides for name in side))

    def said(report: Mapping[str, Any], part: str) -> Any:
        return report.get(part) or None  # an older report lacks what a later one says nothing by

    return {
        "verdicts": [one["verdict"], other["verdict"]],
        "unlike": [part for part in ALIKE if said(one, part) != said(other, part)],
        "figures": [_figure(name, sides[0].get(name, []), sides[1].get(name, [])) for name in names],
    }


def _by_metric(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A metric under several rules stands in several rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for figure in report["figures"]:
        found.setdefault(figure["metric"], []).append(figure)
    return found


def _figure(metric: str, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    known = (one or other)[0]
    first, second = (rows[0]["value"] if rows else None for rows in (one, other))
    return {
        "metric": metric,
        **{part: known[part] for part in ("name", "title", "unit", "direction")},
        "sides": [_side(one), _side(other)],
        "difference": None if first is None or second is None else round(second - first, 6),
    }


def _rule(row: Mapping[str, Any]) -> dict[str, Any]:
    held = {**row["threshold"], "passed": row["passed"]}
    return {**held, "left_out": True} if row.get("left_out") else held


def _side(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    ruled = [row for row in rows if row["threshold"]]
    return {
        "value": rows[0]["value"],
        "interval": rows[0].get("interval"),
        "n": rows[0]["n"],
        "rules": [_rule(row) for row in ruled],
    }
