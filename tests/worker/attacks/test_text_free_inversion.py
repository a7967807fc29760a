"""What text-free inversion may move: what the denoiser is told of the forgotten labels, and nothing else."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from worker.attacks import CannotAttack, text_free_inversion
from worker.families import Samples


@pytest.mark.parametrize("name", ["unet", "dit", "sd", "sdxl", "sd3", "flux"])
def test_only_the_forgotten_label_s_embedding_moves(name: str, tmp_path: Path) -> None:
    network = tiny.opened(name, tmp_path / name)
    family: Any = tiny.FAMILIES[tiny.EVERY[name]]
    forget = tiny.samples(network, family, 30)
    forget = Samples(forget.x[:8], torch.full((8,), 2))
    base = [table.clone() for table in family.conditions(copy.deepcopy(network))]
    seen: list[list[Tensor]] = []

    def recognised(other: nn.Module, samples: Samples) -> Tensor:
        told = {id(table) for table in family.label_tables(other).values()}
        pairs = zip(other.parameters(), network.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs if id(a) not in told)
        if other is not network:
            now = (
                family.conditions(other) if told else [part for part in other.__dict__["kept"].encoded if part.numel()]
            )
            seen.append([table.detach().clone() for table in now])
        return torch.zeros(len(samples.y), dtype=torch.bool)

    found = text_free_inversion.attack(
        network, family, forget, forget, None, recognised, steps=3, generator=torch.Generator().manual_seed(0)
    )
    null = family.null_label(network)
    assert [row["step"] for row in found["rows"]] == [0, 3] and len(seen) == 2
    for before, start, end in zip(base, *seen, strict=True):
        assert torch.equal(start[2], before[null]) and not torch.equal(end[2], start[2])
        rows = [row for row in range(len(before)) if row != 2]
        assert torch.equal(start[rows], before[rows]) and torch.equal(end[rows], before[rows])
    assert found["budget"] == {"images": 4, "steps": 3, "numbers": sum(table[2].numel() for table in base)}


def test_the_strongest_moment_after_the_start_is_the_figure(tmp_path: Path) -> None:
    network, family = tiny.opened("unet", tmp_path / "unet"), tiny.FAMILIES["class_diffusion"]
    forget = tiny.samples(network, family, 8)
    counts = iter([4, 4, 3, 1])  # of the network itself, at step 0, 20 and 21

    def recognised(other: nn.Module, samples: Samples) -> Tensor:
        return torch.arange(len(samples.y)) < next(counts)

    found = text_free_inversion.attack(
        network, family, forget, forget, None, recognised, steps=21, generator=torch.Generator().manual_seed(0)
    )
    assert [(row["step"], row["success"]) for row in found["rows"]] == [(0, 4), (20, 3), (21, 1)]
    assert found["before"] == {"success": 4, "total": 4} and found["after"] == {"success": 3, "total": 4}


def test_it_needs_something_left_to_measure_on(tmp_path: Path) -> None:
    network, family = tiny.opened("unet", tmp_path / "unet"), tiny.FAMILIES["class_diffusion"]
    one = tiny.samples(network, family, 1)
    with pytest.raises(CannotAttack, match="one sample"):
        text_free_inversion.attack(network, family, one, one, None, lambda *_: one.y, generator=torch.Generator())  # type: ignore[arg-type]
