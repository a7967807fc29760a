"""Hugging Face directories: read strictly, and write changed weights in the very layout in which they came.

A network is float32 in memory, so that small steps do not vanish; its files keep their dtype, tensor names, order,
metadata and shards. Weights are one safetensors file or shards with an `*.safetensors.index.json`.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SUFFIX = ".safetensors"


def read_config(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        raise ValueError(f"{name}: the directory must hold it")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name}: must hold an object")
    return config


def weight_files(directory: Path, stem: str) -> list[Path]:
    """`model` -> model.safetensors, or the shards that model.safetensors.index.json lists, in their order."""
    whole, index = directory / f"{stem}{SUFFIX}", directory / f"{stem}{SUFFIX}.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ValueError(f"{whole.name}: the directory must hold it, or its shards with {index.name}")
    shards = sorted(set(read_config(directory, index.name).get("weight_map", {}).values()))
    for name in shards:
        if not (directory / name).is_file():
            raise ValueError(f"{name}: {index.name} lists it, and the directory does not hold it")
    return [directory / name for name in shards]


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor as it is stored. ValueError names the file."""
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                names = file.keys()
                found |= {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name}: not a safetensors file: {error}") from error
    return found


def fill(network: nn.Module, found: Mapping[str, Tensor], shown: str) -> None:
    """Give a network exactly these tensors, floating ones as float32; what the files held is kept for `round_to_stored`.

    A name that is tied to another of the network's may be missing. ValueError names the tensor.
    """
    expected = network.state_dict()
    present = {expected[name].data_ptr() for name in found.keys() & expected.keys() if expected[name].numel()}
    for name in sorted(expected.keys() - found.keys()):
        if expected[name].numel() == 0 or expected[name].data_ptr() not in present:
            raise ValueError(f"{shown}: tensor {name} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"{shown}: tensor {name} is not part of the network that its config describes")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, and its config describes {tuple(expected[name].shape)}"
            raise ValueError(f"{shown}: tensor {name} has shape {shapes}")
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(f"{shown}: tensor {name} has dtype {tensor.dtype}, unlike the network's")
    network.float().load_state_dict(dict(found), strict=False)
    network.__dict__["stored_dtypes"] = {name: tensor.dtype for name, tensor in found.items()}


@torch.no_grad()
def round_to_stored(network: nn.Module) -> None:
    """Round every weight, in place, to what its file can hold: what is measured is then what is registered."""
    for module in network.modules():
        dtypes: Mapping[str, torch.dtype] = module.__dict__.get("stored_dtypes", {})
        if any(dtype != torch.float32 for dtype in dtypes.values() if dtype.is_floating_point):
            for name, tensor in module.state_dict().items():
                if name in dtypes and dtypes[name].is_floating_point:
                    tensor.copy_(tensor.to(dtypes[name]))


def write_like(tensors: Mapping[str, Tensor], target: Path, like: Path) -> None:
    """One safetensors file again: the header byte for byte, each tensor with its new value in its old dtype.

    A tensor that `tensors` does not name (a buffer, a tied copy) keeps its bytes.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with like.open("rb") as old, target.open("wb") as new:
        opening = old.read(8)
        header = old.read(int.from_bytes(opening, "little"))
        new.write(opening + header)
        for name, start, end in _layout(header):
            before = old.read(end - start)
            new.write(before if name not in tensors else _bytes(tensors[name], like, name))


def save_like(tensors: Mapping[str, Tensor], files: Iterable[Path], directory: Path, like: Path) -> None:
    """A whole directory again: `files` (of `like`) with these tensors, every other file byte for byte."""
    written = set(files)
    for source in sorted(path for path in like.rglob("*") if path.is_file()):
        target = directory / source.relative_to(like)
        if source in written:
            write_like(tensors, target, source)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _layout(header: bytes) -> Iterator[tuple[str, int, int]]:
    declared = json.loads(header)
    declared.pop("__metadata__", None)
    for name, entry in sorted(declared.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        start, end = entry["data_offsets"]
        yield name, start, end


def _bytes(tensor: Tensor, like: Path, name: str) -> bytes:
    with safe_open(like, "pt") as file:
        dtype = file.get_tensor(name).dtype
    flat = tensor.detach().to("cpu", dtype).contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
