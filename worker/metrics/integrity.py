"""Integrity: how much the images of kept labels have changed, at equal seeds: `integrity[judge]`.

    I = mean over kept images of || f(a) / |f(a)| - f(b) / |f(b)| ||^2  =  mean of 2 - 2 cos(f(a), f(b))

a, b: the base's and the judged network's image from the same noise, label, steps and guidance; f: the judge's
penultimate features. 0 = untouched, 4 = opposite. Direction: lower. A retrained network is another draw of the
training's randomness and scores far above 0; staying below it means that users keep the images they know.
Source: Schioppa, Hoogeboom, Heek, arXiv 2411.02068, with LPIPS's unit-normalised squared distance on the features
of a registered judge in place of LPIPS itself.

Where labels are words, the figure comes in rings, too: `neighbours`, the quarter of the kept labels whose prompts are nearest
to the forgotten label's in the base's text encoders, `unrelated`, the farthest quarter, and `generic`, the empty prompt.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    each = per_image(answers, evidence)
    return (float(np.mean(each)), len(each)) if len(each) else UNMEASURED


def per_image(answers: Answers, evidence: Evidence) -> np.ndarray:
    """What the figure is the mean of, (n,): each kept image's own squared distance to the base's."""
    if not isinstance(answers, GeneratorAnswers) or not isinstance(evidence.before, GeneratorAnswers):
        return np.zeros(0)
    kept = answers.of_kept
    return distances(answers.features[kept], evidence.before.features[kept])


def rings(answers: Answers, before: Answers) -> dict[str, dict[str, float]]:
    """Per ring its value and n; empty where labels are not words. The base's text encoders say what is near."""
    if (
        not isinstance(answers, GeneratorAnswers)
        or not isinstance(before, GeneratorAnswers)
        or not len(before.nearness)
    ):
        return {}
    kept = answers.kept_labels
    order = kept[np.argsort(-before.nearness[kept], kind="stable")]
    quarter = min(max(1, round(len(order) / 4)), len(order) // 2)
    chosen = {"neighbours": order[:quarter], "unrelated": order[len(order) - quarter :]}
    rows = {ring: np.isin(answers.asked, labels) for ring, labels in chosen.items()}
    pairs = {ring: (answers.features[of_ring], before.features[of_ring]) for ring, of_ring in rows.items()}
    pairs["generic"] = answers.generic, before.generic
    return {
        ring: {"value": round(float(np.mean(distances(*pair))), 6), "n": len(pair[0])}
        for ring, pair in pairs.items()
        if len(pair[0])
    }


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    apart: np.ndarray = np.sum((unit(one) - unit(other)) ** 2, axis=1)
    return apart


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64; a row of zeros stays zero."""
    wide = features.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
