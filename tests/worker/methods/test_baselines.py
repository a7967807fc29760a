"""The methods that SalUn is compared with: each does what its box says, and reads only what it says."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from worker.families import Samples, image_classifier
from worker.methods import finetune, gradient_ascent, random_label, retrain, salun

RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 8}


@pytest.fixture
def base(tmp_path: Path) -> nn.Module:
    return image_classifier.load(tiny.write("vit", tmp_path), torch.device("cpu"))


@pytest.fixture
def sets(base: nn.Module) -> tuple[Samples, Samples, Samples]:
    return tuple(tiny.samples(base, image_classifier, 24, seed) for seed in (1, 2, 3))  # type: ignore[return-value]


def run(method: Any, base: nn.Module, forget: Samples, retain: Samples, **recipe: Any) -> torch.Tensor:
    network = copy.deepcopy(base)
    method.unlearn(network, image_classifier, forget, retain, **recipe, generator=torch.Generator().manual_seed(0))
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.parametrize("method", [finetune, retrain])
def test_never_reads_the_forget_set(method: Any, base: nn.Module, sets: Any) -> None:
    forget, retain, other = sets
    assert torch.equal(run(method, base, forget, retain, **RECIPE), run(method, base, other, retain, **RECIPE))
    assert not torch.equal(run(method, base, forget, retain, **RECIPE), run(method, base, forget, other, **RECIPE))


def test_gradient_ascent_reads_the_retain_set_only_when_it_weighs(base: nn.Module, sets: Any) -> None:
    forget, retain, other = sets
    alone = run(gradient_ascent, base, forget, retain, **RECIPE)
    assert torch.equal(alone, run(gradient_ascent, base, forget, other, **RECIPE))
    kept = [run(gradient_ascent, base, forget, each, **RECIPE, alpha=1.0) for each in (retain, other)]
    assert not torch.equal(kept[0], kept[1])


def test_gradient_ascent_raises_the_forget_loss_and_finetune_lowers_the_retain_loss(base: nn.Module, sets: Any) -> None:
    forget, retain, _ = sets
    for method, name, sign in ((gradient_ascent, "forget_loss", 1), (finetune, "retain_loss", -1)):
        losses: list[float] = []
        recipe = {"schedule": "steps", "steps": 20, "batch_size": 24, "learning_rate": 0.02}
        run(method, base, forget, retain, **recipe, on_step=lambda *told: losses.append(float(told[2][name])))  # noqa: B023
        assert (losses[-1] - losses[0]) * sign > 0.05


def test_retrain_knows_nothing_of_the_base(base: nn.Module, sets: Any) -> None:
    forget, retain, _ = sets
    other = copy.deepcopy(base)
    image_classifier.reinitialise(other, torch.Generator().manual_seed(99))
    assert torch.equal(run(retrain, base, forget, retain, **RECIPE), run(retrain, other, forget, retain, **RECIPE))


def test_retrain_learns_and_its_rate_falls_to_nothing(base: nn.Module, sets: Any) -> None:
    _, retain, _ = sets
    rates: list[float] = []
    losses: list[float] = []

    def on_step(step: int, total: int, figures: dict[str, Any], moving: Any) -> None:
        rates.append(moving["optimizer"].param_groups[0]["lr"])
        losses.append(float(figures["retain_loss"]))

    recipe = {"schedule": "steps", "steps": 60, "batch_size": 24, "optimizer": "adam", "learning_rate": 0.01}
    run(retrain, base, retain, retain, **recipe, on_step=on_step)
    assert losses[-1] < 0.5 * losses[0]
    assert rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 1e-4


def test_random_label_under_a_mask_is_salun(base: nn.Module, sets: Any) -> None:
    forget, retain, _ = sets
    masked = run(random_label, base, forget, retain, **RECIPE, mask="salient", mask_fraction=0.4)
    assert torch.equal(masked, run(salun, base, forget, retain, **RECIPE, mask_fraction=0.4))
    assert not torch.equal(masked, run(random_label, base, forget, retain, **RECIPE))
