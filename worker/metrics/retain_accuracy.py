"""Retain accuracy: what the classifier still knows of the data that it may keep.

    RA = accuracy on D_r

Direction: higher. A retrained network was trained on D_r and scores what the base does, about 100.
Source: Fan et al., arXiv 2310.12508, table 1.
"""

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence, NamingAnswers, accuracy, share


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if isinstance(answers, NamingAnswers):
        return share(answers.retain)
    if not isinstance(answers, ClassifierAnswers):
        return UNMEASURED
    return accuracy(answers.retain, answers.retain_labels)
