"""What every attack of the catalogue keeps to, on every kind of network it is offered for."""

import copy
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog import ATTACKS
from app.catalog import FAMILIES as CATALOGUED
from tests import tiny
from worker.attacks import Found, Shadow
from worker.families import Samples, image_classifier
from worker.judge import Judge

SHORT = {
    "steps": 3,
    "restarts": 2,
    "tokens": 2,
    "images": 3,
    "retain_images": 4,
    "batch_size": 2,
    "measured": 3,
    "templates": 2,
}
SETTINGS = {"sampling_steps": 2, "guidance_scale": 1.0, "eta": 0.0, "seed": 1, "pattern": "random", "hidden_share": 0.5}
STANDS_FOR = {"adversarial_prompts": ("sd_v", "sd3", "flux")}  # sd and sdxl; elsewhere sd and sd3 stand for the others
CASES = [
    (attack, name)
    for attack in ATTACKS
    for name, family in tiny.EVERY.items()
    if family in ATTACKS[attack].families and name not in STANDS_FOR.get(attack, ("sd_v", "sdxl", "flux"))
]
every_case = pytest.mark.parametrize(("attack", "name"), CASES, ids=[f"{attack}-{name}" for attack, name in CASES])


class Case:
    """One attack on one tiny network, with the catalogue's parameters for its family, cut short."""

    def __init__(self, attack: str, name: str, directory: Path) -> None:
        self.family = tiny.FAMILIES[tiny.EVERY[name]]
        self.network = tiny.opened(name, directory / "network")
        forget, retain, unseen = (tiny.samples(self.network, self.family, 9, seed=seed) for seed in (1, 2, 3))
        self.sets = {"forget": forget, "retain": retain, "unseen": unseen}
        parameters = ATTACKS[attack].parameters
        self.parameters = {key: each.default_for(tiny.EVERY[name]) for key, each in parameters.items()}
        self.parameters |= {key: value for key, value in SHORT.items() if key in parameters}
        self.attack = importlib.import_module(f"worker.attacks.{attack}").attack
        kind = CATALOGUED[tiny.EVERY[name]]
        judge = open_judge(directory) if kind.needs_judge else None
        answers = importlib.import_module(f"worker.answers.{kind.answers}")
        self.recognised = partial(answers.recognised, self.family, SETTINGS, judge)
        self.shadows = {"shadows": shadows(name, directory)} if ATTACKS[attack].shadows else {}

    def run(self, seed: int = 0, **changes: Any) -> Found:
        sets = [changes.pop(name, self.sets[name]) for name in self.sets]
        generator = torch.Generator().manual_seed(seed)
        parameters = self.parameters | self.shadows | changes
        return self.attack(self.network, self.family, *sets, self.recognised, **parameters, generator=generator)  # type: ignore[no-any-return]


def open_judge(directory: Path) -> Judge:
    path = tiny.write("vit", directory / "judge")
    return Judge(image_classifier.load(path, torch.device("cpu")), image_classifier, path, "sha256:judge")


def shadows(name: str, directory: Path) -> list[Shadow]:
    """Of every four images each of four networks knows two; sets of any length may be asked about."""
    opened = [tiny.opened(name, directory / f"shadow-{seed}", seed) for seed in range(4)]
    known = [torch.tensor([(at + seed) % 4 < 2 for at in range(9)]) for seed in range(4)]
    return [Shadow(partial(lambda one: one, one), own, own) for one, own in zip(opened, known, strict=True)]


@pytest.fixture
def case(attack: str, name: str, tmp_path: Path) -> Case:
    return Case(attack, name, tmp_path)


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


@every_case
def test_the_network_and_the_sets_stay_bit_for_bit(case: Case) -> None:
    before, sets, drawn = state(case.network), copy.deepcopy(case.sets), torch.get_rng_state()
    captions = case.network.__dict__.get("captions")
    case.run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.network.state_dict().items())
    assert all(torch.equal(a, b) for name in sets for a, b in zip(case.sets[name], sets[name], strict=True))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert case.network.__dict__.get("captions") is captions
    assert all(weight.grad is None for weight in case.network.parameters())
    assert not any(module.training for module in case.network.modules())


@every_case
def test_the_seed_decides_everything(case: Case) -> None:
    assert case.run(seed=3) == case.run(seed=3)


@every_case
def test_every_share_is_a_count(case: Case) -> None:
    found = case.run()
    counts = [row for row in found["rows"] if "success" in row] + [found["after"]]
    counts += [found["before"]] if found["before"] else []
    counts += [row["kept"] for row in found["rows"] if "kept" in row]
    assert counts and all(0 <= count["success"] <= count["total"] and count["total"] > 0 for count in counts)
    assert found["budget"] and all(value > 0 for value in found["budget"].values())


@every_case
def test_announces_its_progress_and_stops_where_it_is_told_to(case: Case) -> None:
    told: list[tuple[int, int]] = []
    case.run(progress=lambda done, total: told.append((done, total)))
    total = told[0][1]
    assert told == [(done, total) for done in range(1, total + 1)]

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        case.run(progress=stop)


@every_case
def test_takes_sets_that_are_smaller_than_asked(case: Case) -> None:
    few = {name: Samples(samples.x[:2], samples.y[:2]) for name, samples in case.sets.items()}
    larger = {key: 10 for key in ("images", "retain_images", "batch_size", "measured") if key in case.parameters}
    for each in case.shadows.values():
        each[:] = [shadow._replace(knows_forget=shadow.knows_forget[:2], knows_unseen=shadow.knows_unseen[:2])
                   for shadow in each]  # fmt: skip
    assert case.run(**few, **larger)["after"]["total"] >= 1
