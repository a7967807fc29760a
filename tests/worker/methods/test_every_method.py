"""What every method of the catalogue keeps to, on every kind of network it is offered for."""

import ast
import copy
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog import METHODS
from tests import tiny
from worker.families import Samples

SHORT = {
    "epochs": 3,
    "steps": 5,
    "batch_size": 8,
    "sampling_steps": 4,
    "trajectories": 3,
    "fisher_samples": 6,
    "iterations": 3,
    "selection": 1.0,
    "passes": 1,
    "front_at_most": 2,
    "tries": 3,
    "probe_samples": 4,
    "patches": "one",
}
CASES = [
    (method, name) for method in METHODS for name, family in tiny.EVERY.items() if family in METHODS[method].families
]
STANDS_FOR = ("sd_v", "sdxl", "flux")  # sd and sd3 stand for them where time is short
every_case = pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, id=f"{method}-{name}", marks=[pytest.mark.verify] if name in STANDS_FOR else [])
        for method, name in CASES
    ],
)


class Stop(Exception):
    pass


class Case:
    """One method on one tiny network, with the catalogue's recipe for its family, cut short."""

    def __init__(self, method: str, name: str, directory: Path) -> None:
        self.family = tiny.FAMILIES[tiny.EVERY[name]]
        self.base = tiny.opened(name, directory)
        self.forget = tiny.samples(self.base, self.family, 11, seed=1)
        self.retain = tiny.samples(self.base, self.family, 19, seed=2)
        parameters = METHODS[method].parameters
        self.recipe = {key: parameter.default_for(tiny.EVERY[name]) for key, parameter in parameters.items()}
        short = SHORT | ({"steps": 3} if name in tiny.PIPELINES else {})
        self.recipe |= {key: value for key, value in short.items() if key in parameters}
        self.unlearn = importlib.import_module(f"worker.methods.{method}").unlearn

    def run(self, seed: int = 0, **changes: Any) -> nn.Module:
        network = copy.deepcopy(self.base)
        sets = changes.pop("forget", self.forget), changes.pop("retain", self.retain)
        generator = torch.Generator().manual_seed(seed)
        self.unlearn(network, self.family, *sets, **self.recipe | changes, generator=generator)
        self.drew = not torch.equal(generator.get_state(), torch.Generator().manual_seed(seed).get_state())
        return network


@pytest.fixture
def case(method: str, name: str, tmp_path: Path) -> Case:
    return Case(method, name, tmp_path / "base")


