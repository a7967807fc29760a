"""The attacks on a real device: as many samples are asked about each time, and nothing but copies is moved."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.catalog import ATTACKS
from app.catalog import FAMILIES as CATALOGUED
from tests import tiny
from worker import by_name
from worker.attacks import Shadow
from worker.families import Samples, image_classifier
from worker.judge import Judge

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")]
SHORT = {"steps": 2, "restarts": 2, "images": 3, "retain_images": 4, "batch_size": 2, "measured": 3, "templates": 2}
SETTINGS = {"sampling_steps": 2, "guidance_scale": 1.0, "eta": 0.0, "seed": 1, "pattern": "random", "hidden_share": 0.5}
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("network_name", ["vit", "unet", "clip", "sd", "mae"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_moves_copies_only(attack: str, network_name: str, tmp_path: Path) -> None:
    name = tiny.EVERY[network_name]
    if name not in ATTACKS[attack].families:
        return
    family, kind = tiny.FAMILIES[name], CATALOGUED[name]
    network = family.load(tiny.write(network_name, tmp_path / network_name), DEVICE)
    tiny.tell(network_name, network)
    judged = tiny.write("vit", tmp_path / "judge")
    judge = Judge(image_classifier.load(judged, DEVICE), image_classifier, judged, "sha256:judge")
    sets = [Samples(*(each.to(DEVICE) for each in tiny.samples(network, family, 9, seed=seed))) for seed in (1, 2, 3)]
    parameters: dict[str, Any] = {key: each.default_for(name) for key, each in ATTACKS[attack].parameters.items()}
    parameters |= {key: value for key, value in SHORT.items() if key in parameters}
    if ATTACKS[attack].shadows:
        known = [torch.tensor([(at + half) % 4 < 2 for at in range(9)]) for half in range(4)]
        parameters["shadows"] = [Shadow(lambda: network, own, own) for own in known]
    recognised = partial(by_name.answers(kind.answers).recognised, family, SETTINGS, judge)
    before = copy.deepcopy(network.state_dict())
    found = [
        by_name.attack(attack).attack(
            network, family, *sets, recognised, **parameters, generator=torch.Generator().manual_seed(0)
        )
        for _ in range(2)
    ]
    assert [each["after"]["total"] for each in found] == [found[0]["after"]["total"]] * 2
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
