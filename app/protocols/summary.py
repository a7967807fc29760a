"""What a protocol's requests came to: the mean of each figure over the requests of equal settings, and its rules."""

from statistics import fmean, stdev
from typing import Any

from app.protocols.schema import Protocol, Rule


def summary(protocol: Protocol, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each of the protocol's figures and each point of its settings, in the order in which they ran."""
    groups: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    for request in requests:
        group = next((rows for settings, rows in groups if settings == request["settings"]), None)
        if group is None:
            groups.append((request["settings"], [request]))
        else:
            group.append(request)
    return [_row(protocol, name, settings, rows) for settings, rows in groups for name in protocol.figures]


def _row(protocol: Protocol, name: str, settings: dict[str, Any], requests: list[dict[str, Any]]) -> dict[str, Any]:
    """`interval` is the report's own, where there is one request: requests differ in what they forget, so their samples
    are no draw from one kind."""
    figures = [found for request in requests if (found := _figure(request["report"], name)) is not None]
    values = [each["value"] for each in figures]
    before = [each["before"] for each in figures if each.get("before") is not None]
    mean = fmean(values) if values else None
    mean_before = fmean(before) if before and len(before) == len(figures) else None
    row = {
        "settings": settings,
        "figure": name,
        "unit": figures[0]["unit"] if figures else None,
        "requests": len(requests),
        "measured": len(figures),
        "mean": mean,
        "spread": stdev(values) if len(values) > 1 else None,
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "before": mean_before,
        "n": [each["n"] for each in figures],
        "interval": figures[0].get("interval") if len(requests) == len(figures) == 1 else None,
    }
    whole = len(figures) == len(requests)
    rules = [rule for rule in protocol.thresholds if rule.figure == name]
    return row | {
        "thresholds": [
            {"rule": rule.rule, "value": rule.value, "met": _met(rule, mean, mean_before) if whole else None}
            for rule in rules
        ]
    }


def _figure(report: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    """The metric or attack, where it was measured. A metric under several rules stands in several rows of one value."""
    if report is None:
        return None
    rows = [row for row in report["figures"] if row["metric"] == name]
    rows += [row for row in report.get("attacks", []) if row["attack"] == name]
    return next((row for row in rows if row["value"] is not None), None)


def _met(rule: Rule, mean: float | None, before: float | None) -> bool | None:
    """None where it was not measured for every request."""
    if mean is None or (rule.rule == "drop_at_most" and before is None):
        return None
    if rule.rule == "at_least":
        return mean >= rule.value
    if rule.rule == "at_most":
        return mean <= rule.value
    return (before or 0.0) - mean <= rule.value
