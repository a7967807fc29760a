"""Scikit-learn's digits as image sets, and a small judge of them whose few features stand for Inception's.

The 1,797 handwritten digits of 8x8 pixels are enlarged to 16x16. Two thirds of each class are what the base networks
are trained on; of the rest, images of retained classes are the unseen test set. The judge is a ResNet of transformers
with FEATURES penultimate features, so that a few hundred images are many times the dimension, and it has an eleventh
label, `none`, for what is no digit: noise, plain grey, digits cut into shuffled tiles. Without it, noise would land
at random among the digits' features.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

SIZE = 16
JUDGED = 32  # what the judge enlarges them to, since a ResNet's stem quarters its input
CLASSES = 10
FEATURES = 12
NONE = CLASSES  # the judge's label for what is no digit
EPOCHS = 40


class Sets(NamedTuple):
    """uint8 images (n, SIZE, SIZE, 1) and their labels."""

    images: np.ndarray
    labels: np.ndarray

    def of(self, classes: tuple[int, ...]) -> "Sets":
        chosen = np.isin(self.labels, classes)
        return Sets(self.images[chosen], self.labels[chosen])


def digits(seen: bool) -> Sets:
    """The images that the base networks are trained on, or the others; the split is by a fixed seed."""
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    chosen = order[: len(labels) * 2 // 3] if seen else order[len(labels) * 2 // 3 :]
    small = torch.from_numpy(pixels[chosen].reshape(-1, 1, 8, 8)).float() / 16
    large = F.interpolate(small, (SIZE, SIZE), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return Sets(images, labels[chosen].astype(np.int64))


def pixels(sets: Sets) -> Tensor:
    """The images in [-1, 1], (n, 1, SIZE, SIZE)."""
    return torch.from_numpy(sets.images).permute(0, 3, 1, 2).float() / 127.5 - 1


def moved(x: Tensor, generator: torch.Generator, far: int = 2) -> Tensor:
    """Each image shifted by up to `far` pixels, its border repeated."""
    padded = F.pad(x, (far, far, far, far), mode="replicate")
    tops, lefts = torch.randint(2 * far + 1, (2, len(x)), generator=generator).tolist()
    pairs = zip(padded, tops, lefts, strict=True)
    return torch.stack([each[:, top : top + SIZE, left : left + SIZE] for each, top, left in pairs])


def no_digits(x: Tensor, generator: torch.Generator) -> Tensor:
    """As many images of nothing: noise of several strengths, plain greys, and the digits in shuffled tiles."""
    count = len(x)
    spread = torch.rand(count, 1, 1, 1, generator=generator)
    noise = torch.randn(x.shape, generator=generator) * spread + torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1
    tiles = F.unfold(x, SIZE // 4, stride=SIZE // 4)  # (n, pixels of a tile, 16)
    orders = torch.rand(count, 1, tiles.shape[2], generator=generator).argsort(dim=2).expand_as(tiles)
    shuffled = F.fold(tiles.gather(2, orders), SIZE, SIZE // 4, stride=SIZE // 4)
    return torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, noise, shuffled).clamp(-1, 1)


def make(directory: Path) -> None:
    """Train the judge (about half a minute on one core) and save it as a directory that a user would register."""
    generator = torch.Generator().manual_seed(0)
    seen = digits(seen=True)
    x, y = pixels(seen), torch.from_numpy(seen.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names = {position: str(position) for position in range(CLASSES)} | {NONE: "none"}
        network = ResNetForImageClassification(
            ResNetConfig(
                num_channels=1,
                embedding_size=16,
                hidden_sizes=[16, 32, FEATURES],
                depths=[1, 1, 1],
                layer_type="basic",
                downsample_in_first_stage=False,
                id2label=names,
                label2id={name: position for position, name in names.items()},
            )
        )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    total = EPOCHS * -(-len(y) // 128)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    network.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y), generator=generator).split(128):
            digit = moved(x[rows], generator)
            nothing = no_digits(x[rows[: len(rows) // 4]], generator)
            targets = torch.cat([y[rows], torch.full((len(nothing),), NONE)])
            shown = F.interpolate(torch.cat([digit, nothing]), (JUDGED, JUDGED), mode="bilinear", align_corners=False)
            loss = F.cross_entropy(network(shown).logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    network.eval().save_pretrained(directory)
    rules = {"size": {"height": JUDGED, "width": JUDGED}, "image_mean": [0.5], "image_std": [0.5]}
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")
