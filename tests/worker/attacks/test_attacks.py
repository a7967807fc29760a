"""What each attack does, in closed form: what relearning may see, how weights are rounded, which wording is the worst,
and the figures of the membership sweep."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tests import tiny
from worker import attacks
from worker.attacks import CannotAttack, membership_sweep, paraphrases, quantised_copies, relearning
from worker.families import Samples, clip, image_classifier


@pytest.fixture
def network(tmp_path: Path) -> nn.Module:
    return tiny.opened("resnet", tmp_path / "resnet")


def numbered(network: nn.Module, count: int, first: int = 0) -> Samples:
    """Images that are told apart by their first pixel."""
    samples = tiny.samples(network, image_classifier, count, seed=first)
    samples.x[:, 0, 0, 0] = torch.arange(first, first + count, dtype=torch.float32) / 1000
    return samples


def ids(x: Tensor) -> set[int]:
    return {round(1000 * float(each)) for each in x[:, 0, 0, 0]}


class Watched:
    """A classifier's family that notes which images are trained on."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(image_classifier, name)

    def training_loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        self.trained.append(x)
        return image_classifier.training_loss(network, x, y, generator)


def asked_about(into: list[Tensor]) -> Any:
    def recognised(network: nn.Module, samples: Samples) -> Tensor:
        into.append(samples.x)
        return torch.ones(len(samples.y), dtype=torch.bool)

    return recognised


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_relearning_measures_on_images_that_it_never_saw(network: nn.Module) -> None:
    forget, retain, measured, watched = numbered(network, 30), numbered(network, 40, 500), list[Tensor](), Watched()
    found = relearning.attack(
        network, watched, forget, retain, None, asked_about(measured), steps=8, generator=seeded()  # type: ignore[arg-type]
    )  # fmt: skip
    trained, seen = ids(torch.cat(watched.trained)), ids(torch.cat(measured))
    assert not trained & seen
    assert len({each for each in trained if each < 500}) == 10 == found["budget"]["images"]
    assert len({each for each in seen if each < 500}) == 15 == found["after"]["total"]
    assert [row["step"] for row in found["rows"]] == [0, 1, 2, 5, 8]
    assert all(len(batch) == 20 for batch in watched.trained)  # as many to keep as to relearn


def test_relearning_brings_back_what_only_the_last_layer_hides(network: nn.Module) -> None:
    """A label whose bias was pushed down is known again after a few steps."""
    every, learner = tiny.samples(network, image_classifier, 200), copy.deepcopy(network)
    mover = torch.optim.Adam(learner.parameters(), 1e-2)
    for _ in range(60):
        mover.zero_grad()
        image_classifier.training_loss(learner, every.x, every.y, seeded()).backward()
        mover.step()
    scores = image_classifier.predict(learner, every.x)
    with torch.no_grad():
        learner.classifier[1].bias[2] -= 1 + (scores.amax(1) - scores.amin(1)).max()  # type: ignore[index, union-attr]
    parts = [Samples(every.x[chosen], every.y[chosen]) for chosen in (every.y == 2, every.y != 2)]

    def recognised(network: nn.Module, samples: Samples) -> Tensor:
        return image_classifier.predict(network, samples.x).argmax(1) == samples.y

    found = relearning.attack(
        learner, image_classifier, *parts, None, recognised, learning_rate=1e-2, generator=seeded()
    )
    assert found["before"] is not None
    assert found["before"]["success"] == 0 and found["after"]["success"] >= 0.9 * found["after"]["total"]


