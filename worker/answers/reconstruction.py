"""What a network restores of masked images: the forget, retain and test set's, each image under its own mask and seed.

Every network is asked for the same images under the same masks. What it is shown is put back over its output, so that only
hidden pixels are its own; where the pattern hides nothing (an autoencoder of whole images), all are. Forgotten images are
restored, judged and then forgotten: the report's picture shows retained and test images only, and no copy of a forgotten one.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from app.errors import JobError
from worker.answer_set import AnswerSet
from worker.answers import required
from worker.families import Samples
from worker.judge import REJECTED, Judge, as_pictures
from worker.metrics import ReconstructionAnswers
from worker.panel import ALONE, Panel

CHUNK = 64  # images restored at once
SEEDS_APART = 1_000_003  # so that two evaluation seeds share no image's noise
SHOWN = 4  # images of the retain and of the test set that are kept for the picture
PLAIN = (0, 128, 255)  # levels that a network which knows nothing might fill a hole with
GREY = 0.0  # what a hidden pixel looks like in the picture, in [-1, 1]


class Restored(NamedTuple):
    originals: np.ndarray
    outputs: np.ndarray
    hidden: np.ndarray


def ask(
    family: ModuleType,
    network: nn.Module,
    sets: Mapping[str, Samples | None],
    kind: str,
    settings: Mapping[str, Any],
    judge: Judge | None,
    progress: Callable[[int, int], None],
    base: nn.Module | None = None,
    answered: AnswerSet | None = None,
    panel: Panel = ALONE,
) -> ReconstructionAnswers:
    if judge is None:
        raise JobError("judge_missing", "Restored images are measured by a judge: register one with the model.")
    forget, retain = required(sets, "forget"), required(sets, "retain")
    test = sets["test"] or Samples(forget.x[:0], forget.y[:0])
    if kind == "class_label":
        test = Samples(*(part[~torch.isin(test.y, forget.y.unique())] for part in test))
    asked = {
        name: sample_of(samples.x, settings["images_per_set"], settings["seed"])
        for name, samples in (("forget", forget), ("retain", retain), ("test", test))
    }
    total, done = sum(len(x) for x in asked.values()), 0
    restored = {}
    for number, (name, x) in enumerate(asked.items()):
        first = settings["seed"] * SEEDS_APART + number * (SEEDS_APART // 3)
        before = done
        restored[name] = restore(family, network, x, settings, first, lambda now: progress(before + now, total))  # noqa: B023
        done += len(x)
    noise = noise_over(restored["forget"], settings["seed"])
    forgotten = {pixels(one) for one in forget.x}
    others = {
        name: np.array([pixels(one) not in forgotten for one in asked[name]], bool) for name in ("retain", "test")
    }
    shown = {name: Restored(*(each[own] for each in restored[name])) for name, own in others.items()}
    return ReconstructionAnswers(
        originals={name: each.originals for name, each in restored.items()},
        outputs={name: each.outputs for name, each in restored.items()},
        hidden={name: each.hidden for name, each in restored.items()},
        features={name: features(judge, each.outputs) for name, each in restored.items()},
        original_features={name: features(judge, each.originals) for name, each in restored.items()},
        noise=noise,
        noise_features=features(judge, noise),
        images=np.concatenate([rows(each) for each in shown.values()]),
        shown=tuple(name for name, each in shown.items() for _ in rows(each)),
    )


def recognised(
    family: ModuleType,
    settings: Mapping[str, Any],
    judge: Judge | None,
    network: nn.Module,
    samples: Samples,
    masks: Tensor | None = None,
) -> Tensor:
    """For attacks: whether the network gives the image away. The judge calls the restored image as it calls the original,
    and would not with noise or a plain colour in the place of what was restored: what the visible part tells does not count.
    `masks` (N, rows, columns) are instead of those that the settings name."""
    if judge is None:
        raise JobError("judge_missing", "Restored images are measured by a judge: register one with the model.")
    if len(samples.y) == 0:
        return torch.zeros(0, dtype=torch.bool)
    restored = restore(
        family, network, samples.x, settings, settings["seed"] * SEEDS_APART, lambda done: None, masks=masks
    )
    called, said = labels(judge, restored.originals), labels(judge, restored.outputs)
    given = (called == said) & (called != REJECTED)
    for blind in (noise_over(restored, settings["seed"]), *plain_over(restored)):
        given &= called != labels(judge, blind)
    return torch.from_numpy(given)


def labels(judge: Judge, images: np.ndarray) -> np.ndarray:
    return np.concatenate([judge(images[at : at + CHUNK])[0] for at in range(0, len(images), CHUNK)])


def sample_of(x: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of the images, chosen by the seed, in their order."""
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:most].sort().values
    return x[chosen.to(x.device)]


