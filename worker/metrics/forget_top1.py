"""Forget top-1: how often what is to be forgotten is still the network's first answer.

    forget@1 = share of D_f whose own label has the largest output

Direction: towards a retrained network's value; for a forgotten label, 0. It is 100 - unlearning accuracy, under the name
that CLIP's literature uses. Source: FA@1 of Cai, Tan, Asif, arXiv 2407.11867.
"""

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence, accuracy


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ClassifierAnswers):
        return UNMEASURED
    return accuracy(answers.forget, answers.forget_labels)
