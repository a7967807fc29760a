"""The likelihood ratio on classifiers that learn 400 digits by heart, with shadows that learn 400 others of the same 800. The
figures of docs/attacks.md, printed with -s. Nothing was chosen here: the attack has no parameters, and the digits are the demo's."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from demo import networks as digits
from demo.digits import Digits, everything, pick
from tests.worker.trained.test_attacks import interval
from worker.attacks import Found, Shadow, likelihood_ratio, membership_sweep
from worker.families import Samples, image_classifier

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1500)]
SHADOWS, TRAINED_ON, FORGOTTEN, SEED = 16, 400, 60, 51


def learned(directory: Path, part: Digits, seed: int) -> nn.Module:
    digits.train_classifier(directory, part, lambda done, total: None, seed)
    network: nn.Module = image_classifier.load(directory, torch.device("cpu"))
    return network


def samples(part: Digits) -> Samples:
    return Samples(digits.in_range(part.images), torch.from_numpy(part.labels))


def test_shadows_tell_a_member_from_a_network_that_never_saw_it(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    draws = np.random.default_rng(SEED)
    pool = draws.permutation(len(everything().labels))[: 2 * TRAINED_ON]
    train, unseen = pool[:TRAINED_ON], pool[TRAINED_ON:]
    forget, part = train[:FORGOTTEN], partial(pick, everything())
    shadows = []
    for number in range(SHADOWS):
        half = draws.permutation(pool)[:TRAINED_ON]
        network = learned(tmp_path / f"shadow-{number}", part(half), 1000 + number)
        known = [torch.from_numpy(np.isin(rows, half)) for rows in (forget, unseen)]
        shadows.append(Shadow(partial(lambda one: one, network), *known))
    found: dict[str, Any] = {}
    for name, rows in (("base", train), ("retrained", train[FORGOTTEN:])):
        network = learned(tmp_path / name, part(rows), SEED)
        sets = samples(part(forget)), samples(part(train[FORGOTTEN:])), samples(part(unseen))
        given = network, image_classifier, *sets, nothing
        found[name] = {
            "likelihood_ratio": likelihood_ratio.attack(
                *given, shadows=shadows, generator=torch.Generator().manual_seed(0)
            ),
            "membership_sweep": membership_sweep.attack(*given, generator=torch.Generator().manual_seed(0)),
        }
        for attack, each in found[name].items():
            low, high = interval(each["after"])
            print(
                json.dumps(
                    {
                        "network": name,
                        "attack": attack,
                        "told": each["after"],
                        "interval": [low, high],
                        "rows": each["rows"][:5],
                    }
                )
            )  # noqa: T201
    base, retrained = (found[name]["likelihood_ratio"] for name in ("base", "retrained"))
    assert base["rows"][0]["low"] > 0.5 and retrained["rows"][0]["low"] < 0.5
    assert interval(base["after"])[0] > 50 and interval(retrained["after"])[0] < 50
    assert caught(base) > caught(retrained)


def nothing(network: nn.Module, samples: Samples) -> torch.Tensor:
    """Neither attack asks what is recognised."""
    return torch.zeros(len(samples.y), dtype=torch.bool)


def caught(found: Found) -> int:
    """Of the forgotten, at one false positive in a hundred."""
    return int(next(row["success"] for row in found["rows"] if row.get("side") == "above" and row["rate"] == 1.0))
