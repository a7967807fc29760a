"""The judge: a registered image classifier that may answer "none of them".

A judge that must answer calls pure noise by some label in up to a quarter of the cases, so noise would look like
forgetting. This one rejects in two ways, both part of its registered files and so of its digest: a label of its own
for what is no image of any label (`none`, `reject` or `unknown` in config.json's id2label), and a confidence below
`reject_below` of config.json. It sees what a user would see: images of eight bits, prepared by its own rules.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REJECTED = -1
REJECT_LABELS = ("none", "reject", "unknown")


@dataclass(frozen=True)
class Judge:
    """An opened judge. `family` is its own family's module, which offers `prepare`, `predict` and `features`."""

    network: nn.Module
    family: ModuleType
    directory: Path
    digest: str

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 images (n, H, W, C) -> labels (n,), -1 where rejected, and penultimate features (n, d)."""
        x = self.family.prepare(list(images), self.directory, self.network)
        answers = self.family.predict(self.network, x).softmax(dim=1)
        sureness, position = answers.max(dim=1)
        labels = torch.tensor(self.positions(), device=position.device)[position]
        labels = labels.masked_fill(sureness < self.reject_below(), REJECTED)
        return labels.cpu().numpy(), self.family.features(self.network, x).cpu().numpy()

    def positions(self) -> list[int]:
        """For each output the label that it stands for: real labels counted in order, -1 for a reject label."""
        config: Any = self.network.config
        names = [str(config.id2label[position]).lower() for position in range(len(config.id2label))]
        real = [name not in REJECT_LABELS for name in names]
        return [sum(real[:position]) if is_real else REJECTED for position, is_real in enumerate(real)]

    def label_count(self) -> int:
        return max(self.positions()) + 1

    def reject_below(self) -> float:
        config: Any = self.network.config
        return float(getattr(config, "reject_below", 0.0))


def as_pictures(images: Tensor) -> np.ndarray:
    """Images in [-1, 1], (n, C, H, W) -> uint8 (n, H, W, C), rounded, not cut."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
