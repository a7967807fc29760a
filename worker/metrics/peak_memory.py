"""Peak memory: the most that the runner held in host memory during the unlearning step, in MB (10^6 bytes).

Resident memory of the whole process, networks that it keeps warm for other jobs included: what a host must have, not
what the method alone adds. Not measured where the kernel does not let a process set its high-water mark back.
Direction: lower. Source: ours; UnlearnCanvas (Zhang et al., arXiv 2402.11846) reports the device's.
"""

from worker.metrics import UNMEASURED, Answers, Evidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    taken = evidence.cost.host_bytes
    return (taken / 1e6, 1) if taken is not None and answers is evidence.after else UNMEASURED
