"""SalUn: the mask to the entry, what stays to the bit, and that it forgets."""

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.catalog import METHODS
from tests import tiny
from worker.families import Samples, class_diffusion, image_classifier
from worker.methods import retrain, salun


def opened(name: str, directory: Path) -> nn.Module:
    return tiny.opened(name, directory)


def run(base: nn.Module, family: Any, forget: Samples, retain: Samples, **recipe: Any) -> nn.Module:
    network = copy.deepcopy(base)
    salun.unlearn(network, family, forget, retain, **recipe, generator=torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.29, 0.5, 0.999, 1.0])
def test_the_mask_is_the_stable_sort_with_the_count_rounded_down(fraction: float) -> None:
    generator = torch.Generator().manual_seed(0)
    g = [torch.randint(0, 9, shape, generator=generator).float() for shape in ((7, 11), (5,), (2, 3, 4), ())]
    mask = torch.cat([each.flatten() for each in salun.saliency_mask(g, fraction)])
    pool = torch.cat([each.flatten() for each in g])
    expected = torch.zeros_like(mask)
    expected[pool.argsort(descending=True, stable=True)[: int(fraction * len(pool))]] = True
    assert mask.dtype == torch.bool
    assert torch.equal(mask, expected)


def test_among_equal_entries_the_first_are_taken() -> None:
    mask = salun.saliency_mask([torch.ones(3), torch.ones(4)], 0.6)
    assert [each.tolist() for each in mask] == [[True, True, True], [True, False, False, False]]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="forget: the gradient"):
        salun.saliency_mask([torch.tensor([1.0, float("nan")])], 0.5)


def test_the_gradient_is_that_of_the_whole_set_whatever_the_batches(tmp_path: Path) -> None:
    network = opened("resnet", tmp_path).double()
    forget = tiny.samples(network, image_classifier, 13)
    theta = list(network.parameters())
    loss = F.cross_entropy(network(forget.x.double()).logits, forget.y)
    expected = torch.autograd.grad(loss, theta)
    generator = torch.Generator()
    for batch_size in (4, 256):
        found = salun.forget_gradient(network, theta, image_classifier, forget, batch_size, generator)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", [name for name, family in tiny.NETWORKS.items() if family in METHODS["salun"].families]
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_where_the_mask_is_0_the_weight_stays_bit_for_bit(name: str, optimizer: str, tmp_path: Path) -> None:
    base, family = opened(name, tmp_path), tiny.FAMILIES[tiny.NETWORKS[name]]
    with torch.no_grad():
        next(base.parameters()).view(-1)[::3] = -0.0  # a frozen -0.0 must not become 0.0
    forget, retain = tiny.samples(base, family, 10, 1), tiny.samples(base, family, 20, 2)
    recipe = {"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "weight_decay": 0.1, "momentum": 0.9}
    network = run(base, family, forget, retain, **recipe, optimizer=optimizer, mask_fraction=0.25)
    theta = list(family.trainable(base).values())
    generator = torch.Generator().manual_seed(0)
    g = [each.abs() for each in salun.forget_gradient(base, theta, family, forget, 8, generator)]
    mask = torch.cat([each.flatten() for each in salun.saliency_mask(g, 0.25)])
    before, after = (flat_bits(each) for each in (base, network))
    assert int(mask.sum()) == len(mask) // 4
    assert torch.equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).float().mean() > 0.9


def test_nothing_that_is_not_finite_gets_past_the_mask() -> None:
    weight = nn.Parameter(torch.tensor([-0.0, 0.5, 1.0, 2.0]))
    before = weight.detach().clone()
    mover = salun.make_optimizer([weight], "sgd", 0.1, 0.9)
    weight.grad = torch.tensor([-1.0, float("nan"), float("inf"), 1.0])
    salun.masked_step(mover, [weight], [-torch.tensor([False, False, False, True]).to(torch.int8)], 0.1, 0.0)
    assert torch.equal(weight.detach().view(torch.int32)[:3], before.view(torch.int32)[:3])
    assert weight[3].item() == pytest.approx(2.0 - 0.1 * 1.2)


def flat_bits(network: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()]).view(torch.int32)


def test_without_a_mask_weight_decay_is_the_optimizers_own(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 9))
    twin = nn.Parameter(weight.detach().clone())
    ours = salun.make_optimizer([weight], "sgd", 0.1, 0.9)
    theirs = torch.optim.SGD([twin], lr=0.1, momentum=0.9, weight_decay=0.05)
    for _ in range(3):
        for each in (weight, twin):
            each.grad = torch.ones(9)
        salun.masked_step(ours, [weight], None, 0.05, 0.0)
        theirs.step()
    assert torch.allclose(weight, twin)


