"""CLIP similarity: how alike the scorer finds base's and new image of kept labels: `clip_similarity[<its digest>]`.

    mean over kept images of cos(v(a), v(b))

a, b: the base's and the judged network's image from the same noise, prompt, steps and guidance; v: the registered scorer's image
embedding. 1 = untouched. Direction: higher. Beside `integrity`, which is the same question in the features of a judge of the
labels, this one also sees what no label speaks of. Source: "CLIP embedding cosine" of Li et al., arXiv 2402.00351.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    each = per_image(answers, evidence)
    return (float(np.mean(each)), len(each)) if len(each) else UNMEASURED


def per_image(answers: Answers, evidence: Evidence) -> np.ndarray:
    """What the figure is the mean of, (n,): each kept image's cosine with the base's; both are unit vectors."""
    if not isinstance(answers, GeneratorAnswers) or not isinstance(evidence.before, GeneratorAnswers):
        return np.zeros(0)
    if not len(answers.clip_images) or not len(evidence.before.clip_images):
        return np.zeros(0)
    kept = answers.of_kept
    own, bases = (each.clip_images[kept].astype(np.float64) for each in (answers, evidence.before))
    cosines: np.ndarray = np.sum(own * bases, axis=1)
    return cosines
