"""slug: the front, the search and the choice by closed forms, what moves and what stays, and what it refuses."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny
from worker.families import Samples, clip, image_classifier
from worker.methods import slug

LIMITS = slug.Limits(100.0, 100.0, 10.0, 0.0, 2.0, 12, 0.1)


def test_the_front_drops_what_another_layer_of_the_tower_beats_in_both() -> None:
    values = {
        "vision.a": (4, 0.5),
        "vision.b": (3, 0.2),
        "vision.c": (2, 0.3),
        "vision.d": (1, 0.1),
        "text.e": (0.5, 0.9),
    }
    points = [slug.Point(layer, *pair) for layer, pair in values.items()]
    assert slug.pareto_front(points) == ["vision.a", "vision.b", "vision.d", "text.e"]
    ties = [slug.Point("vision.a", 1, 0.5), slug.Point("vision.b", 1, 0.4)]
    assert set(slug.pareto_front(ties)) == {"vision.a", "vision.b"}


def test_importance_and_alignment_are_the_papers() -> None:
    layers, theta = {"vision.w": ("w",)}, {"w": torch.tensor([[3.0, 4.0]])}
    forget, retain = {"w": torch.tensor([[1.0, 0.0]])}, {"w": torch.tensor([[-1.0, 1.0]])}
    (point,) = slug.weigh(layers, theta, forget, retain, "absolute")
    assert point.importance == pytest.approx(0.2) and point.alignment == pytest.approx(0.5**0.5)
    (point,) = slug.weigh(layers, theta, forget, retain, "signed")
    assert point.alignment == pytest.approx(-(0.5**0.5))


def searched(forgets_at: float, pays_at: float, **changes: Any) -> tuple[list[slug.Trial], torch.Tensor, list[float]]:
    """The search on one weight, where shares are step functions of how far the weight has moved."""
    weight = nn.Parameter(torch.ones(1, 1))
    seen: list[float] = []

    def ask() -> tuple[float, float]:
        moved = float(weight.detach()) - 1
        seen.append(moved)
        return (0.0 if moved >= forgets_at else 100.0), (100.0 if moved < pays_at else 100.0 - 10 * (moved - pays_at))

    trials = slug.search(ask, {"w": weight}, {"w": torch.full((1, 1), 0.1)}, LIMITS._replace(**changes))
    return trials, weight, seen


def test_the_search_starts_at_a_tenth_and_doubles_up_the_gradient() -> None:
    trials, weight, seen = searched(forgets_at=0.9, pays_at=5.0, tries=4)
    assert [trial.step_size for trial in trials] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    assert seen == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert torch.equal(weight, torch.ones(1, 1))


def test_the_search_closes_in_on_the_shortest_step_that_forgets_when_forgetting_costs() -> None:
    trials, _, _ = searched(forgets_at=0.5, pays_at=0.3, retain_drop=50.0)
    best = min(trials, key=slug.merit)
    assert best.forget == 0 and 5.0 <= best.step_size <= 5.5


def test_a_step_that_costs_too_much_is_not_chosen_over_one_that_does_not() -> None:
    trials, _, _ = searched(forgets_at=0.9, pays_at=0.3)
    best = min(trials, key=slug.merit)
    assert best.excess == 0 and best.forget == 100


def test_a_free_step_is_lengthened_while_it_stays_free() -> None:
    trials, _, _ = searched(forgets_at=0.15, pays_at=0.7)
    free = [trial for trial in trials if slug.merit(trial) == min(map(slug.merit, trials))]
    assert max(trial.step_size for trial in free) == pytest.approx(4.0)


def test_of_equals_the_widest_layer_is_taken_and_the_middle_of_it() -> None:
    def trials(*steps: float, retain: float = 100.0) -> list[slug.Trial]:
        return [slug.Trial(step, 0.0, retain, 0.0) for step in steps]

    found = {"costly": trials(1, 2, 4, 8, 16, 32, retain=99), "narrow": trials(90, 100), "wide": trials(8, 2, 4, 1)}
    assert slug.choose(found) == ("wide", slug.Trial(4, 0.0, 100.0, 0.0))


@pytest.fixture(params=["clip", "siglip"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    return tiny.opened(request.param, tmp_path)


def sets(base: nn.Module, labels: list[int]) -> tuple[Samples, Samples]:
    every = tiny.samples(base, clip, 40)
    forget = torch.isin(every.y, torch.tensor(labels))
    return Samples(every.x[forget], every.y[forget]), every


def run(base: nn.Module, labels: list[int], **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    network = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    return network, slug.unlearn(network, clip, *sets(base, labels), tries=4, **changes, generator=generator)


@pytest.mark.parametrize("group", ["tensor", "block"])
def test_everything_outside_the_chosen_layer_stays_bit_for_bit(base: nn.Module, group: Any) -> None:
    network, trace = run(base, [1], group=group)
    pairs = zip(base.state_dict().items(), network.state_dict().values(), strict=True)
    bits = ((name, old.flatten().view(torch.uint8), new.flatten().view(torch.uint8)) for (name, old), new in pairs)
    changed = {name for name, old, new in bits if not torch.equal(old, new)}
    assert changed == set(trace["patches"][0]["tensors"])
    assert len(changed) == 1 or group == "block"


def test_every_label_gets_a_layer_of_its_own_and_the_sum_is_measured(base: nn.Module) -> None:
    network, trace = run(base, [0, 2])
    first, second = (set(patch["tensors"]) for patch in trace["patches"])
    assert not first & second
    assert len(trace["choice"]) == len(trace["front"]) == len(trace["search"]) == 2
    assert trace["cosines"][0][1] == trace["cosines"][1][0] and trace["cosines"][0][0] == pytest.approx(1, abs=1e-3)
    assert sum(int((a != b).any()) for a, b in zip(base.parameters(), network.parameters(), strict=True)) == 2


def test_only_the_wanted_tower_is_edited(base: nn.Module) -> None:
    for tower in ("vision", "text"):
        _, trace = run(base, [1], tower=tower)
        assert all(point["layer"].startswith(f"{tower}.") for point in trace["front"][0])


def test_the_retain_gradient_is_asked_for_once_and_used_as_kept(base: nn.Module) -> None:
    kept: dict[str, Any] = {}
    made: list[str] = []

    def remember(name: str, make: Any) -> Any:
        if name not in kept:
            made.append(name)
            kept[name] = make()
        return kept[name]

    one, _ = run(base, [1], remember=remember)
    other, _ = run(base, [1], remember=remember)
    fresh, _ = run(base, [1])
    assert len(made) == 1
    for a, b, c in zip(one.parameters(), other.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_the_trace_is_json_and_names_nobody(base: nn.Module) -> None:
    text = json.dumps(run(base, [0, 1])[1], allow_nan=False)
    assert not any(word in text for name in base.__dict__["captions"].names for word in name.split())


def test_refuses_sets_that_cannot_be_used_and_leaves_the_network(base: nn.Module) -> None:
    forget, every = sets(base, [1])
    generator = torch.Generator()
    network = copy.deepcopy(base)
    with pytest.raises(ValueError, match=r"retain\.y: every label"):
        slug.unlearn(network, clip, forget, forget, generator=generator)
    broken = Samples(torch.full_like(forget.x, torch.inf), forget.y)
    with pytest.raises(ValueError, match="forget: the gradient of its loss is not finite"):
        slug.unlearn(network, clip, broken, every, generator=generator)
    with pytest.raises(ValueError, match=r"forget\.y"):
        slug.unlearn(network, clip, Samples(forget.x[:0], forget.y[:0]), every, generator=generator)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), network.parameters(), strict=True))


def test_a_classifiers_random_samples_are_one_patch(tmp_path: Path) -> None:
    network = tiny.opened("vit", tmp_path)
    every = tiny.samples(network, image_classifier, 30)
    forget = Samples(every.x[:9], every.y[:9])
    trace = slug.unlearn(network, image_classifier, forget, every, patches="one", generator=torch.Generator())
    assert len(trace["patches"]) == 1
