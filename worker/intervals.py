"""Intervals: how far a figure might lie from what more images of the same kind would give.

A share of n gets Wilson's interval. A mean over images whose own values are at hand gets the percentile bootstrap:
RESAMPLES draws of n values with replacement, from a fixed seed, and the middle 95 % of their means (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, ch. 13). Below LEAST images, or where all values are equal, such draws say
too little and there is none. Every other figure has none at all: no interval is better than a wrong one.
"""

from types import ModuleType
from typing import Any

import numpy as np

from app.catalog import LEVEL, METRICS, wilson
from worker.metrics import Answers, Evidence

RESAMPLES = 2000
LEAST = 20  # images; with fewer the percentile interval is too narrow


def interval(
    module: ModuleType, name: str, side: Answers | None, evidence: Evidence, value: float | None, n: int, seed: int
) -> dict[str, Any] | None:
    """Of one side's figure, which was measured as `value` from `n` samples; JSON, in the figure's own unit."""
    kind = METRICS[name].interval
    if value is None or side is None or kind is None:
        return None
    if kind == "wilson":
        ends: tuple[float, float] | None = wilson(round(value * n / 100), n)
    else:
        ends = bootstrap(module.per_image(side, evidence), seed)
    return ends and told(ends, kind)


def of_share(right: int, n: int) -> dict[str, Any]:
    """Wilson's, of `right` of `n`; JSON, in percent."""
    return told(wilson(right, n), "wilson")


def told(ends: tuple[float, float], by: str) -> dict[str, Any]:
    return {"level": LEVEL, "low": round(ends[0], 6), "high": round(ends[1], 6), "by": by}


def bootstrap(values: np.ndarray, seed: int) -> tuple[float, float] | None:
    """The percentile interval of the mean of `values`, (n,)."""
    if len(values) < LEAST or np.ptp(values) == 0:
        return None
    draws = np.random.default_rng(seed)
    means = [float(np.mean(draws.choice(values, len(values)))) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)
