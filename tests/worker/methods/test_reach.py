"""What the catalogue says that a method may move, against what it does move, on every kind of network."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app import weights
from app.catalog import METHODS, PARTS
from app.reach import Reach, memory, reach
from app.storage import LocalBlobs
from tests import tiny
from tests.worker.methods.test_every_method import CASES, Case

ONE_OF_EACH = list({(method, tiny.EVERY[name]): (method, name) for method, name in reversed(CASES)}.values())
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    *((method, name, {}) for method, name in ONE_OF_EACH),
    ("uce", "flux", {}),
    ("uce", "sdxl", {}),
    ("esd", "sd3", {}),
    ("esd", "sd", {"variant": "u"}),
    ("salun", "sd", {"train": "cross_attention"}),
    ("salun", "flux", {"train": "cross_attention"}),
    ("salun", "unet", {"train": "no_label_table"}),
    ("salun", "dit", {"train": "no_label_table", "mask_fraction": 0.1}),
    ("salun", "resnet", {"batch_norm": "train"}),
    ("salun", "resnet", {"soft": True}),
    ("random_label", "vit", {"mask": "salient", "mask_fraction": 0.2}),
    ("slug", "sd3", {"patches": "one", "group": "block"}),
    ("slug", "llava", {"group": "block"}),
    ("slug", "clip", {"group": "block", "patches": "label"}),
]


def changed(case: Case, network: torch.nn.Module, base: Path, folder: Path) -> tuple[Any, set[tuple[str, str]], Any]:
    """The base's manifest; which tensors of the saved version differ; and how much that is."""
    blobs = LocalBlobs(folder / "blobs")
    first = weights.pack_base(base, folder / "base.pack", "packs/base")
    blobs.put("packs/base", folder / "base.pack")
    case.family.round_to_stored(network)
    case.family.save(network, folder / "new", base)
    second = weights.pack_delta(first, blobs, folder / "new", folder / "new.pack", "packs/new")
    before = dict(first.tensors())
    differ = {key for key, tensor in second.tensors() if not tensor.same_content(before[key])}
    return first, differ, weights.changes(second, first)


def slow(method: str, name: str) -> bool:
    return method in ("slug", "esd", "overwrite", "saddle") and tiny.EVERY[name] in ("text_to_image", "class_diffusion")


@pytest.mark.parametrize(
    ("method", "name", "given"),
    [
        pytest.param(*each, id="-".join([*each[:2], *each[2]]), marks=[pytest.mark.verify] if slow(*each[:2]) else [])
        for each in VARIANTS
    ],
)
def test_a_method_changes_no_more_than_the_catalogue_says(
    method: str, name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    case = Case(method, name, tmp_path / "base")
    network = case.run(**given)
    manifest, differ, counted = changed(case, network, tmp_path / "base", tmp_path)
    recipe = case.recipe | given
    labels = len(set(case.forget.y.tolist()))
    said: Reach = reach(tiny.EVERY[name], method, recipe, manifest, labels)
    assert differ and differ <= said.candidates, sorted(differ - said.candidates)[:5]
    assert counted["tensors_changed"] <= said.tensors <= said.of_tensors == counted["tensors_total"]
    assert counted["elements_changed"] <= said.elements <= said.of_elements == counted["elements_total"]
    least = memory(tiny.EVERY[name], method, recipe, manifest)
    assert least.weights >= 2 * 4 * sum(weight.numel() for weight in case.family.trainable(network).values())
    assert least.at_least == least.weights + least.gradients + least.optimizer


def test_every_family_has_the_parts_that_its_methods_name() -> None:
    for method in METHODS.values():
        for family in method.families:
            assert method.moves in PARTS[family]


def test_what_an_optimizer_keeps_is_counted(tmp_path: Path) -> None:
    tiny.write("vit", tmp_path / "vit")
    manifest = weights.pack_base(tmp_path / "vit", tmp_path / "pack", "packs/x")
    recipe = {key: each.default_for("image_classifier") for key, each in METHODS["salun"].parameters.items()}
    whole = 4 * sum(tensor.elements for _, tensor in manifest.tensors())
    sgd = memory("image_classifier", "salun", recipe, manifest)
    assert (sgd.weights, sgd.gradients, sgd.optimizer) == (2 * whole, whole, whole)
    assert memory("image_classifier", "salun", recipe | {"momentum": 0.0}, manifest).optimizer == 0
    assert memory("image_classifier", "salun", recipe | {"optimizer": "adam"}, manifest).optimizer == 2 * whole
