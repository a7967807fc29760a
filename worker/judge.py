"""The judge: a registered image classifier that may answer "none of them".

A judge that must answer calls pure noise by some label in up to a quarter of the cases, so noise would look like
forgetting. This one rejects in two ways, both part of its registered files and so of its digest: a label of its own
for what is no image of any label (`none`, `reject` or `unknown` in config.json's id2label), and a confidence below
`reject_below` of config.json. It sees what a user would see: images of eight bits, prepared by its own rules.

Its labels are the model's by their order; for a model that knows labels by words (`names`) they are so by name, and the
judge may know others, which are numbered behind the model's.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

REJECTED = -1
REJECT_LABELS = ("none", "reject", "unknown")


class Judged(NamedTuple):
    labels: np.ndarray  # (n,), int: -1 where rejected
    features: np.ndarray  # (n, d): penultimate
    probabilities: np.ndarray  # (n, outputs): softmax over all that it can answer, in its own order
    forced: np.ndarray  # (n,), int: the label where it must answer, its likeliest that is one


@dataclass(frozen=True)
class Judge:
    """An opened judge. `family` is its own family's module, which offers `prepare`, `predict` and `features`."""

    network: nn.Module
    family: ModuleType
    directory: Path
    digest: str
    names: tuple[str, ...] = ()  # the model's labels, where they are words

    def __call__(self, images: np.ndarray) -> Judged:
        """Of uint8 images (n, H, W, C)."""
        return self.judged(*self.see(images))

    def see(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities and features of uint8 images (n, H, W, C): what it says whatever a job's labels are."""
        x = self.family.prepare(list(images), self.directory, self.network)
        answers = self.family.predict(self.network, x).softmax(dim=1)
        return answers.cpu().numpy(), self.family.features(self.network, x).cpu().numpy()

    def judged(self, probabilities: np.ndarray, features: np.ndarray) -> Judged:
        """What it thereby says of a job's labels."""
        places = np.array(self.positions())
        sure = probabilities.max(axis=1) >= np.float32(self.reject_below())
        labels = np.where(sure, places[probabilities.argmax(axis=1)], REJECTED)
        forced = places[np.where(places == REJECTED, -1.0, probabilities).argmax(axis=1)]
        return Judged(labels, features, probabilities, forced)

    def positions(self) -> list[int]:
        """For each output the label that it stands for: by order or by name, -1 for a reject label."""
        config: Any = self.network.config
        names = [str(config.id2label[position]).lower() for position in range(len(config.id2label))]
        real = [name not in REJECT_LABELS for name in names]
        order = [sum(real[:position]) for position in range(len(names))]
        if self.names:
            places = {name.lower(): place for place, name in enumerate(self.names)}
            order = [places.get(name, len(places) + position) for position, name in enumerate(names)]
        return [place if is_real else REJECTED for place, is_real in zip(order, real, strict=True)]

    def label_count(self) -> int:
        """The labels that it knows; of `names`, where there are such."""
        known = set(self.positions()) - {REJECTED}
        return len([place for place in known if place < len(self.names)]) if self.names else len(known)

    def reject_below(self) -> float:
        config: Any = self.network.config
        return float(getattr(config, "reject_below", 0.0))


def as_pictures(images: Tensor) -> np.ndarray:
    """Images in [-1, 1], (n, C, H, W) -> uint8 (n, H, W, C), rounded, not cut."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
