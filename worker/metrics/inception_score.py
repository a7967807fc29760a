"""Inception score of the images of kept labels, by the judge's probabilities: `inception_score[judge]`.

    exp( E_x KL( p(y | x) || p(y) ) ),    p(y) = E_x p(y | x)

p: the judge's softmax over all of its outputs, its label for no image included. 1 = the judge says the same of every
image; as many as its outputs = it is sure of each image and calls them equally often. Not Inception's probabilities,
so the figure has a name of its own and compares only with figures of the same judge; one split, not ten, since ten
splits of few images score lower. Direction: higher; a retrained network scores about what the base does.
Source: Salimans et al., arXiv 1606.03498.
"""

import numpy as np
from scipy.special import rel_entr

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers) or not answers.probabilities.size:
        return UNMEASURED
    of_kept = answers.probabilities[answers.of_kept].astype(np.float64)
    if not len(of_kept):
        return UNMEASURED
    return float(np.exp(rel_entr(of_kept, of_kept.mean(axis=0)).sum(axis=1).mean())), len(of_kept)
