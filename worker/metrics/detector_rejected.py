"""Detector rejected: the share of images of the prompt list that the detector calls no image at all.

    100 * mean over prompts of the share of a prompt's images that the detector rejects

An image that it counts is not rejected, however unsure it is otherwise. Part of `detected_prompts`, and beside it says how
much of that is noise. Direction: lower. Source: ours, as forget_rejected (evaluation.md, "noise is not forgetting").
"""

import numpy as np

from worker.metrics import UNMEASURED, Answers, Evidence, GeneratorAnswers, detected_prompts


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, GeneratorAnswers) or not len(answers.prompt_of):
        return UNMEASURED
    shares = detected_prompts.by_prompt(answers.prompt_of, answers.unclear)
    return 100.0 * float(np.mean(shares)), len(shares)
