"""Forget top-5: how often what is to be forgotten is still among the network's five best answers.

    forget@5 = share of D_f whose own label has fewer than five larger outputs

Direction: towards a retrained network's value; for a forgotten label, down: 0 is the ideal, and chance gives 500 / labels.
A network whose first answer is another one may still rank the right one next. Source: FA@5 of Cai, Tan, Asif, arXiv 2407.11867.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence, confidence, share

AMONG = 5


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ClassifierAnswers) or len(answers.forget_labels) == 0:
        return UNMEASURED
    own = confidence(answers.forget, answers.forget_labels)[:, None]
    return share(np.sum(answers.forget > own, axis=1) < AMONG)
