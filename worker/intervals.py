"""Intervals: how far a figure might lie from what more images of the same kind would give.

A share of n gets Wilson's interval. Of K shares p_k of n_k, say of the kept labels,

    the mean          Wilson's of the mean share at n = K^2 / sum 1 / n_k, which is sum n_k where all n_k are alike; then it is
                      rather too wide, since sum p_k (1 - p_k) is at most K times what the mean share alone would give
    the smallest      min l_k to min u_k, Clopper and Pearson's ends of each at the level 95 %^(1/K) at which all K hold at once
                      (Sidak): the label that looks worst was chosen for it, so its own interval would lie too low, and
                      Wilson's are too narrow so far out

An AUC gets Newcombe's (worker/attacks). A mean over images whose own values are at hand gets the percentile bootstrap:
RESAMPLES draws of n values with replacement, from a fixed seed, and the middle 95 % of their means (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, ch. 13). Below LEAST images, or where all values are equal, such draws say
too little and there is none. Every other figure has none at all: no interval is better than a wrong one.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from scipy.stats import beta

from app.catalog import LEVEL, METRICS, wilson
from worker.attacks import auc_interval
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
    ends: tuple[float, float] | None
    match kind:
        case "wilson":
            ends = wilson(round(value * n / 100), n)
        case "macro":
            ends = of_mean(module.counts(side))
        case "sidak":
            ends = of_smallest(module.counts(side))
        case "newcombe":
            low, high = auc_interval(value / 100, *module.sizes(side))
            ends = 100 * low, 100 * high
        case "bootstrap":
            ends = bootstrap(module.per_image(side, evidence), seed)
    return ends and told(ends, kind)


def of_share(right: int, n: int) -> dict[str, Any]:
    """Wilson's, of `right` of `n`; JSON, in percent."""
    return told(wilson(right, n), "wilson")


def told(ends: tuple[float, float], by: str) -> dict[str, Any]:
    return {"level": LEVEL, "low": round(ends[0], 6), "high": round(ends[1], 6), "by": by}


def of_mean(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Of the mean of the shares of (right, n), both ends in percent."""
    share = sum(right / n for right, n in counts) / len(counts)
    n = len(counts) ** 2 / sum(1 / n for _, n in counts)
    return wilson(share * n, n)


def of_smallest(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Of the smallest of the shares of (right, n), both ends in percent."""
    tail = (1 - (LEVEL / 100) ** (1 / len(counts))) / 2
    low = [beta.ppf(tail, right, n - right + 1) if right > 0 else 0.0 for right, n in counts]
    high = [beta.isf(tail, right + 1, n - right) if right < n else 1.0 for right, n in counts]
    return 100 * float(min(low)), 100 * float(min(high))


def bootstrap(values: np.ndarray, seed: int) -> tuple[float, float] | None:
    """The percentile interval of the mean of `values`, (n,)."""
    if len(values) < LEAST or np.ptp(values) == 0:
        return None
    draws = np.random.default_rng(seed)
    means = [float(np.mean(draws.choice(values, len(values)))) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [50 - LEVEL / 2, 50 + LEVEL / 2])
    return float(low), float(high)
