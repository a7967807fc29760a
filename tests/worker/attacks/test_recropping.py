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


def striped(shape: tuple[int, ...], sign: float = 1.0) -> Tensor:
    """Rows by turns light and dark, or dark and light."""
    rows = torch.arange(shape[-2]) % 2 * 2.0 - 1
    return (0.9 * sign * rows[:, None]).expand(shape).clone()


class Stripes:
    """A judge that calls an image by its stripes: 1 as `striped`, 0 the other way round; it rejects what has neither."""

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.arange(images.shape[1]) % 2 * 2.0 - 1
        told = ((images / 127.5 - 1) * rows[None, :, None, None]).mean((1, 2, 3))
        return np.where(told > 0.6, 1, np.where(told < -0.6, 0, -1)), told[:, None]


class Restoring:
    """A masked autoencoder's family whose networks restore everything as one image."""

    def __init__(self, image: Tensor) -> None:
        self.image = image

    def __getattr__(self, name: str) -> Any:
        return getattr(masked_autoencoder, name)

    def pixels(self, network: nn.Module, x: Tensor) -> Tensor:
        return x

    def reconstruct(self, network: nn.Module, x: Tensor, mask: Tensor, seeds: Tensor, steps: int) -> Tensor:
        return self.image.expand_as(x)


def given_away(restored: float, share_hidden: float, tmp_path: Path) -> list[bool]:
    """Of three striped images whose hidden part is restored as stripes of this sign."""
    network = opened_first("masked_autoencoder", tmp_path)
    shape = masked_autoencoder.image_shape(network)
    family: Any = Restoring(striped(shape, restored))
    judge: Any = Stripes()
    settings = {"pattern": "random", "hidden_share": share_hidden, "seed": 0}
    samples = Samples(striped((3, *shape)), torch.zeros(3, dtype=torch.int64))
    return reconstruction.recognised(family, settings, judge, network, samples).tolist()


def test_what_the_visible_part_tells_is_not_given_away(tmp_path: Path) -> None:
    assert given_away(1.0, 0.8, tmp_path / "a") == [True] * 3  # restored, and nothing else in its place would do
    assert given_away(-1.0, 0.8, tmp_path / "b") == [False] * 3  # restored as something else
    assert given_away(0.0, 0.8, tmp_path / "c") == [False] * 3  # restored as nothing
    assert given_away(1.0, 0.1, tmp_path / "d") == [False] * 3  # right, but so it is with noise or grey in its place


def test_what_a_network_that_knows_nothing_might_fill_a_hole_with() -> None:
    originals = np.zeros((2, 2, 2, 1), np.uint8)
    originals[0, 0] = 100
    hidden = np.array([[[False, False], [True, True]], [[True, True], [True, True]]])
    filled = reconstruction.plain_over(reconstruction.Restored(originals, originals, hidden))
    assert [each[0, 1, 0, 0] for each in filled] == [0, 128, 255, 100]  # the last: the mean of what is visible
    assert [each[1, 1, 0, 0] for each in filled] == [0, 128, 255, 128] and all(
        (each[0, 0] == 100).all() for each in filled
    )
