"""How much of a network a method may move, and the memory that it cannot do without: from a manifest and the catalogue alone.

Both are bounds, not guesses: no run of the method changes more tensors or elements, and none holds less.
"""

import math
from dataclasses import dataclass
from typing import Any

from app import catalog
from app.weights.manifest import Manifest, Tensor

FLOAT = 4  # bytes: networks are float32 in memory, whatever their files hold
OF_A_BLOCK = 3  # query, key and value are the largest group that one layer of slug has


@dataclass(frozen=True)
class Reach:
    """`candidates`: what any run may choose from; `tensors` and `elements`: how much of it one run changes at most."""

    about: str
    candidates: frozenset[tuple[str, str]]
    tensors: int
    elements: int
    of_tensors: int
    of_elements: int


@dataclass(frozen=True)
class Memory:
    """Bytes. `weights`: the base and the copy that moves. `optimizer`: moments, or what the method keeps in their place."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def at_least(self) -> int:
        return self.weights + self.gradients + self.optimizer


def reach(family: str, method: str, recipe: dict[str, Any], manifest: Manifest, labels: int) -> Reach:
    """`labels`: how many the forget set has at most; a method that edits layers edits one for each."""
    part, found = _part(family, method, recipe), _candidates(family, method, recipe, manifest)
    sizes = sorted((tensor.elements for tensor in found.values()), reverse=True)
    if part.matrices:
        layers = labels if recipe.get("patches") == "label" else 1
        sizes = sizes[: layers * (OF_A_BLOCK if recipe.get("group") == "block" else 1)]
    every = [tensor.elements for _, tensor in manifest.tensors()]
    masked = "mask_fraction" in recipe and not recipe.get("soft") and recipe.get("mask", "salient") == "salient"
    statistics = sum(tensor.elements for (_, name), tensor in found.items() if catalog.STATISTICS.search(name))
    weights = sum(sizes) - statistics
    moved = math.floor(recipe["mask_fraction"] * weights) if masked else weights
    about = f"{part.about}, {recipe['mask_fraction']:.0%} of its elements" if masked else part.about
    return Reach(about, frozenset(found), len(sizes), moved + statistics, len(every), sum(every))


def memory(family: str, method: str, recipe: dict[str, Any], manifest: Manifest) -> Memory:
    known = catalog.METHODS[method]
    whole = sum(tensor.elements for _, tensor in manifest.tensors() if _floating(tensor))
    found = _candidates(family, method, recipe, manifest)
    moved = sum(tensor.elements for (_, name), tensor in found.items() if not catalog.STATISTICS.search(name))
    copies = known.copies
    if "optimizer" in known.parameters:
        copies = 2 if recipe["optimizer"] == "adam" else int(recipe["momentum"] > 0)
    return Memory(2 * whole * FLOAT, moved * FLOAT if known.gradients else 0, moved * FLOAT * copies)


def _part(family: str, method: str, recipe: dict[str, Any]) -> catalog.Part:
    """The recipe's choice, where the method leaves one."""
    named = recipe.get("train", catalog.METHODS[method].moves)
    if method == "esd":
        named = {"x": "cross_attention", "u": "without_cross_attention"}[recipe["variant"]]
    parts = catalog.PARTS[family]
    return parts.get(named, parts["all"])


def _candidates(family: str, method: str, recipe: dict[str, Any], manifest: Manifest) -> dict[tuple[str, str], Tensor]:
    part, follows = _part(family, method, recipe), method == "retrain" or recipe.get("batch_norm") == "train"
    return {
        key: tensor
        for key, tensor in manifest.tensors()
        if part.holds("/".join(key), len(tensor.shape))
        and (follows if catalog.STATISTICS.search(key[1]) else _floating(tensor))
    }


def _floating(tensor: Tensor) -> bool:
    return "F" in tensor.dtype and not catalog.STATISTICS.search(tensor.name)
