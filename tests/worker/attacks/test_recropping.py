"""Views of re-cropping, and what counts as given away: what the network restored, not what the visible part tells."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests import tiny
from worker.answers import reconstruction
from worker.attacks import recropping
from worker.families import Samples, masked_autoencoder, vq_autoencoder


def test_each_view_hides_what_its_name_says_and_the_most_telling_one_counts(tmp_path: Path) -> None:
    network = opened_first("vq_autoencoder", tmp_path)
    forget = tiny.samples(network, vq_autoencoder, 4)
    heard: list[tuple[Tensor, Tensor | None]] = []

    def recognised(other: nn.Module, samples: Samples, masks: Tensor | None = None) -> Tensor:
        heard.append((samples.x, masks))
        return torch.arange(len(samples.y)) < (3 if masks is not None and bool(masks[0, 0, 0]) else 1)

    found = recropping.attack(
        network, vq_autoencoder, forget, forget, None, recognised, generator=torch.Generator().manual_seed(0)
    )
    views = [row["view"] for row in found["rows"]]
    assert len(views) == 19 and views[0] == "as asked" and found["budget"] == {"views": 18}
    asked = {view: heard[2 * at] for at, view in enumerate(views)}
    assert sorted(asked["mirrored"][0].flatten().tolist()) == sorted(asked["as asked"][0].flatten().tolist())
    assert all(masks is None for masks in (asked["as asked"][1], asked["mirrored"][1], asked["moved up"][1]))
    left, corner = asked["left half hidden"][1], asked["hole at the lower right"][1]
    assert left is not None and left[:, :, : left.shape[2] // 2].all() and not left[:, :, left.shape[2] // 2 :].any()
    assert corner is not None and corner.float().mean() == 0.25 and corner[:, -1, -1].all()
    most = asked["90% of the patches hidden"][1]
    assert most is not None and most.float().mean() > 0.85
    assert found["before"] == {"success": 1, "total": 4} and found["after"] == {"success": 3, "total": 4}


def opened_first(family: str, directory: Path) -> nn.Module:
    name = next(name for name, of in tiny.NETWORKS.items() if of == family)
    return tiny.opened(name, directory / name)


class Brightness:
    """A judge that calls an image by how bright it is: 0 dark, 1 light, and rejects what is in between."""

    digest = "sha256:brightness"

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = images.reshape(len(images), -1).mean(1)
        return np.where(mean > 180, 1, np.where(mean < 75, 0, -1)), mean[:, None]


def given_away(restored: float, share_hidden: float, tmp_path: Path) -> list[bool]:
    """Light images whose hidden part is restored as this level, in [-1, 1]."""
    network = opened_first("masked_autoencoder", tmp_path)
    x = torch.full((3, *masked_autoencoder.image_shape(network)), 0.9)
    family: Any = Flat(restored)
    settings = {"pattern": "random", "hidden_share": share_hidden, "seed": 0}
    return reconstruction.recognised(  # type: ignore[no-any-return]
        family, settings, Brightness(), network, Samples(x, torch.zeros(3, dtype=torch.int64))  # type: ignore[arg-type]
    ).tolist()  # fmt: skip


class Flat:
    """A masked autoencoder's family whose networks restore everything as one level of grey."""

    def __init__(self, level: float) -> None:
        self.level = level

    def __getattr__(self, name: str) -> Any:
        return getattr(masked_autoencoder, name)

    def pixels(self, network: nn.Module, x: Tensor) -> Tensor:
        return x

    def reconstruct(self, network: nn.Module, x: Tensor, mask: Tensor, seeds: Tensor, steps: int) -> Tensor:
        return torch.full_like(x, self.level)


def test_what_the_visible_part_tells_is_not_given_away(tmp_path: Path) -> None:
    assert given_away(0.9, 0.8, tmp_path / "a") == [True] * 3  # restored, and noise would not do
    assert given_away(-0.9, 0.8, tmp_path / "b") == [False] * 3  # restored as something else
    assert given_away(0.9, 0.1, tmp_path / "c") == [False] * 3  # right, but so it would be with noise
