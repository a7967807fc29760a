"""What the metrics read: a network's answers, as arrays. Each file of this package is one metric.

A metric is one function, `measure(answers, evidence) -> (value, n)`: percentages lie in 0..100, and n is the
number of samples behind the value. n = 0 says that the material for it is missing, and the value is nan. What perfect
forgetting would give, where that is known without a retrained network, says the catalogue: `ideal`, by kind of forgetting.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

UNMEASURED = (float("nan"), 0)


@dataclass(frozen=True, eq=False)
class ClassifierAnswers:
    """Softmax outputs of one network on the three sets; labels are the true ones. A missing test set has 0 rows."""

    forget: np.ndarray  # (n_forget, labels), rows sum to 1
    forget_labels: np.ndarray  # (n_forget,), int
    retain: np.ndarray
    retain_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    measured: dict[str, float] = field(default_factory=dict)  # filled in the catalogue's order


@dataclass(frozen=True, eq=False)
class NamingAnswers:
    """For each image, whether a vision-language model's greedy answer holds its label's name, (n,) bool."""

    forget: np.ndarray
    retain: np.ndarray
    test: np.ndarray  # kept labels only; 0 rows without a test set
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GeneratorAnswers:
    """What the judge says of images that one network generated at fixed seeds; -1 where the judge rejects.

    Two networks that were asked the same have row i from the same label, the same noise and the same settings.
    """

    forget_labels: tuple[int, ...]
    asked: np.ndarray  # (n,), int: the label that each image was generated for
    judged: np.ndarray  # (n,), int: the judge's label
    features: np.ndarray  # (n, d): the judge's penultimate features
    restored: np.ndarray  # (m,), int: judged, asked for forgotten labels with the base's label rows put back
    real_features: np.ndarray  # (k, d): the same features of the real test images, 0 rows without a test set
    real_labels: np.ndarray  # (k,), int
    images: np.ndarray  # (rows, columns, H, W, C), uint8: the first images of each label, for the picture
    nearness: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (labels,): of prompts to the forgotten one's
    generic: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (g, d): features under the empty prompt
    forgotten_before: tuple[int, ...] = ()  # labels of earlier requests: nothing to keep, and measured apart
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (n, outputs): the judge's
    forced: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (n,): its label if it must answer
    contexts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (n,): in which each was asked
    context_forced: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (n,): the context judge's
    clip_images: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (n, d): unit vectors of the scorer
    clip_match: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (n,): cosine of each with its own prompt's
    inception: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (n, 2048)
    real_inception: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (k, 2048): of the real test images
    lpips: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (n, d): as far apart as squared distances
    prompt_of: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # (l,): of the list's images
    detected: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # (l,): by the detector
    unclear: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))  # (l,): rejected by it
    prompt_images: np.ndarray = field(
        default_factory=lambda: np.zeros((0, 0, 0, 0), dtype=np.uint8)
    )  # of the first ones
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def of_forgotten(self) -> np.ndarray:
        """(n,), bool: asked for a label that was to be forgotten."""
        return np.isin(self.asked, self.forget_labels)

    @property
    def of_kept(self) -> np.ndarray:
        """(n,), bool: asked for a label that neither this nor an earlier request was to make the network forget."""
        return ~np.isin(self.asked, self.forget_labels + self.forgotten_before)

    @property
    def kept_labels(self) -> np.ndarray:
        return np.unique(self.asked[self.of_kept])


@dataclass(frozen=True, eq=False)
class ReconstructionAnswers:
    """What one network makes of masked images, by set: "forget", "retain" and "test" (0 rows without a test set).

    Row i of every array of a set is the same image under the same mask and seed, for every network that is asked. Outside
    `hidden` an output repeats the original, since the network is given that part: what says how much of an image the
    network still knows (mutual information) looks at hidden pixels only. Features are the judge's, of whole images.
    """

    originals: dict[str, np.ndarray]  # (n, H, W, C), uint8
    outputs: dict[str, np.ndarray]  # (n, H, W, C), uint8: the network's own where hidden, the original elsewhere
    hidden: dict[str, np.ndarray]  # (n, H, W), bool: the part that the network had to make up
    features: dict[str, np.ndarray]  # (n, d), of outputs
    original_features: dict[str, np.ndarray]  # (n, d)
    noise: np.ndarray  # (n_forget, H, W, C), uint8: forget images with N(0, I) where hidden, as if nothing were known
    noise_features: np.ndarray  # (n_forget, d), of `noise`
    images: np.ndarray  # (rows, 3, H, W, C), uint8: original, masked input, output of a few retain and test images
    shown: tuple[str, ...]  # per row of `images`, its set; never forget
    measured: dict[str, float] = field(default_factory=dict)


Answers = ClassifierAnswers | NamingAnswers | GeneratorAnswers | ReconstructionAnswers


@dataclass(frozen=True)
class Cost:
    """What the unlearning step took beside its time, and what its result adds to the store; None: not told here."""

    host_bytes: int | None = None  # the most that was resident
    device_bytes: int | None = None  # the most that tensors held
    joules: float | None = None
    bytes_added: int | None = None  # of the new version's pack
    bytes_full: int | None = None  # of all of its files


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from. `reference` is the retrained network's side, when one is registered."""

    before: Answers
    after: Answers
    reference: Answers | None
    seconds: float  # wall seconds of the unlearning step alone
    changed: int  # weights whose bits differ from the base's
    weights: int  # all weights
    cost: Cost = Cost()


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, int]:
    """Percent of rows whose largest entry is the label's, and their number."""
    if len(labels) == 0:
        return UNMEASURED
    return 100.0 * float(np.mean(probabilities.argmax(axis=1) == labels)), len(labels)


def share(right: np.ndarray) -> tuple[float, int]:
    """Percent of true entries, and their number."""
    return (100.0 * float(np.mean(right)), len(right)) if len(right) else UNMEASURED


def counts_by(groups: np.ndarray, hits: np.ndarray) -> list[tuple[int, int]]:
    """Of each group, ascending, how many of its entries are hits, and of how many."""
    return [(int(hits[groups == group].sum()), int(np.sum(groups == group))) for group in np.unique(groups)]


def confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability that each row gives to its true label, (n,)."""
    chosen: np.ndarray = probabilities[np.arange(len(labels)), labels]
    return chosen


def auc(ones: np.ndarray, others: np.ndarray) -> float:
    """P(a score of the ones > a score of the others) + half of the ties, 0..1: the Mann-Whitney statistic over all pairs."""
    n, m = len(ones), len(others)
    return float((rankdata(np.concatenate([ones, others]))[:n].sum() - n * (n + 1) / 2) / (n * m))
