"""Attacks on real digits: all of these networks recognise no image of the digit, and relearning tells which of them had
only hidden it from the one that never saw it. The figures of docs/attacks.md, printed with -s.

Recipes, the attack's parameters and the bounds asserted here were settled on the digits 1 and 8 and on other seeds.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog import ATTACKS, wilson
from demo import networks as digits
from demo.digits import classifier_splits
from tests.worker.trained.digit_case import DigitCase
from worker.answers import classifier
from worker.attacks import Count, Found, membership_sweep, quantised_copies, relearning
from worker.families import Samples, image_classifier
from worker.methods import random_label, salun

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]
CASES = [(3, 201), (5, 202), (7, 203), (3, 204), (5, 205)]  # digit, seed
SWEPT = (31, 32, 33)  # seeds
METHODS: dict[str, Any] = {
    "random_label": (random_label, {"epochs": 10, "batch_size": 64, "learning_rate": 0.01}),
    "salun": (salun, {"epochs": 10, "batch_size": 64, "learning_rate": 0.01}),
}
DEFAULTS = {
    name: {key: parameter.default_for("image_classifier") for key, parameter in ATTACKS[name].parameters.items()}
    for name in ("relearning", "quantised_copies")
}
recognised = partial(classifier.recognised, image_classifier, {}, None)


def networks(case: DigitCase) -> Iterator[tuple[str, nn.Module]]:
    yield "base", case.base
    yield "retrained", case.retrained
    yield "lowered_bias", case.lowered_bias()
    yield "relabelled_head", case.relabelled_head()
    for name, (method, recipe) in METHODS.items():
        yield name, case.moved(method, recipe, case.base)


def attacked(module: Any, name: str, case: DigitCase, network: nn.Module) -> Found:
    generator = torch.Generator().manual_seed(case.seed)
    found: Found = module.attack(
        network,
        image_classifier,
        case.forget,
        case.retain,
        case.test,
        recognised,
        **DEFAULTS[name],
        generator=generator,
    )
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Found]]]:
    """By attack and network, one entry per case."""
    torch.set_num_threads(1)
    every: dict[str, dict[str, list[Found]]] = {"relearning": {}, "quantised_copies": {}}
    for digit, seed in CASES:
        case = DigitCase(tmp_path_factory.mktemp("digits"), digit, seed)
        for name, network in networks(case):
            for module in (relearning, quantised_copies):
                attack = module.__name__.split(".")[-1]
                every[attack].setdefault(name, []).append(attacked(module, attack, case, network))
    return every


def pooled(several: list[Found], **where: Any) -> Count:
    """The counts of one moment or copy, over all cases."""
    rows = [
        row for each in several for row in each["rows"] if all(row.get(key) == value for key, value in where.items())
    ]
    return {"success": sum(row["success"] for row in rows), "total": sum(row["total"] for row in rows)}


def interval(count: Count) -> tuple[float, float]:
    """Wilson's, 95 %, in percent."""
    return wilson(count["success"], count["total"])


def test_relearning_tells_a_digit_that_was_hidden_from_one_that_was_never_learned(
    found: dict[str, dict[str, list[Found]]],
) -> None:
    curves = found["relearning"]
    for name, several in curves.items():
        for step in (0, 1, 2, 5, 10, 20, 50):
            count = pooled(several, step=step)
            shown = [round(end, 1) for end in interval(count)]
            print(json.dumps({"network": name, "step": step, **count, "interval": shown}))  # noqa: T201
    forgot = [name for name in curves if name != "base"]
    assert all(pooled(curves[name], step=0)["success"] <= 2 for name in forgot)  # before the attack all look alike
    assert interval(pooled(curves["retrained"], step=10))[1] <= 10
    assert interval(pooled(curves["lowered_bias"], step=10))[0] >= 50
    never, hidden = (interval(pooled(curves[name], step=50)) for name in ("retrained", "random_label"))
    assert hidden[0] > never[1]
    for retrained, lowered in zip(curves["retrained"], curves["lowered_bias"], strict=True):  # on every seed
        assert pooled([lowered], step=10)["success"] > pooled([retrained], step=10)["success"] + 10


def test_the_sweep_tells_members_from_unseen_images_and_not_in_a_network_that_never_saw_them(tmp_path: Path) -> None:
    """The demo's classifiers know 400 digits by heart; 60 of them are what was forgotten, 1,200 are unseen."""
    torch.set_num_threads(1)
    found: dict[str, list[Found]] = {"classifier": [], "classifier-reference": []}
    for seed in SWEPT:
        parts = {
            name: Samples(digits.in_range(part.images), torch.from_numpy(part.labels))
            for name, part in classifier_splits(seed).items()
        }
        for what, several in found.items():
            digits.train(what, tmp_path / f"{what}-{seed}", lambda done, total: None, 0, seed)
            network = image_classifier.load(tmp_path / f"{what}-{seed}", torch.device("cpu"))
            sets = parts["forget"], parts["retain"], parts["test"]
            generator = torch.Generator().manual_seed(seed)
            several.append(membership_sweep.attack(network, image_classifier, *sets, recognised, generator=generator))
            rows = several[-1]["rows"]
            print(json.dumps({"network": what, "seed": seed, **rows[0], "at 5 %": rows[3]["success"], "of": 60}))  # noqa: T201
    told = {what: pooled(several, measure="balanced_accuracy") for what, several in found.items()}
    print(json.dumps({what: [count, interval(count)] for what, count in told.items()}))  # noqa: T201
    assert interval(told["classifier"])[0] > interval(told["classifier-reference"])[1]
    assert all(each["rows"][0]["low"] > 0.5 for each in found["classifier"])


def test_rounding_leaves_these_networks_as_they_are(found: dict[str, dict[str, list[Found]]]) -> None:
    for name, several in found["quantised_copies"].items():
        for copied in ("as stored", "int8", "float16", "bfloat16"):
            print(json.dumps({"network": name, "copy": copied, **pooled(several, copy=copied)}))  # noqa: T201
    assert pooled(found["quantised_copies"]["retrained"], copy="int8")["success"] == 0
    base = pooled(found["quantised_copies"]["base"], copy="int8")
    assert base["success"] >= 0.95 * base["total"]
