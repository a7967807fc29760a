"""Run-time efficiency: wall seconds of the unlearning step alone, without loading and evaluation.

Direction: lower. Compare it with what retraining takes on the same machine; the base's own is 0 by definition.
Source: Fan et al., arXiv 2310.12508, "RTE" (in minutes there).
"""

from worker.metrics import UNMEASURED, Answers, Evidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    return (evidence.seconds, 1) if answers is evidence.after else UNMEASURED