def same(one: nn.Module, other: nn.Module) -> bool:
    """Bit for bit, -0.0 and 0.0 apart."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)) for a, b in pairs)


@every_case
def test_moves_the_copy_and_nothing_else(case: Case) -> None:
    before, forget = copy.deepcopy(case.base), Samples(case.forget.x.clone(), case.forget.y.clone())
    state = torch.get_rng_state()
    network = case.run()
    assert not same(network, case.base)
    assert same(before, case.base)
    assert torch.equal(case.forget.x, forget.x)
    assert torch.equal(case.forget.y, forget.y)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in network.modules())
    assert all(weight.grad is None for weight in network.parameters())


@every_case
def test_the_seed_decides_everything(case: Case) -> None:
    assert same(case.run(seed=3), case.run(seed=3))
    assert same(case.run(seed=3), case.run(seed=4)) != case.drew


@every_case
def test_announces_every_step_of_a_constant_total(case: Case) -> None:
    seen: list[tuple[int, int]] = []
    figures: list[dict[str, Any]] = []

    def on_step(step: int, total: int, of_step: dict[str, Any], moving: dict[str, Any] | None) -> None:
        seen.append((step, total))
        figures.append(of_step)

    case.run(on_step=on_step)
    total = seen[0][1]
    assert seen == [(step, total) for step in range(1, total + 1)]
    assert all(figure.numel() == 1 and not figure.requires_grad for each in figures for figure in each.values())
    assert all(each for each in figures)


@every_case
def test_stops_where_on_step_raises(case: Case) -> None:
    seen: list[int] = []

    def on_step(step: int, total: int, figures: dict[str, Any], moving: dict[str, Any] | None) -> None:
        seen.append(step)
        if step == min(2, total):
            raise Stop

    with pytest.raises(Stop):
        case.run(on_step=on_step)
    assert seen == [1, 2][: len(count_steps(case))]


@every_case
def test_resumes_to_the_same_bytes(case: Case) -> None:
    saved: dict[int, tuple[Any, ...]] = {}

    def save(step: int, total: int, figures: dict[str, Any], moving: dict[str, Any] | None) -> None:
        if moving is not None and step < total:
            optimizer, generator = moving["optimizer"].state_dict(), moving["generator"].get_state()
            saved[step] = copy.deepcopy((moving["network"].state_dict(), optimizer)) + (generator,)

    whole = case.run(on_step=save)
    if not saved:  # a method that offers no state on the way starts anew after a crash
        assert same(case.run(resume=never), whole)
    for done, (weights, optimizer, generator) in saved.items():
        assert same(case.run(resume=restore(done, weights, optimizer, generator)), whole)


@every_case
def test_a_resumed_run_goes_on_counting(case: Case) -> None:
    if not resumes(case):
        return
    steps: list[int] = []
    done = 2 if case.recipe.get("schedule") == "steps" else len(count_steps(case)) // 3
    case.run(resume=lambda moving: done, on_step=lambda *told: steps.append(told[0]))
    assert steps == count_steps(case)[done:]


def resumes(case: Case) -> bool:
    offered: list[bool] = []
    case.run(on_step=lambda step, total, figures, moving: offered.append(moving is not None and step < total))
    return any(offered)


def count_steps(case: Case) -> list[int]:
    steps: list[int] = []
    case.run(on_step=lambda *told: steps.append(told[0]))
    return steps


def never(moving: dict[str, Any]) -> int:
    raise AssertionError("asked for state that it never offered")


def restore(done: int, weights: Any, optimizer: Any, generator: torch.Tensor) -> Any:
    def resume(moving: dict[str, Any]) -> int:
        moving["network"].load_state_dict(weights)
        moving["optimizer"].load_state_dict(copy.deepcopy(optimizer))
        moving["generator"].set_state(generator)
        return done

    return resume


@every_case
@pytest.mark.parametrize("schedule", ["epochs", "steps"])
def test_takes_sets_smaller_than_a_batch(case: Case, schedule: str) -> None:
    few = Samples(case.forget.x[:2], case.forget.y[:2])
    larger = {key: value for key, value in {"schedule": schedule, "batch_size": 256}.items() if key in case.recipe}
    network = case.run(forget=few, retain=few, **larger)
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


@every_case
def test_refuses_a_label_that_the_network_does_not_have(case: Case) -> None:
    knows_labels = case.family.label_count(case.base) > 0
    wrong = Samples(case.retain.x, case.retain.y + (tiny.LABELS if knows_labels else -tiny.LABELS))
    says = r"labels must lie in 0\.\.3" if knows_labels else "must hold at least one label, none below 0"
    with pytest.raises(ValueError, match=rf"(forget|retain)\.y: {says}"):
        case.run(forget=wrong, retain=wrong)


@every_case
def test_a_salient_mask_leaves_the_rest_bit_for_bit(case: Case) -> None:
    if "mask_fraction" not in case.recipe:
        assert "mask" not in case.recipe
        return
    masked = {"mask": "salient"} if "mask" in case.recipe else {}
    heavy = {key: value for key, value in {"weight_decay": 0.01, "momentum": 0.9}.items() if key in case.recipe}
    network = case.run(**masked, mask_fraction=0.3, **heavy)
    before, after = case.family.trainable(case.base), case.family.trainable(network)
    pairs = [(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before]
    moved = sum(int((one != other).sum()) for one, other in pairs)
    count = sum(weight.numel() for weight in before.values())
    assert 0 < moved <= int(0.3 * count)


def test_shared_formulas_are_the_same_text_in_every_file() -> None:
    texts: dict[str, set[str]] = {}
    for method in METHODS:
        source = inspect.getsource(importlib.import_module(f"worker.methods.{method}"))
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name not in ("unlearn", "make_optimizer"):
                texts.setdefault(node.name, set()).add(ast.get_source_segment(source, node) or "")
    assert "saliency_mask" in texts
    assert {name for name, versions in texts.items() if len(versions) > 1} == set()
