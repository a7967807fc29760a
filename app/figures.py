"""A figure or a rung of a report in words, for a terminal's table and for the page alike."""

from collections.abc import Mapping
from typing import Any

from app.catalog.types import Rule

RULES: Mapping[Rule, str] = {
    "at_least": "≥ {:g}",
    "at_most": "≤ {:g}",
    "drop_at_most": "drop ≤ {:g}",
    "share_of_before": "≤ {:g} × before",
    "times_before_at_least": "≥ {:g} × before",
    "times_before_at_most": "≤ {:g} × before",
}


def number(value: float | None) -> str:
    """Two decimals; of what would vanish in them, two digits."""
    if value is None:
        return ""
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:.2f}"


def interval(ends: Mapping[str, Any] | None) -> str:
    return "" if ends is None else f"{number(ends['low'])} to {number(ends['high'])}"


def share(count: Mapping[str, Any] | None) -> tuple[str, str]:
    """Percent of a count, and its interval; empty where there is no count, and the interval where an older report has none."""
    if count is None:
        return "", ""
    return number(100 * count["success"] / count["total"]), interval(count.get("interval"))


def rule(threshold: Mapping[str, Any] | None) -> str:
    return "" if threshold is None else RULES[threshold["rule"]].format(threshold["value"])


def fitness(judge: Mapping[str, Any]) -> str:
    """What a judge does with noise and with real images, and what a fit one would."""
    does = {"noise_rejected": "rejects {} % of noise", "real_right": "is right on {} % of real test images"}
    return ", and ".join(
        f"{does[part].format(number(share['value']))} ({interval(share['interval'])}, n = {share['n']}, least {share['least']:g})"
        for part in does
        if (share := judge[part]) is not None
    )


def kept(promise: Mapping[str, Any], figure: Mapping[str, Any] | None = None) -> str:
    """Whether an earlier promise, or one of its figures, holds; what binds nothing; or the code that says why nobody knows."""
    holds, why = promise["kept"], promise.get("reason")
    if figure is not None:
        holds, why = figure["passed"], figure.get("reason") or why
        if holds is None and figure["value"] is not None and figure["threshold"] is None:
            return "not binding"
    said = (why or "").replace("_", " ")
    return {True: "kept", False: "BROKEN", None: f"not measured: {said}"}[holds]


def count(figure: Mapping[str, Any]) -> str:
    """n, and the n that the figure's rule needs where it is larger."""
    needed = figure.get("n_needed")
    return str(figure["n"]) if needed is None or needed <= figure["n"] else f"{figure['n']} ({needed} needed)"


def met(figure: Mapping[str, Any]) -> str:
    if figure.get("left_out"):
        return "left out"
    return {True: "yes", False: "NO", None: unheld(figure) if figure["threshold"] else ""}[figure["passed"]]


def unheld(figure: Mapping[str, Any]) -> str:
    """Why a rule was neither met nor missed. What has a value was measured, and its reason is a code."""
    why = figure.get("reason") if figure.get("value") is not None else None
    return (why or "not measured").replace("_", " ")


def rung(tried: Mapping[str, Any]) -> str:
    """What a rung of a ladder came to, and what it cost."""
    came_to = tried["error"] or ("" if tried["version"] is None else f"version {tried['version']} {tried['verdict']}")
    parts = {"unlearning": tried["unlearning_seconds"], "in all": tried["seconds"]}
    cost = ", ".join(f"{number(seconds)} s {what}" for what, seconds in parts.items() if seconds is not None)
    return ", ".join(part for part in (f"{tried['method']}: {came_to or 'no version'}", cost) if part)