def test_relearning_s_figure_is_its_strongest_moment_and_not_its_last(network: nn.Module) -> None:
    """What is recognised rises and falls again; what is known before the first step is no success of the attack."""
    forget, retain = numbered(network, 20), numbered(network, 20, 500)
    counts = iter([10, 2, 7, 7, 3])

    def recognised(other: nn.Module, samples: Samples) -> Tensor:
        of_forget = min(ids(samples.x)) < 500
        return torch.arange(len(samples.y)) < (next(counts) if of_forget else 5)

    found = relearning.attack(network, image_classifier, forget, retain, None, recognised, steps=6, generator=seeded())
    assert [(row["step"], row["success"]) for row in found["rows"]] == [(0, 10), (1, 2), (2, 7), (5, 7), (6, 3)]
    assert found["before"] == {"success": 10, "total": 10} and found["after"] == {"success": 7, "total": 10}


def test_relearning_needs_something_left_to_measure_on(network: nn.Module) -> None:
    one = numbered(network, 1)
    with pytest.raises(CannotAttack, match="one sample"):
        relearning.attack(network, image_classifier, one, one, None, asked_about([]), generator=seeded())


def test_integers_are_evenly_spaced_and_symmetric() -> None:
    weight = torch.tensor([[-1.0, -0.5, 0.0], [0.0039, 0.004, 1.0]])
    assert torch.allclose(quantised_copies.to_integers(weight, 8) * 127, torch.tensor([[-127.0, -64, 0], [0, 1, 127]]))
    assert torch.equal(quantised_copies.to_integers(torch.zeros(2, 2), 8), torch.zeros(2, 2))
    assert len(quantised_copies.to_integers(torch.linspace(-1, 1, 999)[None], 3).unique()) == 7


def test_a_change_that_rounding_undoes_is_caught(network: nn.Module) -> None:
    """Weights on the integer grid that moved by less than half a step: the copy is the base again, and recognises all."""
    base = copy.deepcopy(network)
    with torch.no_grad():
        for weight in base.parameters():
            weight.copy_(quantised_copies.to_integers(weight, 8))
        unlearned = copy.deepcopy(base)
        for weight in unlearned.parameters():
            if weight.ndim > 1:
                inner = weight.abs() < weight.abs().max() / 2
                weight.add_(inner * weight.abs().max() / 127 * 0.2)

    def recognised(other: nn.Module, samples: Samples) -> Tensor:
        near = all(torch.allclose(a, b, atol=1e-6) for a, b in zip(other.parameters(), base.parameters(), strict=True))
        return torch.full((len(samples.y),), near)

    forget = numbered(network, 5)
    found = quantised_copies.attack(unlearned, image_classifier, forget, forget, None, recognised, generator=seeded())
    assert found["before"] == {"success": 0, "total": 5} and found["after"] == {"success": 5, "total": 5}
    assert [(row["copy"], row["success"]) for row in found["rows"]] == [
        ("as stored", 0), ("int8", 5), ("float16", 0), ("bfloat16", 0)
    ]  # fmt: skip


def test_the_worst_wording_counts_and_the_asked_one_is_not_tried_twice(tmp_path: Path) -> None:
    network = tiny.opened("clip", tmp_path / "clip")
    captions = network.__dict__["captions"]._replace(prompt="a photo of {}")
    clip.caption(network, captions)
    heard: list[str] = []

    def recognised(other: nn.Module, samples: Samples) -> Tensor:
        told = other.__dict__["captions"]
        assert other is not network and len(told.texts) == len(told.names) and int(samples.y.max()) < len(told.names)
        heard.append(told.prompt)
        return torch.arange(len(samples.y)) < len(heard) - 1

    forget = tiny.samples(network, clip, 12)
    found = paraphrases.attack(network, clip, forget, forget, None, recognised, generator=seeded())
    assert heard == ["a photo of {}", *paraphrases.TEMPLATES[1:]]
    assert found["before"] == {"success": 0, "total": 12} and found["after"]["success"] == 9
    with pytest.raises(CannotAttack, match="no words"):
        paraphrases.attack(nn.Linear(1, 1), clip, forget, forget, None, recognised, generator=seeded())


