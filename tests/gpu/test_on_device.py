"""The GPU lane (`make gpu`): the methods on a real device, with the same promises as on the CPU."""

import copy
from pathlib import Path

import pytest
import torch

from app.catalog import METHODS
from tests import tiny
from tests.tiny_pipelines import CAPTIONS
from worker import by_name

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")]
SHORT = {"epochs": 1, "steps": 2, "batch_size": 4}


@pytest.mark.parametrize("network_name", ["unet", "vit", *tiny.PIPELINES])
def test_salun_on_the_device_leaves_the_other_half_of_the_weights_alone(network_name: str, tmp_path: Path) -> None:
    name = tiny.EVERY[network_name]
    family, device = tiny.FAMILIES[name], torch.device("cuda")
    base = family.load(tiny.write(network_name, tmp_path / network_name), device)
    if network_name in tiny.PIPELINES:
        family.caption(base, CAPTIONS)
    forget, retain = (tiny.samples(base, family, count, seed) for count, seed in ((8, 1), (16, 2)))
    forget, retain = (tiny.Samples(each.x.to(device), each.y.to(device)) for each in (forget, retain))
    network = copy.deepcopy(base)
    recipe = {key: parameter.default_for(name) for key, parameter in METHODS["salun"].parameters.items()} | SHORT
    by_name.method("salun").unlearn(
        network, family, forget, retain, **recipe, generator=torch.Generator().manual_seed(0)
    )
    pairs = list(zip(base.parameters(), network.parameters(), strict=True))
    changed = sum(int((old != new).sum()) for old, new in pairs)
    total = sum(old.numel() for old, _ in pairs)
    assert 0 < changed <= total // 2
    assert next(network.parameters()).device.type == "cuda"