def pixels(image: Tensor) -> bytes:
    return image.cpu().numpy().tobytes()


def restore(
    family: ModuleType,
    network: nn.Module,
    x: Tensor,
    settings: Mapping[str, Any],
    first: int,
    progress: Callable[[int], None],
    masks: Tensor | None = None,
) -> Restored:
    """Every image with its hidden part restored; image i is masked and restored from seed `first` + i. `masks`, one per
    image, are instead of those that the settings name."""
    arrays: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [empty(family, network, x)]
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK]
        generator = torch.Generator().manual_seed(first + start)
        if masks is None:
            mask = family.masks(network, len(part), settings["pattern"], settings["hidden_share"], generator)
        else:
            mask = masks[start : start + CHUNK]
        mask = mask.to(x.device)
        seeds = first + start + torch.arange(len(part))
        output = family.reconstruct(network, part, mask, seeds, settings.get("sampling_steps", 1))
        original = family.pixels(network, part).clamp(-1, 1)
        hidden = family.hidden_pixels(network, mask)
        hidden = hidden if mask.any() else torch.ones_like(hidden)
        pictures = as_pictures(original), as_pictures(torch.where(hidden, output, original))
        arrays.append((*pictures, hidden.squeeze(1).cpu().numpy()))
        progress(start + len(part))
    return Restored(*(np.concatenate(each) for each in zip(*arrays, strict=True)))


def empty(family: ModuleType, network: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    channels, height, width = family.image_shape(network)
    none = np.zeros((0, height, width, channels), np.uint8)
    return none, none, np.zeros((0, height, width), bool)


def noise_over(restored: Restored, seed: int) -> np.ndarray:
    """The originals with N(0, I) where hidden, black being -1 and white 1."""
    shape = restored.originals.shape
    unit = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).permute(0, 3, 1, 2)
    return np.where(restored.hidden[..., None], as_pictures(unit), restored.originals)


def plain_over(restored: Restored) -> list[np.ndarray]:
    """The originals with black, grey or white where hidden, and with the mean of what is visible of each."""
    hidden = restored.hidden[..., None]
    visible = np.where(hidden, np.nan, restored.originals)
    seen = np.asarray(~restored.hidden.all(axis=(1, 2)))  # where nothing is visible, there is no mean
    means = np.full((len(seen), 1, 1, restored.originals.shape[3]), PLAIN[1], np.float64)
    means[seen] = np.nanmean(visible[seen], axis=(1, 2), keepdims=True)
    levels = [np.full_like(means, level) for level in PLAIN]
    return [np.where(hidden, level.round().astype(np.uint8), restored.originals) for level in (*levels, means)]


def features(judge: Judge, images: np.ndarray) -> np.ndarray:
    """The judge's, (n, d); its own d also where there is no image."""
    if len(images) == 0:
        return features(judge, np.zeros((1, *images.shape[1:]), np.uint8))[:0]
    return np.concatenate([judge(images[at : at + CHUNK]).features for at in range(0, len(images), CHUNK)])


def rows(restored: Restored) -> np.ndarray:
    """The first few images: original, what the network is shown of it, output: (rows, 3, H, W, C)."""
    original, output, hidden = (each[:SHOWN] for each in restored)
    grey = np.uint8(round((GREY + 1) * 127.5))
    whole = np.asarray(hidden.all(axis=(1, 2))).reshape(-1, 1, 1, 1)  # nothing is masked there
    masked = np.where(hidden[..., None] & ~whole, grey, original)
    return np.stack([original, masked, output], axis=1)
