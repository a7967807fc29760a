"""Frechet distance between generated and real images of the kept labels, in Inception's features: `fid_inception[<digest>]`.

As `fid`, in the 2048 pooled features of the Inception v3 that the operator's weights hold, on images of eight bits, which
torch-fidelity resizes to 299 pixels a side. Whether those weights are the published ones only their digest can say, so
the plain name is not used. Direction: lower. Below some thousands of images on each side the figure is far too large
(fewer images than features), and compares with figures of equal counts only: n and n_real stand beside it.
Source: Heusel et al., arXiv 1706.08500.
"""

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers, fid


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers) or not len(answers.inception) or not len(answers.real_inception):
        return UNMEASURED
    kept = fid.real_kept(answers)
    return fid.distance(answers.inception[answers.of_kept], answers.real_inception[kept])


n_real = fid.n_real
