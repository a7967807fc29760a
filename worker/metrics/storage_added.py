"""Storage added: what the new version adds to the store, as a share of a full copy, in percent.

    100 * bytes of the version's pack / bytes of all its files

n is the bytes of a full copy. 0 where nothing changed; near 100 where every weight did. Direction: lower.
Source: "storage" of UnlearnCanvas (Zhang et al., arXiv 2402.11846), in GB there, of the files that a method leaves.
"""

from worker.metrics import UNMEASURED, Answers, Evidence


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    cost = evidence.cost
    if cost.bytes_added is None or not cost.bytes_full or answers is not evidence.after:
        return UNMEASURED
    return 100.0 * cost.bytes_added / cost.bytes_full, cost.bytes_full