def test_soft_returns_the_scheduled_share_exactly_and_shrinks_the_rest(tmp_path: Path) -> None:
    theta_o = [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([3.0, 4.0])]
    theta = [
        nn.Parameter(each + moved)
        for each, moved in zip(theta_o, (torch.tensor([0.5, -0.1, 0.2]), torch.tensor([0.3, -0.4])), strict=True)
    ]
    salun.soft_threshold(theta, theta_o, 0.4)
    assert torch.equal(theta[0][1:], theta_o[0][1:])
    moved = torch.cat([weight - anchor for weight, anchor in zip(theta, theta_o, strict=True)])
    assert torch.allclose(moved, torch.tensor([0.3, 0.0, 0.0, 0.1, -0.2]), atol=1e-6)


def test_soft_shrinkage_relaxes_over_the_run(tmp_path: Path) -> None:
    base = opened("vit", tmp_path)
    forget, retain = tiny.samples(base, image_classifier, 10, 1), tiny.samples(base, image_classifier, 20, 2)
    count = sum(weight.numel() for weight in base.parameters())
    at_anchor: list[int] = []
    network = copy.deepcopy(base)
    pairs = list(zip(network.parameters(), base.parameters(), strict=True))
    salun.unlearn(
        network, image_classifier, forget, retain, soft=True, schedule="steps", steps=5, mask_fraction=0.5,
        generator=torch.Generator(),
        on_step=lambda *told: at_anchor.append(sum(int((one == other).sum()) for one, other in pairs)),
    )  # fmt: skip
    least = [int(0.5 * (1 - step / 5) * count) for step in range(1, 6)]
    assert all(seen >= wanted for seen, wanted in zip(at_anchor, least, strict=True))
    assert at_anchor == sorted(at_anchor, reverse=True)
    assert at_anchor[-1] < count // 4


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_label_tables_can_be_kept_out_of_what_moves(name: str, tmp_path: Path) -> None:
    base = opened(name, tmp_path)
    forget, retain = tiny.samples(base, class_diffusion, 10, 1), tiny.samples(base, class_diffusion, 20, 2)
    recipe = {"schedule": "steps", "steps": 3, "optimizer": "adam", "mask_fraction": 1.0, "batch_size": 8}
    for train, stays in (("all", False), ("no_label_table", True)):
        network = run(base, class_diffusion, forget, retain, **recipe, train=train)
        tables = zip(
            class_diffusion.label_tables(base).values(), class_diffusion.label_tables(network).values(), strict=True
        )
        assert all(torch.equal(one, other) for one, other in tables) == stays
        assert not torch.equal(flat_bits(base), flat_bits(network))


