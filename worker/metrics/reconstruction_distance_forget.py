"""Frechet distance between what the network makes of the forget set and the images themselves, in the judge's features.

    || mu_1 - mu_2 ||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

mu, S: mean and covariance of the judge's penultimate features, of the outputs and of the originals. Direction: higher
than the base's, which is what a policy holds it to (`times_before_at_least`): the base restores these images, and a
network that no longer can is far from them. The figure alone proves nothing: a network that answers every image with
a constant or with noise scores high too, and fails on the retain and the test set. Not Inception's features, hence the
judge in its name; with fewer images than about five times the features' number it is too large on both sides.
Computed by torchmetrics, in float64. Source: Heusel et al., arXiv 1706.08500; per set as in Li et al., arXiv 2402.00351.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, ReconstructionAnswers, fid


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ReconstructionAnswers):
        return UNMEASURED
    return distance(answers.features["forget"], answers.original_features["forget"])


def distance(outputs: np.ndarray, originals: np.ndarray) -> tuple[float, int]:
    """The distance of two sets of features (n, d), and n; unmeasured below two of each."""
    return fid.distance(outputs, originals)
