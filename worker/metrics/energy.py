"""Energy: what the accelerator used during the unlearning step, in joules.

The whole device's counter, whoever used it, after less before; a device that shares itself among jobs tells too much.
Absent where no device tells. Direction: lower. Source: ours.
"""

from worker.metrics import UNMEASURED, Answers, Evidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    taken = evidence.cost.joules
    return (taken, 1) if taken is not None and answers is evidence.after else UNMEASURED
