"""Peak device memory: the most that tensors held on the accelerator during the unlearning step, in MB (10^6 bytes).

Every tensor counts, those of networks that the runner keeps warm for other jobs included; what the allocator and the driver hold
beside tensors does not, so a tool that asks the driver shows more. Absent without an accelerator.
Direction: lower. Source: "memory" of UnlearnCanvas (Zhang et al., arXiv 2402.11846), in GB there.
"""

from worker.metrics import UNMEASURED, Answers, Evidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    taken = evidence.cost.device_bytes
    return (taken / 1e6, 1) if taken is not None and answers is evidence.after else UNMEASURED
