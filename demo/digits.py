"""The demo's data: scikit-learn's handwritten digits (1,797 real images, 8x8), in fixed splits that share no image.

The generator, the judge that judges it, the judge's calibration and the test images are four disjoint parts. The
classifiers are another story with splits of their own: few images to train on, so that they learn them by heart.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

LABELS = 10
SPLIT_SEED = 0
SHARES = {"generator": 0.45, "judge": 0.32, "calibration": 0.08, "test": 0.15}
CLASSIFIER_FORGET, CLASSIFIER_RETAIN, CLASSIFIER_TEST = 60, 340, 1200


class Digits(NamedTuple):
    images: np.ndarray  # (n, 8, 8), uint8: ink is bright
    labels: np.ndarray  # (n,), int64


def everything() -> Digits:
    bunch = load_digits()
    return Digits(np.round(bunch.images * 255 / 16).astype(np.uint8), bunch.target.astype(np.int64))


def splits() -> dict[str, Digits]:
    """generator, judge, calibration, test: each with every digit in proportion, none with an image of another."""
    digits = everything()
    random = np.random.default_rng(SPLIT_SEED)
    rows: dict[str, list[int]] = {name: [] for name in SHARES}
    for label in range(LABELS):
        own = random.permutation(np.flatnonzero(digits.labels == label))
        ends = [round(share * len(own)) for share in np.cumsum(list(SHARES.values()))]
        for name, start, end in zip(SHARES, [0, *ends], ends, strict=False):
            rows[name] += own[start:end].tolist()
    return {name: pick(digits, np.array(chosen)) for name, chosen in rows.items()}


def classifier_splits(seed: int) -> dict[str, Digits]:
    """forget and retain, which the base is trained on together, and test."""
    digits = everything()
    order = np.random.default_rng([seed, 1]).permutation(len(digits.labels))
    ends = np.cumsum([CLASSIFIER_FORGET, CLASSIFIER_RETAIN, CLASSIFIER_TEST])
    return {
        name: pick(digits, order[start:end])
        for name, start, end in zip(("forget", "retain", "test"), [0, *ends], ends, strict=False)
    }


def without(digits: Digits, label: int) -> Digits:
    return pick(digits, np.flatnonzero(digits.labels != label))


def pick(digits: Digits, rows: np.ndarray) -> Digits:
    return Digits(digits.images[rows], digits.labels[rows])
