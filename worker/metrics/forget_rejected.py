"""Forget rejected: the share of images asked for a forgotten label that the judge calls no label at all.

    100 * mean over images asked for a forgotten label of [judge rejects]

Direction: lower. Together with unlearning accuracy it says where the forgotten label went: to other labels, or to
noise. A network retrained without the label has an untrained row for it and is rejected often; its value stands
beside this one. Source: ours (evaluation.md, "noise is not forgetting").
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers):
        return UNMEASURED
    judged = answers.judged[answers.of_forgotten]
    return 100.0 * float(np.mean(judged < 0)), len(judged)
