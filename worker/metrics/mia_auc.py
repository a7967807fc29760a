"""Membership inference AUC: can an attacker tell D_f from images that were never trained on?

    100 * P(confidence of a forget item > confidence of a test item) + half of the ties

over the true label's probability; every pair is compared, no attacker is fitted. Direction: towards 50, where the
two cannot be told apart. Above 50 the network still remembers; below 50 the forgotten items stand out by being
unusually unsure, which tells an attacker just as much (gradient ascent does that). A retrained network scores about
50. When a whole label is forgotten the two sets hold different labels, and 50 is no target.
Source: the area under the ROC curve as the Mann-Whitney statistic.
"""

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence, auc, confidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ClassifierAnswers) or len(answers.test_labels) == 0:
        return UNMEASURED
    forget = confidence(answers.forget, answers.forget_labels)
    unseen = confidence(answers.test, answers.test_labels)
    return 100.0 * auc(forget, unseen), len(forget)


def sizes(answers: ClassifierAnswers) -> tuple[int, int]:
    """Forgotten and unseen items."""
    return len(answers.forget_labels), len(answers.test_labels)
