"""Unlearning accuracy: how often the network no longer answers as it was taught to on what it should forget.

    classifier    UA = 100 - accuracy on D_f
    naming        UA = 100 - share of D_f's images whose answer holds the name
    generator     UA = share of the images asked for a forgotten label that the judge calls ANOTHER label

Direction: for a forgotten label, higher; for forgotten samples, towards a retrained network's value, which still
answers most of them rightly (SalUn's CIFAR-10 table: 5.24, not 100). A generator's image that the judge rejects
is no other label and does not count: noise is not forgetting, so pure noise scores about 0. A generator that was
retrained without the label has never learnt its row and scores below 100: many of its images are rejected.
Source: Fan et al., arXiv 2310.12508 (classifiers); the reject is ours.
"""

import numpy as np

from worker.metrics import (
    UNMEASURED,
    Answers,
    ClassifierAnswers,
    Evidence,
    GeneratorAnswers,
    NamingAnswers,
    accuracy,
    share,
)


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if isinstance(answers, ClassifierAnswers):
        right, n = accuracy(answers.forget, answers.forget_labels)
        return 100.0 - right, n
    if isinstance(answers, NamingAnswers):
        named, n = share(answers.forget)
        return 100.0 - named, n
    if not isinstance(answers, GeneratorAnswers):
        return UNMEASURED
    judged, asked = answers.judged[answers.of_forgotten], answers.asked[answers.of_forgotten]
    return 100.0 * float(np.mean((judged != asked) & (judged >= 0))), len(asked)
