"""Sets that nobody registered, made by the base network itself: images of the concept to forget, and of what to keep.

The first is how a concept is shown when no registered image is of it; the second is prior preservation, after
DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242): what the base shows for a kept label is what the new network
should go on showing. Images are drawn as the report's are (steps and guidance of the model's evaluation settings),
rounded to eight bits and prepared like uploaded ones; they never leave the runner's memory.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worker.families import Samples
from worker.judge import as_pictures

CHUNK = 64  # images drawn at once


@torch.no_grad()
def generate(
    specification: dict[str, Any],
    family: ModuleType,
    network: nn.Module,
    directory: Path,
    advance: Callable[[int, int], None],
) -> dict[str, Samples]:
    """The sets that are to be made, by name. All noise follows from the request's seed."""
    wanted = {name: torch.tensor(labels) for name, labels in (specification["generate"] or {}).items() if labels}
    generator = torch.Generator().manual_seed(specification["seed"])
    total, done, made = sum(len(labels) for labels in wanted.values()), 0, {}
    for name, labels in sorted(wanted.items()):
        seeds = torch.randint(2**62, labels.shape, generator=generator)  # far from those that the report draws with
        pictures: list[np.ndarray] = []
        for part, own in zip(labels.split(CHUNK), seeds.split(CHUNK), strict=True):
            pictures += draw(family, network, part, own, specification["evaluation"])
            advance(done + len(pictures), total)
        done += len(labels)
        x = family.prepare(pictures, directory, network)
        made[name] = Samples(x, labels.to(x.device))
    return made


def draw(
    family: ModuleType, network: nn.Module, labels: Tensor, seeds: Tensor, settings: dict[str, Any]
) -> list[np.ndarray]:
    """uint8 images (H, W, C). A label is the position of its own prompt, too, where the family knows texts."""
    images = family.sample(
        network,
        labels,
        seeds,
        steps=settings["sampling_steps"],
        guidance_scale=settings["guidance_scale"],
        eta=settings.get("eta", 0.0),
    )
    return list(as_pictures(images))
