"""Unlearning accuracy with the base's label rows put back: has more been forgotten than what a label means?

    UA of the unlearned network after its label table's rows of the forgotten labels are the base's again

Direction: higher, as for unlearning accuracy. Overwriting one row of the table scores 100 without it and about 0
with it, since the knowledge is all still there. The base itself, and a retrained network whose untrained row is
replaced by the base's, are not told apart by this figure alone: it stands beside unlearning accuracy.
Source: ours.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers) or len(answers.restored) == 0:
        return UNMEASURED
    asked = answers.asked[answers.of_forgotten]
    return 100.0 * float(np.mean((answers.restored != asked) & (answers.restored >= 0))), len(asked)
