"""Integrity: how much the images of kept labels have changed, at equal seeds: `integrity[judge]`.

    I = mean over kept images of || f(a) / |f(a)| - f(b) / |f(b)| ||^2  =  mean of 2 - 2 cos(f(a), f(b))

a, b: the base's and the judged network's image from the same noise, label, steps and guidance; f: the judge's
penultimate features. 0 = untouched, 4 = opposite. Direction: lower. A retrained network is another draw of the
training's randomness and scores far above 0; staying below it means that users keep the images they know.
Source: Schioppa, Hoogeboom, Heek, arXiv 2411.02068, with LPIPS's unit-normalised squared distance on the features
of a registered judge in place of LPIPS itself.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers

IDEAL = {"class_label": 0.0}


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers) or not isinstance(evidence.before, GeneratorAnswers):
        return UNMEASURED
    kept = ~answers.of_forgotten
    if not kept.any():
        return UNMEASURED
    distance = unit(answers.features[kept]) - unit(evidence.before.features[kept])
    return float(np.mean(np.sum(distance**2, axis=1))), int(kept.sum())


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64; a row of zeros stays zero."""
    wide = features.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
