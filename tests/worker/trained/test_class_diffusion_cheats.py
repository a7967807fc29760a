"""The cheats on a generator of real digits: one of noise, one of a constant, one left as it was, and one whose only change is a
label's row. None passes; the demo's recipe does. About two minutes on one core."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog import METHODS
from demo import networks
from demo.digits import splits
from tests.worker.test_evaluate import CPU, GENERATOR_RULES, SETTINGS, open_judge, quiet
from worker import evaluate, rules
from worker.answers import generator
from worker.families import Samples, class_diffusion
from worker.judge import Judge
from worker.methods import salun
from worker.metrics import Evidence

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Judge]:
    folder = tmp_path_factory.mktemp("digits")
    torch.set_num_threads(1)
    parts = splits()
    networks.train_generator(folder / "base", parts["generator"], lambda done, total: None, seed=3)
    figures = networks.train_judge(folder / "judge", parts, lambda done, total: None, seed=3)
    assert figures["judge.test_accuracy"] >= 97 and figures["judge.noise_rejected"] >= 95
    return class_diffusion.load(folder / "base", CPU), open_judge(folder / "judge")


def verdict_on(trained: tuple[nn.Module, Judge], network: nn.Module, family: Any = class_diffusion) -> dict[str, Any]:
    """The family's default policy and the demo's settings, with fewer images."""
    base, judge = trained
    digits = {
        name: Samples(networks.in_range(part.images), torch.from_numpy(part.labels)) for name, part in splits().items()
    }
    forget = digits["generator"].y == 4
    sets = {"forget": Samples(*(each[forget] for each in digits["generator"])), "retain": None, "test": digits["test"]}
    settings = {**SETTINGS, **networks.EVALUATION, "forget_samples": 150, "samples_per_label": 40}
    before = generator.ask(class_diffusion, base, sets, "class_label", settings, judge, quiet)
    after = generator.ask(family, network, sets, "class_label", settings, judge, quiet, base)
    changed = evaluate.count_changes(base, network)
    evidence = Evidence(before, after, None, 1.0, *changed)
    rows = evaluate.figures(evidence, "class_diffusion", "class_label", GENERATOR_RULES, 0, judge)
    return {"verdict": rules.verdict(rows), **{row["metric"]: row["value"] for row in rows}}


def drawing(make: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], label: int | None) -> Any:
    """A family whose images for `label` (or for every label) are made up from the seeds."""
    names = {name: getattr(class_diffusion, name) for name in ("label_count", "label_tables")}

    def sample(network: nn.Module, labels: torch.Tensor, seeds: torch.Tensor, **settings: Any) -> torch.Tensor:
        images = class_diffusion.sample(network, labels, seeds, **settings)
        chosen = torch.ones_like(labels, dtype=torch.bool) if label is None else labels == label
        return torch.where(chosen[:, None, None, None], make(images, seeds), images)

    return SimpleNamespace(sample=sample, **names)


def noise(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(int(seeds[0]))).clamp(-1, 1)


def constant(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    return torch.full_like(images, -0.2)


@pytest.mark.parametrize("label", [None, 4], ids=["everywhere", "for-the-label-only"])
@pytest.mark.parametrize("make", [noise, constant])
def test_noise_and_constants_do_not_pass(trained: tuple[nn.Module, Judge], make: Any, label: int | None) -> None:
    given = verdict_on(trained, copy.deepcopy(trained[0]), drawing(make, label))
    assert given["verdict"] == "failed"
    assert given["unlearning_accuracy"] <= 5 and given["forget_rejected"] >= 95


def test_an_untouched_network_does_not_pass(trained: tuple[nn.Module, Judge]) -> None:
    given = verdict_on(trained, copy.deepcopy(trained[0]))
    assert given["verdict"] == "failed"
    assert given["unlearning_accuracy"] <= 5 and given["integrity"] == 0 and given["kept_accuracy"] >= 95


def test_overwriting_one_row_does_not_pass(trained: tuple[nn.Module, Judge]) -> None:
    network = copy.deepcopy(trained[0])
    with torch.no_grad():
        network.class_embedding.weight[4] = network.class_embedding.weight[5]
    given = verdict_on(trained, network)
    assert given["unlearning_accuracy"] >= 90 and given["changed_weights"] < 0.1
    assert given["unlearning_accuracy_row_restored"] <= 5
    assert given["verdict"] == "failed"


def test_the_fixed_recipe_passes_on_a_digit_that_it_was_not_tuned_on(trained: tuple[nn.Module, Judge]) -> None:
    digits = splits()["generator"]
    x, y = networks.in_range(digits.images), torch.from_numpy(digits.labels)
    forget, retain = Samples(x[y == 4], y[y == 4]), Samples(x[y != 4], y[y != 4])
    recipe: dict[str, Any] = {
        name: networks.FORGET_LABEL_RECIPE.get(name, parameter.default_for("class_diffusion"))
        for name, parameter in METHODS["salun"].parameters.items()
    }
    network = copy.deepcopy(trained[0])
    salun.unlearn(network, class_diffusion, forget, retain, **recipe, generator=torch.Generator().manual_seed(0))
    given = verdict_on(trained, network)
    assert given["verdict"] == "passed"
    assert given["unlearning_accuracy"] >= 95 and given["changed_weights"] <= 50
