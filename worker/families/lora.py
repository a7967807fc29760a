"""A LoRA that lies beside a pipeline's weights: networks are opened as they are used, and written back without it.

    used = W + scale * B A                    (Hu et al., arXiv 2106.09685; scale = lora_alpha / r, 1 where none is stored)

`pytorch_lora_weights.safetensors` keeps its bytes. A method sees and moves the sum; what is written is the base weight
that has moved by as much, so that after `pipe.load_lora_weights(directory)` plain diffusers computes what was measured.
An element that no method moved keeps its bits.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"


class Adapter(NamedTuple):
    """What one weight is adapted by: down (r, in, ...) and up (out, r, ...) matrices."""

    down: Tensor
    up: Tensor
    scale: float


@torch.no_grad()
def merge(parts: Mapping[str, nn.Module], directory: Path) -> None:
    """Add the directory's LoRA, if there is one, to the networks that were opened from its folders, in place.

    The adapters are kept in each network's `__dict__` as `lora`, by the weight's name. ValueError names the tensor.
    """
    path = directory / FILE
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            found = {name: file.get_tensor(name).float() for name in names}
            settings = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{FILE}: not a LoRA of diffusers: {error}") from error
    for name, down in found.items():
        if not name.endswith((DOWN, UP)):
            raise ValueError(f"{FILE}: tensor {name} is not a matrix of a LoRA")
        if name.endswith(UP):
            continue
        part, _, layer = name.removesuffix(DOWN).partition(".")
        up = found.get(f"{part}.{layer}{UP}")
        own = _weight_of(parts[part], layer) if part in parts else None
        if own is None or up is None:
            raise ValueError(f"{FILE}: tensor {name} adapts no weight of the pipeline")
        adapter = Adapter(down, up, _scale(settings, part))
        weight = parts[part].state_dict()[own]
        if up.flatten(1).shape[1] != len(down) or len(up) * down[0].numel() != weight.numel():
            raise ValueError(f"{FILE}: tensor {name} does not have the shape of the weight that it adapts")
        parts[part].__dict__.setdefault("lora", {})[own] = adapter
        weight.add_(_difference(adapter, weight))


def without(network: nn.Module, name: str, weight: Tensor, base: Tensor | None = None) -> Tensor:
    """The base weight under an adapted one; `base`, as it was stored, keeps an element that did not move bit for bit."""
    adapter: Adapter | None = network.__dict__.get("lora", {}).get(name)
    if adapter is None:
        return weight
    difference = _difference(adapter, weight)
    if base is None:
        return weight - difference
    then = base.to(weight)
    return then + (weight - (then + difference))


def added(network: nn.Module, name: str, weight: Tensor) -> Tensor:
    """The other way: what a base weight is used as."""
    adapter: Adapter | None = network.__dict__.get("lora", {}).get(name)
    return weight if adapter is None else weight + _difference(adapter, weight)


def _difference(adapter: Adapter, weight: Tensor) -> Tensor:
    product = adapter.up.to(weight).flatten(1) @ adapter.down.to(weight).flatten(1)
    return (adapter.scale * product).reshape(weight.shape)


def _scale(settings: Mapping[str, float], part: str) -> float:
    rank = settings.get(f"{part}.r")
    return float(settings.get(f"{part}.lora_alpha", rank)) / rank if rank else 1.0


def _weight_of(network: nn.Module, layer: str) -> str | None:
    """The adapted weight's name in the network; the file may call the layer as the weights' own file does."""
    name = f"{layer}.weight"
    if name in network.state_dict():
        return name
    stored: Mapping[str, str] = network.__dict__.get("stored_names", {})
    return stored.get(name)
