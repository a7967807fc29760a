"""Integrity in LPIPS: how much the images of kept labels have changed, at equal seeds: `integrity_lpips[<digest>]`.

    I = mean over kept images of LPIPS(a, b)  =  mean of || e(a) - e(b) ||^2

a, b: the base's and the judged network's image from the same noise, label, steps and guidance; e: the vectors of
worker/evaluators/lpips.py, of AlexNet at 64 pixels a side on the operator's weights, whose digest stands in the name. 0 = untouched.
Direction: lower. Source: Schioppa, Hoogeboom, Heek, arXiv 2411.02068; LPIPS of Zhang et al., arXiv 1801.03924.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    each = per_image(answers, evidence)
    return (float(np.mean(each)), len(each)) if len(each) else UNMEASURED


def per_image(answers: Answers, evidence: Evidence) -> np.ndarray:
    """What the figure is the mean of, (n,): each kept image's own distance to the base's."""
    if not isinstance(answers, GeneratorAnswers) or not isinstance(evidence.before, GeneratorAnswers):
        return np.zeros(0)
    if not len(answers.lpips) or not len(evidence.before.lpips):
        return np.zeros(0)
    kept = answers.of_kept
    moved = answers.lpips[kept] - evidence.before.lpips[kept]
    apart: np.ndarray = np.einsum("nd,nd->n", moved, moved, dtype=np.float64)
    return apart