def test_auc_is_scikit_learn_s_with_ties() -> None:
    random = np.random.default_rng(0)
    members, others = random.integers(0, 6, 50) / 5, random.integers(0, 5, 80) / 5
    expected = roc_auc_score(np.repeat([1, 0], [50, 80]), np.concatenate([members, others]))
    assert attacks.auc(torch.tensor(members), torch.tensor(others)) == pytest.approx(expected)


def test_the_auc_s_interval_holds_it_is_never_empty_and_is_as_wide_as_it_should_be() -> None:
    low, high = attacks.auc_interval(0.5, 100, 100)
    assert low == pytest.approx(1 - high) and high == pytest.approx(0.5 + 1.96 * np.sqrt(0.25 * 67 / 1e4), abs=0.006)
    for area in (0.0, 0.3, 1.0):
        low, high = attacks.auc_interval(area, 20, 30)
        assert 0 <= low <= area <= high <= 1 and high - low > 0.05
    assert attacks.auc_interval(1.0, 20, 30)[1] == 1 and attacks.auc_interval(0.0, 20, 30)[0] == 0


def test_the_auc_s_interval_covers_the_truth() -> None:
    """Two normals one apart: the truth is Phi(1 / sqrt 2); 95 % of intervals should hold it."""
    truth, generator, held = float(norm.cdf(1 / np.sqrt(2))), seeded(4), 0
    for _ in range(400):
        members, others = (torch.randn(40, generator=generator) + shift for shift in (1.0, 0.0))
        low, high = attacks.auc_interval(attacks.auc(members, others), 40, 40)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


def test_true_positives_at_a_low_rate_of_false_ones() -> None:
    others = torch.arange(200) / 200
    members = torch.cat([torch.full((30,), 2.0), torch.zeros(70)])
    assert attacks.at_rate(members, others, 1.0) == (
        {"success": 30, "total": 100},
        {"success": 2, "total": 200},
    )
    assert attacks.at_rate(others, others, 5.0)[0]["success"] == 10
    ties = torch.ones(200)
    assert attacks.at_rate(ties, ties, 5.0)[1]["success"] == 0  # a threshold cannot cut ties
    few = torch.arange(50) / 50
    assert attacks.at_rate(members, few, 1.0)[1]["success"] == 0  # 1 % of 50 is none


def test_balanced_accuracy_is_all_where_all_are_told_and_half_where_none_are() -> None:
    high, low = torch.rand(60, generator=seeded()) + 2, torch.rand(90, generator=seeded(1))
    assert attacks.balanced_accuracy(high, low, seeded()) == {"success": 120, "total": 120}
    assert attacks.balanced_accuracy(low, high, seeded()) == {
        "success": 120,
        "total": 120,
    }  # standing out below
    same = [torch.rand(400, generator=seeded(seed)) for seed in (2, 3)]
    told = attacks.balanced_accuracy(same[0], same[1], seeded())
    assert told["total"] == 800 and abs(told["success"] - 400) <= 57  # four standard deviations


def test_the_sweep_reads_the_true_label_s_confidence_and_needs_unseen_images(network: nn.Module) -> None:
    forget, unseen = numbered(network, 12), numbered(network, 15, 500)
    found = membership_sweep.attack(
        network, image_classifier, forget, forget, unseen, asked_about([]), generator=seeded()
    )
    sides = [
        image_classifier.predict(network, each.x).double().softmax(1)[torch.arange(len(each.y)), each.y]
        for each in (forget, unseen)
    ]
    truth = roc_auc_score(np.repeat([1, 0], [12, 15]), torch.cat(sides).numpy())
    assert found["rows"][0]["value"] == pytest.approx(truth) and found["before"] is None
    assert [(row["rate"], row["side"]) for row in found["rows"][1:5]] == [
        (1.0, "above"), (1.0, "below"), (5.0, "above"), (5.0, "below")
    ]  # fmt: skip
    with pytest.raises(CannotAttack, match="test set"):
        membership_sweep.attack(network, image_classifier, forget, forget, None, asked_about([]), generator=seeded())
