"""Frechet distance between what the network makes of the retain set and the images themselves, in the judge's features.

As `reconstruction_distance_forget`, on the retain set. These images were to keep what they had.
Direction: lower; the base's own value is the mark (`times_before_at_most`), since no autoencoder restores everything.
"""

from worker.metrics import UNMEASURED, Answers, Evidence, ReconstructionAnswers, reconstruction_distance_forget


def measure(answers: Answers, evidence: Evidence) -> tuple[float, int]:
    if not isinstance(answers, ReconstructionAnswers):
        return UNMEASURED
    return reconstruction_distance_forget.distance(answers.features["retain"], answers.original_features["retain"])
