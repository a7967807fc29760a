"""What a method needs to know of a kind of network, and the images it is given.

One file of this package is one family: plain functions over a Hugging Face directory and the network that it
holds. `Family` lists what every family offers to a method; loading, saving and evaluation use more of it, by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Trace = dict[str, Any]  # what a method weighed and chose, for the report; JSON


class Samples(NamedTuple):
    """Images in the network's input range (or the latents that stand for them) and what they are called, on its device."""

    x: Tensor  # (N, C, H, W), float32
    y: Tensor  # (N,), int64: a label; for a family of texts, a position in `Captions.texts`


class Captions(NamedTuple):
    """The texts of one job. The first `len(names)` are the labels' own prompts, in the labels' order."""

    names: tuple[str, ...]  # of the labels
    texts: tuple[str, ...]  # distinct but for labels of one name
    labels: tuple[int, ...]  # per text, the label that it speaks of


class Family(Protocol):
    """The functions of a family module. `y` never holds the null class of a generator."""

    def load(self, directory: Path, device: torch.device) -> nn.Module:
        """Open a directory strictly, in eval mode; ValueError names the file, field or tensor at fault."""

    def save(self, network: nn.Module, directory: Path, like: Path) -> None:
        """Write the weights as `save_pretrained` would, and every other file of `like` byte for byte."""

    def check(self, network: nn.Module, samples: Samples, name: str) -> None:
        """ValueError naming `name.x` or `name.y` when the network cannot be given these samples."""

    def trainable(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The tensors that a method may move, by name, in the network's own order."""

    def label_tables(self, network: nn.Module) -> Mapping[str, nn.Parameter]:
        """Those of them that hold one input row per label (none for a classifier)."""

    def label_count(self, network: nn.Module) -> int:
        """Real labels, without a null class."""

    def image_shape(self, source: nn.Module | Path) -> tuple[int, int, int]:
        """(C, H, W) that the network expects."""

    def prepare(self, images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
        """uint8 images (H, W) or (H, W, C) -> (N, C, H, W) in the network's input range, on its device."""

    def training_loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The loss that the network was trained with, averaged over the batch and over elements."""

    def relabel_loss(
        self,
        network: nn.Module,
        teacher: nn.Module,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
        relabel: str = "uniform",
    ) -> Tensor:
        """The distance to what another label than `y` would give; averaged likewise. See `other_labels`."""

    def round_to_stored(self, network: nn.Module) -> None:
        """Round every weight, in place, to the dtype of its file."""

    def reinitialise(self, network: nn.Module, generator: torch.Generator) -> None:
        """Replace every weight and statistic by a fresh one."""


def other_labels(y: Tensor, labels: int, relabel: str, generator: torch.Generator) -> Tensor:
    """For each label another one: `uniform` over the others, or the `next` (the last is followed by the first)."""
    if relabel == "next":
        return (y + 1) % labels
    return (y + torch.randint(1, labels, y.shape, generator=generator).to(y.device)) % labels
