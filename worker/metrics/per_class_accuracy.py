"""Per-class accuracy: the worst kept label, and every label beside it.

    min over kept labels of the share of the label's images that the judge calls by that label

n is the number of that label's images. The mean over labels hides one label that was destroyed; this figure shows it. `by_label` gives the share of every
label, forgotten ones included, for the report. Direction: higher; a retrained network scores what the base does.
Source: SalUn's DDPM evaluation reports accuracy by class; the minimum is ours.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers, counts_by


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers):
        return UNMEASURED
    shares = by_label(answers)
    kept = [(shares[int(label)], int(np.sum(answers.asked == label))) for label in answers.kept_labels]
    return min(kept) if kept else UNMEASURED


def by_label(answers: GeneratorAnswers) -> dict[int, float]:
    """Percent of each label's images that the judge calls by that label."""
    labels = [int(label) for label in np.unique(answers.asked)]
    return {label: 100.0 * float(np.mean(answers.judged[answers.asked == label] == label)) for label in labels}


def counts(answers: GeneratorAnswers) -> list[tuple[int, int]]:
    """Of each kept label: images that the judge calls by it, and all."""
    kept = answers.of_kept
    return counts_by(answers.asked[kept], (answers.judged == answers.asked)[kept])
