"""Kept accuracy: does the generator still draw what it is asked for, on the labels that it may keep?

    mean over kept labels of the share of the label's images that the judge calls by that label

Rejected images count as wrong; labels that an earlier request forgot are not kept ones. Direction: higher; a retrained
network scores what the base does.
Source: in-domain retain accuracy of UnlearnCanvas (Zhang et al., arXiv 2402.11846), with a judge that may reject.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers, counts_by


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers):
        return UNMEASURED
    kept = answers.kept_labels
    if len(kept) == 0:
        return UNMEASURED
    shares = [np.mean(answers.judged[answers.asked == label] == label) for label in kept]
    return 100.0 * float(np.mean(shares)), int(np.sum(answers.of_kept))


def counts(answers: GeneratorAnswers) -> list[tuple[int, int]]:
    """Of each kept label: images that the judge calls by it, and all."""
    kept = answers.of_kept
    return counts_by(answers.asked[kept], (answers.judged == answers.asked)[kept])
