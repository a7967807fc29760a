"""Baselines for classifiers: each last line of a box, the linear algebra, and what is read and what is not."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests import tiny
from worker.families import Samples, image_classifier
from worker.methods import boundary_expand, boundary_shrink, finetune, influence, l1_sparse, ssd

RECIPE: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 0.01}
CLASSIFIERS = pytest.mark.parametrize(
    "name", [name for name, kind in tiny.NETWORKS.items() if kind == "image_classifier"]
)


def opened(name: str, directory: Path) -> nn.Module:
    return image_classifier.load(tiny.write(name, directory), torch.device("cpu"))


@pytest.fixture
def base(tmp_path: Path) -> nn.Module:
    return opened("vit", tmp_path)


@pytest.fixture
def sets(base: nn.Module) -> tuple[Samples, Samples, Samples]:
    return tuple(tiny.samples(base, image_classifier, 24, seed) for seed in (1, 2, 3))  # type: ignore[return-value]


def run(method: Any, base: nn.Module, forget: Samples, retain: Samples, **recipe: Any) -> nn.Module:
    network = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    method.unlearn(network, image_classifier, forget, retain, **recipe, generator=generator)
    return network


def flat(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def bits(network: nn.Module) -> Tensor:
    return flat(network).view(torch.int32)


def learnt(network: nn.Module, samples: Samples, steps: int = 60) -> nn.Module:
    """The same network, trained until it knows these samples."""
    network = copy.deepcopy(network)
    mover = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        mover.zero_grad()
        F.cross_entropy(image_classifier.logits(network, samples.x), samples.y).backward()
        mover.step()
    mover.zero_grad()
    return network


def accuracy(network: nn.Module, samples: Samples) -> float:
    return float((image_classifier.predict(network, samples.x).argmax(1) == samples.y).float().mean())


@CLASSIFIERS
def test_l1_sparse_without_a_penalty_is_finetune_bit_for_bit(name: str, tmp_path: Path) -> None:
    base = opened(name, tmp_path)
    forget, retain, other = (tiny.samples(base, image_classifier, 20, seed) for seed in (1, 2, 3))
    assert torch.equal(
        bits(run(l1_sparse, base, forget, retain, **RECIPE, gamma=0.0)),
        bits(run(finetune, base, other, retain, **RECIPE)),
    )


def test_l1_sparse_shrinks_weights_and_its_penalty_fades(base: nn.Module, sets: Any) -> None:
    forget, retain, other = sets
    sizes = {
        (gamma, decay): float(
            flat(run(l1_sparse, base, forget, retain, **RECIPE, gamma=gamma, gamma_decay=decay)).abs().sum()
        )
        for gamma in (0.0, 0.05)
        for decay in ("linear", "none")
    }
    assert sizes[0.0, "linear"] == sizes[0.0, "none"]
    assert sizes[0.05, "none"] < sizes[0.05, "linear"] < sizes[0.0, "none"]
    one, two = (run(l1_sparse, base, each, retain, **RECIPE, gamma=0.05) for each in (forget, other))
    assert torch.equal(bits(one), bits(two))


def test_the_l1_gradient_is_the_norm_s() -> None:
    weight = nn.Parameter(torch.tensor([-2.0, 0.0, 0.5]))
    weight.grad = torch.ones(3)
    l1_sparse.add_l1([weight], 0.3)
    (expected,) = torch.autograd.grad(0.3 * weight.abs().sum(), weight)
    assert torch.allclose(weight.grad, 1 + expected)


@pytest.mark.parametrize("mask", ["none", "salient"])
def test_influence_solves_with_the_dense_fisher_matrix(mask: str, base: nn.Module, sets: Any) -> None:
    forget, retain, _ = sets
    base = learnt(base, Samples(torch.cat([forget.x, retain.x]), torch.cat([forget.y, retain.y])), steps=5)
    recipe = {"alpha": 0.5, "damping": 0.3, "fisher_samples": 24, "iterations": 60, "mask": mask, "mask_fraction": 0.4}
    network = run(influence, base, forget, retain, **recipe)
    theta = list(base.parameters())

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return influence.flat(list(torch.autograd.grad(F.cross_entropy(base(x).logits, y), theta))).double()

    images = torch.stack([gradient(*each) for each in zip(retain.x.split(1), retain.y.split(1), strict=True)])
    H = 0.3 * torch.eye(images.shape[1]).double() + images.T @ images / len(images)
    expected = 0.5 * torch.linalg.solve(H, 0.5 * (gradient(*forget) - gradient(*retain)))
    if mask == "salient":
        m = torch.cat([each.flatten() for each in influence.saliency_mask([gradient(*forget).abs()], 0.4)])
        assert torch.equal(bits(network)[~m], bits(base)[~m])
        expected = expected * m
    assert (flat(network) - flat(base) - expected).norm() < 1e-3 * expected.norm()


def test_influence_drives_the_two_losses_apart(base: nn.Module, sets: Any) -> None:
    forget, retain, _ = sets
    base = learnt(base, Samples(torch.cat([forget.x, retain.x]), torch.cat([forget.y, retain.y])), steps=10)
    network = run(influence, base, forget, retain, alpha=0.05, damping=0.1, iterations=20)
    losses = [
        [float(F.cross_entropy(image_classifier.predict(each, part.x), part.y)) for each in (base, network)]
        for part in (forget, retain)
    ]
    assert losses[0][1] - losses[1][1] > losses[0][0] - losses[1][0] + 1e-3
    assert losses[0][1] > losses[0][0]


def test_influence_of_a_set_like_the_rest_is_nothing(base: nn.Module, sets: Any) -> None:
    network = run(influence, base, sets[0], sets[0])
    assert (flat(network) - flat(base)).abs().max() < 1e-7


def test_influence_tells_how_far_the_solution_is(base: nn.Module, sets: Any) -> None:
    told: list[float] = []
    network = copy.deepcopy(base)
    trace = influence.unlearn(
        network,
        image_classifier,
        *sets[:2],
        damping=0.1,
        generator=torch.Generator(),
        on_step=lambda *step: told.append(float(step[2]["residual"])),
    )
    assert len(told) == 10
    assert told[-1] < 0.01 * told[0]
    assert trace["residual"] == pytest.approx(told[-1])
    assert trace["moved"] == pytest.approx(float((flat(network) - flat(base)).norm()), rel=1e-3)


@CLASSIFIERS
def test_boundary_expand_returns_the_base_s_shapes_and_forgets(name: str, tmp_path: Path) -> None:
    base = opened(name, tmp_path)
    whole = tiny.samples(base, image_classifier, 60, 1)
    base = learnt(base, whole)
    forget, retain = (Samples(whole.x[part], whole.y[part]) for part in (whole.y == 0, whole.y != 0))
    assert accuracy(base, forget) > 0.9
    shapes: list[Any] = []

    def note(step: int, total: int, figures: Any, moving: Any) -> None:
        shapes.append(
            {key: tuple(tensor.shape) for key, tensor in moving["network"].state_dict().items()} if moving else None
        )

    recipe = {"epochs": 40, "batch_size": 16, "learning_rate": 0.05, "weight_decay": 0.0, "on_step": note}
    network = run(boundary_expand, base, forget, retain, **recipe)
    plain = {key: tuple(tensor.shape) for key, tensor in base.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == plain
    assert list(network.state_dict()) == list(plain)
    assert boundary_expand.last_layer(network, tiny.LABELS).out_features == tiny.LABELS
    widened = {key for key, shape in shapes[-1].items() if shape != plain[key]}
    assert {shapes[-1][key][0] for key in widened} == {tiny.LABELS + 1}
    assert len(widened) == 2
    assert accuracy(network, forget) < accuracy(base, forget) - 0.2


@pytest.mark.parametrize("method", [boundary_expand, boundary_shrink])
def test_boundary_methods_never_read_the_retain_set(method: Any, base: nn.Module, sets: Any) -> None:
    forget, retain, other = sets
    assert torch.equal(
        bits(run(method, base, forget, retain, **RECIPE)), bits(run(method, base, forget, other, **RECIPE))
    )
    assert not torch.equal(
        bits(run(method, base, forget, retain, **RECIPE)), bits(run(method, base, other, retain, **RECIPE))
    )


def test_boundary_expand_refuses_a_last_layer_that_is_not_linear() -> None:
    with pytest.raises(ValueError, match="network: its last layer is not linear"):
        boundary_expand.last_layer(nn.Sequential(nn.Conv2d(3, 4, 1)), 4)


def test_the_nearest_wrong_label_is_never_the_own_one_even_where_one_step_does_not_get_across(
    base: nn.Module, sets: Any
) -> None:
    base = learnt(base, sets[0])
    x, y = sets[0]
    nearest = boundary_shrink.nearest_wrong_label(base, image_classifier, x, y, 0.0, (-1.0, 1.0))
    assert accuracy(base, sets[0]) > 0.9
    assert not bool((nearest == y).any())
    scores = image_classifier.predict(base, x).scatter(1, y[:, None], -math.inf)
    assert torch.equal(nearest, scores.argmax(1))


def test_the_step_across_the_boundary_is_a_share_of_the_range_and_stays_inside_it() -> None:
    seen: list[Tensor] = []

    class Watching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], dim=1)

    class Family:
        @staticmethod
        def logits(network: nn.Module, x: Tensor) -> Tensor:
            scores: Tensor = network(x)
            return scores

    x = torch.tensor([-1.0, 2.9]).reshape(2, 1, 1, 1)
    family: Any = Family
    nearest = boundary_shrink.nearest_wrong_label(Watching(), family, x, torch.tensor([1, 1]), 0.1, (-1.0, 3.0))
    assert nearest.tolist() == [0, 0]
    assert seen[-1].flatten().tolist() == pytest.approx([-0.6, 3.0])


def test_boundary_shrink_gives_the_forget_set_to_its_neighbours(base: nn.Module, sets: Any) -> None:
    base = learnt(base, sets[0])
    before = accuracy(base, sets[0])
    network = run(
        boundary_shrink, base, sets[0], sets[1], epochs=30, batch_size=8, learning_rate=0.01, optimizer="adam"
    )
    span = float(sets[0].x.min()), float(sets[0].x.max())
    nearest = boundary_shrink.nearest_wrong_label(base, image_classifier, *sets[0], 0.1, span)
    assert accuracy(network, sets[0]) < before - 0.5
    assert accuracy(network, Samples(sets[0].x, nearest)) > 0.8


@pytest.mark.parametrize(("batch_size", "batch_by"), [(1, "order"), (6, "order"), (6, "label")])
def test_ssd_is_its_formula_and_no_weight_grows(batch_size: int, batch_by: str, base: nn.Module, sets: Any) -> None:
    forget, retain, _ = sets
    network = run(ssd, base, forget, retain, selection=1.1, dampening=0.6, batch_size=batch_size, batch_by=batch_by)

    def importance(samples: Samples) -> Tensor:
        order = samples.y.argsort(stable=True) if batch_by == "label" else torch.arange(len(samples.y))
        squares = [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(F.cross_entropy(base(x).logits, y), [*base.parameters()])]
            )
            for x, y in zip(samples.x[order].split(batch_size), samples.y[order].split(batch_size), strict=True)
        ]
        return torch.stack(squares).square().mean(0)

    of_forget, of_all = importance(forget), (importance(forget) + importance(retain)) / 2
    chosen = of_forget > 1.1 * of_all
    factor = (0.6 * of_all / of_forget).clamp(max=1.0)
    expected = torch.where(chosen, flat(base) * factor, flat(base))
    settled = (of_forget / of_all - 1.1).abs() > 1e-3  # not on the very edge of the selection
    assert 0 < int(chosen.sum()) < len(chosen)
    assert torch.allclose(flat(network)[settled], expected[settled], rtol=1e-3, atol=1e-7)
    assert torch.equal(bits(network)[settled & ~chosen], bits(base)[settled & ~chosen])
    assert bool((flat(network).abs() <= flat(base).abs()).all())


def test_with_single_images_ssd_cannot_choose_more_than_the_sets_sizes_allow(base: nn.Module, sets: Any) -> None:
    """I_f is at most (n_f + n_r) / n_f times I_D: what the docstring warns of."""
    forget, retain, _ = sets
    still = run(ssd, base, forget, retain, selection=2.001, batch_size=1)
    assert torch.equal(bits(still), bits(base))


def test_ssd_by_label_forgets_a_label_and_keeps_the_others(base: nn.Module) -> None:
    whole = tiny.samples(base, image_classifier, 120, 1)
    base = learnt(base, whole)
    forget, retain = (Samples(whole.x[part], whole.y[part]) for part in (whole.y == 2, whole.y != 2))
    network = run(ssd, base, forget, retain, selection=2.0, dampening=0.5, batch_size=16)
    assert accuracy(base, forget) > 0.9
    assert accuracy(network, forget) < accuracy(base, forget) - 0.3
    assert accuracy(network, retain) > accuracy(network, forget) + 0.2
