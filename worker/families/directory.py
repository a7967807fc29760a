"""Hugging Face directories: read strictly, and write changed weights in the very layout in which they came.

A network is float32 in memory, so that small steps do not vanish; its files keep their dtypes, tensor names, order,
metadata and shards. Weights are one safetensors file or shards with an `*.safetensors.index.json`.

A family opens each network with `open_transformers` or `open_diffusers` and writes all of them back with `save`. What
the files held is kept in the network's `__dict__`, which a deepcopy takes along: `stored_names` (name in the files ->
name in the network: transformers renames tensors while it reads), `stored_dtypes` by the network's names, `stored_stem`.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig

from worker.families import lora

DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
SUFFIX = ".safetensors"
TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"  # what each library calls its weights
UNBUILDABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # by diffusers
BLOCK = 1 << 24  # elements or bytes that are converted or copied at a time


def open_transformers(kind: Any, folder: Path) -> nn.Module:
    """A network of transformers, in float32 and eval mode. ValueError names the file, field or tensor at fault.

    The library renames tensors while it reads. So it is first given numbers in place of the file's tensors, which take
    no memory; where each number comes out is where that tensor belongs.
    """
    files = weight_files(folder, TRANSFORMERS)
    found = read_weights(files)
    numbers = _numbered(found)
    try:
        with torch.random.fork_rng(devices=[]):
            network, report = kind.from_pretrained(
                None,
                config=kind.config_class.from_pretrained(folder, local_files_only=True),
                state_dict={name: _marker(found[name], number) for name, number in numbers.items()},
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (*UNBUILDABLE, OSError) as error:
        raise ValueError(f"config.json: {kind.__name__} cannot be opened with it: {error}") from error
    shown = _shown(folder, TRANSFORMERS)
    _refuse_wrong_tensors(report, shown)
    names = _matched(network, numbers, shown)
    owned: dict[str, Tensor] = network.state_dict(keep_vars=True)
    for name, own in names.items():
        _check_kind(found[name], owned[own], name, shown)
        dtype = torch.float32 if found[name].is_floating_point() else found[name].dtype
        owned[own].data = found[name].to(dtype, copy=True)
    _note(network, names, found, TRANSFORMERS)
    if (folder / "generation_config.json").is_file():
        network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    opened: nn.Module = network.eval()
    return opened


def open_diffusers(kind: Any, folder: Path) -> nn.Module:
    """A network of diffusers, in float32 and eval mode. ValueError names the file, field or tensor at fault."""
    config = read_config(folder, "config.json")
    try:
        with torch.random.fork_rng(devices=[]), _Unfilled():
            network: nn.Module = kind.from_config(config)
    except UNBUILDABLE as error:
        raise ValueError(f"config.json: {kind.__name__} cannot be built from it: {error}") from error
    found = read_weights(weight_files(folder, DIFFUSERS))
    expected = network.state_dict().keys()
    names = {name: name if name in expected else _renamed(name) for name in found}
    fill(network, {own: found[name] for name, own in names.items()}, _shown(folder, DIFFUSERS))
    _note(network, names, found, DIFFUSERS)
    return network.eval()


class _Unfilled(TorchFunctionMode):
    """Draws no first weights, since each is replaced: most of the time that a big network takes to build."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def save(parts: Mapping[str, nn.Module], directory: Path, like: Path) -> None:
    """A whole directory again: the networks that were opened from folders of `like` ("" is the top one) with the weights
    that they have now, and every other file byte for byte."""
    written: dict[Path, Mapping[str, Tensor]] = {}
    for folder, network in parts.items():
        kept = network.__dict__
        own, files = network.state_dict(), weight_files(like / folder, kept["stored_stem"])
        if "lora" in kept:
            stored = {kept["stored_names"].get(name): tensor for name, tensor in read_weights(files).items()}
            own |= {name: lora.without(network, name, own[name], stored[name]) for name in kept["lora"]}
        tensors = {name: own[inside] for name, inside in kept["stored_names"].items()}
        written |= dict.fromkeys(files, tensors)
    _copy(written, directory, like)


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
                for name in names:
                    if name in found:
                        raise ValueError(f"{path.name}: tensor {name} is also in another shard")
                    found[name] = file.get_tensor(name)
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
        _check_kind(tensor, expected[name], name, shown)
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
                    base = lora.without(module, name, tensor).to(dtypes[name])
                    tensor.copy_(lora.added(module, name, base.to(tensor.dtype)))


def save_like(tensors: Mapping[str, Tensor], files: Iterable[Path], directory: Path, like: Path) -> None:
    """A whole directory again: `files` (of `like`) with these tensors, every other file byte for byte."""
    _copy(dict.fromkeys(files, tensors), directory, like)


