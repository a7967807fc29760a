"""What the metrics read: a network's answers, as arrays. Each metric is one file with one `measure`."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassifierAnswers:
    """Softmax outputs of one network on the three sets; labels are the true ones."""

    forget: np.ndarray  # (n_forget, classes), rows sum to 1
    forget_labels: np.ndarray  # (n_forget,), int
    retain: np.ndarray
    retain_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    parameters_seconds: float = 0.0


@dataclass(frozen=True)
class GeneratorAnswers:
    """Images that one network generated at fixed seeds, and what the judge says of them."""

    asked: np.ndarray  # (n,), int: the label that each image was generated for
    judged: np.ndarray  # (n,), int: the judge's label, -1 where it rejects
    features: np.ndarray  # (n, d): the judge's penultimate features
    real_features: np.ndarray  # (m, d): the same features of the real test images
    real_labels: np.ndarray  # (m,), int
    forget_label: int


Answers = ClassifierAnswers | GeneratorAnswers


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from. `reference` is the retrained network's side, when one is registered."""

    before: Answers
    after: Answers
    reference: Answers | None
    seconds: float  # wall seconds of the unlearning step alone
