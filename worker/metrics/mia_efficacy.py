"""Membership inference efficacy: the share of D_f that an attacker takes for images never trained on.

    attacker   SVC(C = 3, rbf, gamma = auto) on the true label's probability under the network that is judged
    trained    members = m items of D_r, non-members = m of the test set, both drawn at random, m = min(|D_r|, |test|)
    MIA        100 * share of D_f that it calls non-member

Direction: towards a retrained network's value, in both directions. It is not 100: an attacker on confidence takes
most images that a good network answers rightly for members (SalUn's CIFAR-10 table: 12.88 for Retrain).
Source: Fan et al., arXiv 2310.12508, and its evaluation/SVC_MIA.py, which takes m = |test| and needs |D_r| >= |test|;
with fewer retained items we shorten the other side too, since an attacker fed unequal sides answers the larger one. There the
members are the begin of a shuffled set; registered sets may be ordered by label, so here they are drawn, without replacement and
from SEED: for every network and request the same of the same sets.
"""

import numpy as np
from sklearn.svm import SVC

from worker.metrics import UNMEASURED, Answers, ClassifierAnswers, Evidence, confidence

SEED = 0


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ClassifierAnswers):
        return UNMEASURED
    m = min(len(answers.retain_labels), len(answers.test_labels))
    if m == 0:
        return UNMEASURED
    draws = np.random.default_rng(SEED)
    members, others = (
        draws.permutation(confidence(*side))[:m]
        for side in ((answers.retain, answers.retain_labels), (answers.test, answers.test_labels))
    )
    attacker = SVC(C=3, kernel="rbf", gamma="auto")
    attacker.fit(np.concatenate([members, others])[:, None], np.repeat([1, 0], m))
    called = attacker.predict(confidence(answers.forget, answers.forget_labels)[:, None])
    return 100.0 * float(np.mean(called == 0)), len(called)
