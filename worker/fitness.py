"""Whether a judge is fit to judge: it rejects noise, and is right on real images.

    noise rejected    share of NOISE images of N(0, 1), black being -1 and white 1, that it calls no label at all
    real right        share of at most REAL images of the test set that it calls by their own label; a rejected one is wrong

Noise is of the size that the judged network makes, since that is what a network that forgot nothing but how to draw would
show. Fit: at least LEAST_REJECTED percent of noise, and LEAST_RIGHT percent of the real ones or, where they are few, so
much within Wilson's interval. Without a test set whose labels it knows, noise alone decides. Each figure of an unfit judge
counts as not measured: it may take noise for another label, or a label for another.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from worker import intervals
from worker.judge import REJECTED, Judge, as_pictures

NOISE, REAL = 400, 400
LEAST_REJECTED, LEAST_RIGHT = 95.0, 97.0
BATCH = 16  # noise of 1024 pixels a side is large


def fitness(
    judge: Judge,
    shape: tuple[int, int, int],
    real: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """The report's part on it. `shape` (H, W, C) of what it judges; `real`: uint8 images (n, H, W, C) and their labels, (n,)."""
    images, labels = real or (np.zeros((0, *shape), np.uint8), np.zeros(0, np.int64))
    total = NOISE + len(labels)
    noise = rejected_noise(judge, shape, seed, progress=lambda done: progress(done, total))
    right = right_on(judge, images, labels, progress=lambda done: progress(NOISE + done, total))
    shares = {
        "noise_rejected": share(noise, LEAST_REJECTED),
        "real_right": share(right, LEAST_RIGHT) if len(right) else None,
    }
    return {"fit": fit(shares["noise_rejected"], shares["real_right"]), **shares, "seed": seed}


def fit(noise: dict[str, Any] | None, real: dict[str, Any] | None) -> bool:
    rejects = noise is not None and noise["value"] >= LEAST_REJECTED
    return rejects and (real is None or max(real["value"], real["interval"]["high"]) >= LEAST_RIGHT)


def rejected_noise(
    judge: Judge,
    shape: tuple[int, int, int],
    seed: int,
    count: int = NOISE,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Whether it rejects each of so many images of N(0, 1), (count,) bool."""
    generator, (height, width, channels) = torch.Generator().manual_seed(seed), shape
    rejected = np.zeros(count, dtype=bool)
    for part in _batches(count, progress):
        noise = torch.randn((part.stop - part.start, channels, height, width), generator=generator)
        rejected[part] = judge(as_pictures(noise)).labels == REJECTED
    return rejected


def right_on(
    judge: Judge, images: np.ndarray, labels: np.ndarray, progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Whether it calls each image (n, H, W, C), uint8, by its label, (n,) bool."""
    right = np.zeros(len(labels), dtype=bool)
    for part in _batches(len(labels), progress):
        right[part] = judge(images[part]).labels == labels[part]
    return right


def _batches(count: int, progress: Callable[[int], None]) -> Iterator[slice]:
    """`progress` is told of the images behind each, and may raise Stopped."""
    for start in range(0, count, BATCH):
        part = slice(start, min(start + BATCH, count))
        yield part
        progress(part.stop)


def knows(judge: Judge, labels: np.ndarray) -> np.ndarray:
    """Whether each label, (n,) int, is one that it can answer."""
    known = sorted(set(judge.positions()) - {REJECTED})
    return np.isin(labels, [place for place in known if not judge.names or place < len(judge.names)])


def chosen(candidates: np.ndarray, seed: int) -> np.ndarray:
    """At most REAL of the positions where `candidates` is true, in order; the seed says which."""
    positions = np.flatnonzero(candidates)
    return np.sort(np.random.default_rng(seed).permutation(positions)[:REAL])


def share(right: np.ndarray, least: float) -> dict[str, Any]:
    """In percent, with Wilson's interval and what is asked of it."""
    return {
        "value": round(100 * float(right.mean()), 6),
        "interval": intervals.of_share(int(right.sum()), len(right)),
        "n": len(right),
        "least": least,
    }
