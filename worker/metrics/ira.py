"""In-domain retain accuracy: does the generator still draw the other labels, whatever the context?

    mean over kept labels of the share of the label's images that the judge calls by it where it must answer

Images are drawn over all contexts in turn (`evaluation.contexts`), as UnlearnCanvas draws each style with every object.
Its classifiers cannot reject, so here the judge's likeliest label counts; `kept_accuracy` counts a rejected image as wrong. Given
only where contexts are named: without them it would be little else than kept accuracy. `by_label` gives every label's
share, forgotten ones included. Direction: higher; a retrained network scores what the base does.
Source: IRA of Zhang et al., arXiv 2402.11846.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers, counts_by


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers) or not len(answers.forced) or not np.any(answers.contexts >= 0):
        return UNMEASURED
    kept = [
        share
        for label, share in by_label(answers).items()
        if label not in answers.forget_labels + answers.forgotten_before
    ]
    return (float(np.mean(kept)), int(np.sum(answers.of_kept))) if kept else UNMEASURED


def by_label(answers: GeneratorAnswers) -> dict[int, float]:
    labels = [int(label) for label in np.unique(answers.asked)]
    return {label: 100.0 * float(np.mean(answers.forced[answers.asked == label] == label)) for label in labels}


def counts(answers: GeneratorAnswers) -> list[tuple[int, int]]:
    """Of each kept label: images that the judge calls by it, and all."""
    kept = answers.of_kept
    return counts_by(answers.asked[kept], (answers.forced == answers.asked)[kept])
