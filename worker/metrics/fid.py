"""Frechet distance between generated and real images of the kept labels, in the judge's features: `fid[judge]`.

    || mu_1 - mu_2 ||^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))

mu, S: mean and covariance of the judge's penultimate features, of the generated images and of the real test images.
These are not Inception's features, so the figure has a name of its own and compares only with figures of the same
judge (its digest stands beside it). Direction: lower; a retrained network scores about what the base does. Both
sides' counts matter (n, n_real): fewer images than features make the distance larger. Computed by torchmetrics, in float64.
Source: Heusel et al., arXiv 1706.08500.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


class Given(nn.Module):
    """Features that were computed before, so that torchmetrics has nothing to extract."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers):
        return UNMEASURED
    return distance(answers.features[answers.of_kept], answers.real_features[real_kept(answers)])


def n_real(answers: GeneratorAnswers) -> int:
    """The real images of kept labels that the generated ones are compared with."""
    return int(np.sum(real_kept(answers)))


def real_kept(answers: GeneratorAnswers) -> np.ndarray:
    """(k,), bool: real images of labels to keep."""
    kept: np.ndarray = ~np.isin(answers.real_labels, answers.forget_labels + answers.forgotten_before)
    return kept


def distance(generated: np.ndarray, real: np.ndarray) -> tuple[float, int]:
    """Of two sets of features (n, d), and the first's n; unmeasured below two of each."""
    if min(len(generated), len(real)) < 2:
        return UNMEASURED
    frechet = FrechetInceptionDistance(feature=Given(generated.shape[1])).set_dtype(torch.float64)
    frechet.update(torch.from_numpy(generated).double(), real=False)
    frechet.update(torch.from_numpy(real).double(), real=True)
    return float(frechet.compute()), len(generated)
