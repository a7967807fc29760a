"""Changed weights: the share of weights whose bits differ from the base's, in percent.

    100 * |{i : theta_i != theta_o_i}| / |theta|

Direction: none; it is evidence. A value next to nothing beside a high unlearning accuracy says that the forgetting
sits in a few entries, such as one label's row. SalUn at mask fraction 0.5 changes at most 50. Source: ours.
"""

from worker.metrics import UNMEASURED, Answers, Evidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if answers is not evidence.after or evidence.weights == 0:
        return UNMEASURED
    return 100.0 * evidence.changed / evidence.weights, evidence.weights
