"""Two reports side by side: each figure and attack of both, how far apart they are, which rule each met, and whose promises
each kept.

It says in what the two were measured unlike, too: figures by different judges, or of different settings, differ for that alone,
and so do those of versions that forgot something else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

ALIKE = (
    "kind",
    "settings",
    "base",
    "judge",
    "evaluators",
    "reference",
)  # what tells whether two reports measured the same way
STATES = {True: "kept", False: "broken", None: "unprobed"}

Row = Mapping[str, Any]
Rows = Sequence[Row]


def compare(one: Mapping[str, Any], other: Mapping[str, Any], same_forgotten: bool) -> dict[str, Any]:
    """`difference` is the second value less the first; None, and no side, where a report lacks the row. `same_forgotten`:
    whether both are known to have forgotten the same, which reports do not tell; else `unlike` ends with `forgotten`."""

    def said(report: Mapping[str, Any], part: str) -> Any:
        return report.get(part) or None  # an older report lacks what a later one says nothing by

    unlike = [part for part in ALIKE if said(one, part) != said(other, part)]
    return {
        "verdicts": [one["verdict"], other["verdict"]],
        "unlike": unlike if same_forgotten else [*unlike, "forgotten"],
        "figures": [
            {**_told(rows, ("metric", "name", "title", "unit", "direction")), **_both(rows)}
            for rows in _paired(one["figures"], other["figures"], "metric")
        ],
        "attacks": [
            {**_told(rows, ("attack", "title", "unit", "direction")), **_both(rows)}
            for rows in _paired(one.get("attacks", ()), other.get("attacks", ()), "attack")
        ],
        "promises": [
            {**_told(rows, ("request", "kind")), "sides": [_promise(side) for side in rows]}
            for rows in _paired(one.get("promises", ()), other.get("promises", ()), "request")
        ],
    }


def _paired(one: Rows, other: Rows, key: str) -> list[tuple[list[Row], list[Row]]]:
    """Rows of both sides by what they are about, in order of appearance; under several rules there are several."""
    names = list(dict.fromkeys(row[key] for row in (*one, *other)))
    return [([row for row in one if row[key] == name], [row for row in other if row[key] == name]) for name in names]


def _told(rows: tuple[list[Row], list[Row]], parts: Sequence[str]) -> dict[str, Any]:
    """What is alike on both sides, or of the one that has it."""
    known = (rows[0] or rows[1])[0]
    return {part: known[part] for part in parts}


def _both(rows: tuple[list[Row], list[Row]]) -> dict[str, Any]:
    first, second = (side[0]["value"] if side else None for side in rows)
    return {
        "sides": [_side(side) for side in rows],
        "difference": None if first is None or second is None else round(second - first, 6),
    }


def _rule(row: Row) -> dict[str, Any]:
    held = {**row["threshold"], "passed": row["passed"]}
    return {**held, "left_out": True} if row.get("left_out") else held


def _side(rows: list[Row]) -> dict[str, Any] | None:
    if not rows:
        return None
    ruled = [row for row in rows if row["threshold"]]
    side = {
        "value": rows[0]["value"],
        "interval": rows[0].get("interval"),
        "n": rows[0]["n"],
        "rules": [_rule(row) for row in ruled],
    }
    return {**side, "reason": rows[0].get("reason")} if "attack" in rows[0] else side


def _promise(rows: list[Row]) -> dict[str, Any] | None:
    """`reason`: the code that says why nobody knows. A request that promised nothing is measured, and has nothing to keep."""
    if not rows:
        return None
    reason = rows[0].get("reason")
    state = "not binding" if reason == "nothing_promised" else STATES[rows[0]["kept"]]
    return {"kept": state, "reason": reason}