def write_like(tensors: Mapping[str, Tensor], target: Path, like: Path) -> None:
    """One safetensors file again: the header byte for byte, each tensor with its new value in its old dtype.

    A tensor that `tensors` does not name (a buffer, a tied copy) keeps its bytes. Big ones are converted piece by piece.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with like.open("rb") as old, target.open("wb") as new:
        opening = _opening(old)
        new.write(opening)
        for name, entry in _layout(opening[8:]):
            start, end = entry["data_offsets"]
            if name not in tensors:
                for position in range(start, end, BLOCK):
                    new.write(old.read(min(BLOCK, end - position)))
                continue
            if list(tensors[name].shape) != entry["shape"]:
                raise ValueError(f"{like.name}: tensor {name} has another shape than its file")
            old.seek(end - start, 1)
            write_tensor(tensors[name], entry["dtype"], new)


def _copy(written: Mapping[Path, Mapping[str, Tensor]], directory: Path, like: Path) -> None:
    """ValueError when a tensor has no place in the files that it was meant for, unless it is tied to one that has."""
    places: defaultdict[int, set[str]] = defaultdict(set)
    for path, tensors in written.items():
        with path.open("rb") as old:
            places[id(tensors)] |= {name for name, _ in _layout(_opening(old)[8:])}
    for tensors in written.values():
        held = places[id(tensors)]
        kept = {tensor.data_ptr() for name, tensor in tensors.items() if name in held}
        for name, tensor in tensors.items():
            if name not in held and tensor.numel() and tensor.data_ptr() not in kept:
                raise ValueError(f"tensor {name} has no place in the files that the network came from")
    for source in sorted(path for path in like.rglob("*") if path.is_file()):
        target = directory / source.relative_to(like)
        if source in written:
            write_like(written[source], target, source)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _opening(file: BinaryIO) -> bytes:
    """The header with the 8 bytes of its length."""
    length = file.read(8)
    return length + file.read(int.from_bytes(length, "little"))


def _layout(header: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each tensor's name and entry, in the order of their bytes."""
    declared = json.loads(header)
    declared.pop("__metadata__", None)
    yield from sorted(declared.items(), key=lambda item: tuple(item[1]["data_offsets"]))


def write_tensor(tensor: Tensor, dtype: str, new: BinaryIO) -> None:
    """Its bytes in a dtype of safetensors, converted a block at a time: no second copy of a big one."""
    flat = tensor.detach().reshape(-1)
    for part in flat.split(BLOCK) if flat.numel() else ():
        stored = part.to("cpu", DTYPES.get(dtype, part.dtype)).contiguous()
        new.write(stored.view(torch.uint8).numpy().data)


def _numbered(found: Mapping[str, Tensor]) -> dict[str, int]:
    """A number of its own for each tensor; a stored tied copy shares its number, or the library would untie the two."""
    numbers: dict[str, int] = {}
    alike: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, tensor in found.items():
        twin = next((each for each in alike[tuple(tensor.shape)] if torch.equal(found[each], tensor)), None)
        numbers[name] = len(numbers) + 1 if twin is None else numbers[twin]
        if twin is None and tensor.ndim > 1 and tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any()):
            alike[tuple(tensor.shape)].append(name)
    return numbers


def _marker(tensor: Tensor, number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.float32 if tensor.is_floating_point() else torch.int64).expand(tensor.shape)


def _matched(network: nn.Module, numbers: Mapping[str, int], shown: str) -> dict[str, str]:
    """Name in the files -> name in the network, by the numbers that came out."""
    inside, outside = defaultdict(list), defaultdict(list)
    for own, tensor in network.state_dict(keep_vars=True).items():
        if tensor.numel():
            inside[int(tensor.flatten()[0])].append(own)
    for name, number in numbers.items():
        outside[number].append(name)
    transforms = getattr(network, "_weight_conversions", None) or ()
    if any(getattr(each, "operations", None) and each.was_used() for each in transforms):
        raise ValueError(f"{shown}: saved with an older layout: open and save it again with transformers 5")
    names: dict[str, str] = {}
    owned = network.state_dict(keep_vars=True)
    for number, sources in outside.items():
        targets = inside[number]
        tied = len({id(owned[own]) for own in targets}) == 1
        left = [own for own in targets if own not in sources]
        for name in sources:
            if name in targets or (targets and (tied or len(left) == 1)):
                names[name] = name if name in targets else (left or targets)[0]
            elif targets:
                raise ValueError(f"{shown}: tensor {name} is equal to another, and cannot be told from it")
    return names


def _refuse_wrong_tensors(report: Mapping[str, Any], shown: str) -> None:
    for name in sorted(report["missing_keys"]):
        raise ValueError(f"{shown}: tensor {name} is missing")
    for name in sorted(report["unexpected_keys"]):
        raise ValueError(f"{shown}: tensor {name} is not part of the network that config.json describes")
    for name, found, wanted in sorted(report["mismatched_keys"]):
        shapes = f"{tuple(found)}, and config.json describes {tuple(wanted)}"
        raise ValueError(f"{shown}: tensor {name} has shape {shapes}")


def _check_kind(tensor: Tensor, own: Tensor, name: str, shown: str) -> None:
    if tensor.is_floating_point() != own.is_floating_point():
        raise ValueError(f"{shown}: tensor {name} has dtype {tensor.dtype}, unlike the network's")


def _renamed(name: str) -> str:
    """The name of today for a tensor of an attention layer that diffusers saved long ago."""
    return next((name.replace(old, new) for old, new in RENAMED.items() if old in name), name)


def _shown(folder: Path, stem: str) -> str:
    return f"{stem}{SUFFIX}" if (folder / f"{stem}{SUFFIX}").is_file() else f"{stem}{SUFFIX}.index.json"


def _note(network: nn.Module, names: Mapping[str, str], found: Mapping[str, Tensor], stem: str) -> None:
    network.__dict__["stored_names"] = dict(names)
    network.__dict__["stored_dtypes"] = {own: found[name].dtype for name, own in names.items()}
    network.__dict__["stored_stem"] = stem
