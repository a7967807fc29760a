"""Gap to Retrain: how far the classifier is from one that never saw what was to be forgotten.

    mean of |x - x_Retrain| over x in unlearning accuracy, retain accuracy, test accuracy, MIA efficacy

Direction: lower; Retrain's own is 0. `before` is the untouched base's gap. All four come from `measured`, so the
catalogue lists this metric after them. Only with a registered retrained reference, whose own randomness is part of
the value. Source: Fan et al., arXiv 2310.12508, "Avg. Gap".
"""

import math

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence

PARTS = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia_efficacy")


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if evidence.reference is None or not isinstance(answers, ClassifierAnswers):
        return UNMEASURED
    gaps = [abs(answers.measured[part] - evidence.reference.measured[part]) for part in PARTS]
    value = sum(gaps) / len(gaps)
    return UNMEASURED if math.isnan(value) else (value, len(answers.forget_labels))
