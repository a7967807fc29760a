"""CLIP score: how well images of kept labels fit their own prompts, by the registered scorer: `clip_score[<its digest>]`.

    mean over kept images of max(100 cos(v, t), 0)

v, t: the scorer's embeddings of an image and of the text that it was drawn from. Published scores are of one CLIP (often
ViT-B/16 or ViT-L/14) each and say which; the registered network is known by its digest alone, so the figure never stands under
the plain name. As in torchmetrics, without the factor 2.5 of the paper. Direction: higher; a retrained
network scores about what the base does. Source: Hessel et al., arXiv 2104.08718.
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    each = per_image(answers, evidence)
    return (float(np.mean(each)), len(each)) if len(each) else UNMEASURED


def per_image(answers: Answers, evidence: Evidence) -> np.ndarray:
    """What the figure is the mean of, (n,)."""
    if not isinstance(answers, GeneratorAnswers) or not len(answers.clip_match):
        return np.zeros(0)
    scores: np.ndarray = np.maximum(100.0 * answers.clip_match[answers.of_kept].astype(np.float64), 0.0)
    return scores