def test_batch_norm_statistics_follow_the_option(tmp_path: Path) -> None:
    base = opened("resnet", tmp_path)
    forget, retain = tiny.samples(base, image_classifier, 10, 1), tiny.samples(base, image_classifier, 20, 2)
    for option, stays in (("frozen", True), ("train", False)):
        network = run(base, image_classifier, forget, retain, epochs=1, batch_size=8, batch_norm=option)
        pairs = zip(base.buffers(), network.buffers(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs) == stays


def test_the_teacher_is_frozen_unless_told_to_move(tmp_path: Path) -> None:
    base = opened("unet", tmp_path)
    forget, retain = tiny.samples(base, class_diffusion, 10, 1), tiny.samples(base, class_diffusion, 20, 2)
    recipe = {"schedule": "steps", "batch_size": 8, "learning_rate": 0.05, "clip": 1.0}
    one, two = (
        [run(base, class_diffusion, forget, retain, **recipe, steps=steps, teacher=who) for who in ("frozen", "moving")]
        for steps in (1, 4)
    )
    assert torch.equal(flat_bits(one[0]), flat_bits(one[1]))  # at the first step the network is the base
    assert not torch.equal(flat_bits(two[0]), flat_bits(two[1]))


def test_a_classifier_forgets_a_label_and_keeps_the_others(tmp_path: Path) -> None:
    network = opened("resnet", tmp_path)
    everything = tiny.samples(network, image_classifier, 160)
    generator = torch.Generator().manual_seed(0)
    training = {"epochs": 15, "batch_size": 16, "learning_rate": 0.05}
    retrain.unlearn(network, image_classifier, everything, everything, **training, generator=generator)
    of_label = everything.y == 2
    forget = Samples(everything.x[of_label], everything.y[of_label])
    retain = Samples(everything.x[~of_label], everything.y[~of_label])
    assert accuracy(network, forget) > 0.95
    salun.unlearn(network, image_classifier, forget, retain, batch_size=16, generator=generator)
    assert accuracy(network, forget) < 0.1
    assert accuracy(network, retain) > 0.95


def accuracy(network: nn.Module, samples: Samples) -> float:
    return float((image_classifier.predict(network, samples.x).argmax(1) == samples.y).float().mean())


def forgotten(name: str, directory: Path, **recipe: Any) -> tuple[nn.Module, nn.Module, ModuleType]:
    """A tiny network before and after three steps."""
    family, base = tiny.FAMILIES[tiny.EVERY[name]], tiny.opened(name, directory)
    network = copy.deepcopy(base)
    sets = [tiny.samples(base, family, count, seed=count) for count in (6, 9)]
    short: dict[str, Any] = {
        "schedule": "steps",
        "steps": 3,
        "batch_size": 3,
        "optimizer": "adam",
        "learning_rate": 1e-3,
    }
    salun.unlearn(network, family, *sets, **short | recipe, generator=torch.Generator().manual_seed(0))
    return base, network, family


def moved(base: nn.Module, network: nn.Module) -> dict[str, int]:
    pairs = zip(base.named_parameters(), network.parameters(), strict=True)
    counts = {name: int((one.view(torch.int32) != other.view(torch.int32)).sum()) for (name, one), other in pairs}
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_cross_attention_alone_moves_what_reads_the_text(name: str, tmp_path: Path) -> None:
    base, network, family = forgotten(
        name, tmp_path / "base", train="cross_attention", mask_fraction=0.5, weight_decay=0.1
    )
    counts, readers = moved(base, network), family.cross_attention(base)
    assert counts.keys() <= readers.keys()
    assert 0 < sum(counts.values()) <= sum(weight.numel() for weight in readers.values()) // 2
    assert all(weight.grad is None for weight in network.parameters())


def test_the_mask_may_rank_by_the_guided_prediction(tmp_path: Path) -> None:
    runs = [moved(*forgotten("sd", tmp_path / str(scale), mask_guidance=scale)[:2]) for scale in (1.0, 1.0, 7.5)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize(
    ("recipe", "says"), [({"train": "cross_attention"}, "train"), ({"mask_guidance": 2.0}, "mask_guid")]
)
def test_what_needs_texts_is_refused_without_them(tmp_path: Path, recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        forgotten("unet", tmp_path / "base", **recipe)


def test_relabelling_on_both_sets_shows_images_of_the_next_label_under_the_forgotten_one(tmp_path: Path) -> None:
    network = opened("unet", tmp_path)
    everything = tiny.samples(network, class_diffusion, 40)
    forget, retain = (
        Samples(everything.x[rows], everything.y[rows]) for rows in (everything.y == 1, everything.y != 1)
    )
    taught = salun.with_the_next(network, class_diffusion, forget, retain, "next")
    count = len(forget.y)
    assert len(taught.y) == 2 * count
    assert torch.equal(taught.x[:count], forget.x)
    assert (taught.y == 1).all()
    nexts = retain.x[retain.y == 2]
    assert all(any(torch.equal(image, each) for each in nexts) for image in taught.x[count:])


@pytest.mark.parametrize(("name", "relabel"), [("unet", "uniform"), ("resnet", "next")])
def test_relabelling_on_both_sets_is_for_generators_with_the_next_label(
    name: str, relabel: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="^relabel_on: both is for"):
        forgotten(name, tmp_path / "base", relabel_on="both", relabel=relabel)


def test_relabelling_on_both_sets_needs_an_image_of_the_next_label(tmp_path: Path) -> None:
    base = opened("unet", tmp_path)
    everything = tiny.samples(base, class_diffusion, 40)
    forget, retain = (
        Samples(everything.x[rows], everything.y[rows]) for rows in (everything.y == 1, everything.y == 0)
    )
    with pytest.raises(ValueError, match="^relabel_on: the retain set"):
        run(base, class_diffusion, forget, retain, relabel_on="both", relabel="next", schedule="steps", steps=1)


def test_relabelling_on_both_sets_moves_a_network_that_reads_texts(tmp_path: Path) -> None:
    recipe = {"relabel": "next", "mask_fraction": 1.0}
    one, other = (forgotten("sd3", tmp_path / on, relabel_on=on, **recipe)[1] for on in ("forget", "both"))
    assert not torch.equal(flat_bits(one), flat_bits(other))
