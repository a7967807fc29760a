"""The headers of a network's weights: one safetensors file, or shards that agree with their index to the tensor.

Nothing but headers is read. Each file, and each tensor within a file, keeps a dtype of its own; training is in float32.
"""

import json
from typing import Any

from app.errors import Refused
from app.privacy.model_files import INDEX, LORA, Folder
from app.weights.header import BrokenHeader, Header, HeaderTensor, read_header

FLOATING = ("F32", "F16", "BF16")
WHOLE = ("I64", "I32", "U8", "BOOL")
LORA_SETTINGS = "lora_adapter_metadata"
LORA_HARMLESS = frozenset(
    {"r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "inference_mode", "qalora_group_size"}
    | {"base_model_name_or_path", "revision", "task_type", "peft_version"}
)
LORA_VALUES: dict[str, tuple[Any, ...]] = {  # what other settings may say when they are not empty
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian"),
    "megatron_core": ("megatron.core",),
    "peft_type": ("LORA",),
}


def network_tensors(folder: Folder, canonical: str) -> dict[str, HeaderTensor]:
    """Every tensor of the files that the library opens, when no other weights lie beside them."""
    index = f"{canonical}{INDEX}"
    if index in folder.files and canonical not in folder.files:
        placed = _weight_map(folder.configs[index], folder.shown(index))
        files = {index, *placed.values()}
    else:
        placed, files = {}, {canonical}
    for name in sorted(files ^ folder.weights):
        raise Refused(
            "weights-files",
            folder.shown(name),
            "The file is missing." if name in files else "The file would not be read.",
            f"Weights are one file, {canonical}, or the shards that {index} lists, and no other.",
        )
    tensors: dict[str, HeaderTensor] = {}
    for file in sorted(files - {index}):
        for tensor in _header(folder, file).tensors:
            if tensor.name in tensors:
                raise _shards_refused(folder.shown(file), f"The tensor {tensor.name} is also in another shard.")
            if placed and placed.get(tensor.name) != file:
                raise _shards_refused(
                    folder.shown(index), f"It does not place {tensor.name} in {file}, which holds it."
                )
            tensors[tensor.name] = tensor
    for name in sorted(placed.keys() - tensors.keys()):
        raise _shards_refused(folder.shown(index), f"It lists {name}, and no shard holds it.")
    return tensors


def lora_tensors(folder: Folder) -> dict[str, HeaderTensor]:
    """What a LoRA file beside the weights holds: a down and an up matrix of one rank for each layer that it adapts."""
    if LORA not in folder.files:
        return {}
    header = _header(folder, LORA)
    found = {tensor.name: tensor for tensor in header.tensors}
    parts = {name.partition(".")[0] for name in found}
    _check_lora_settings(header.metadata.get(LORA_SETTINGS, "{}"), parts, folder.shown(LORA))
    for name, tensor in found.items():
        where = f"{folder.shown(LORA)}: {name}"
        if not name.endswith((".lora_A.weight", ".lora_B.weight")) or len(tensor.shape) not in (2, 4):
            raise Refused("lora-format", where, "It is no LoRA matrix of a layer.", "Save it with save_lora_weights.")
        stem, down = name[: -len(".lora_A.weight")], name.endswith(".lora_A.weight")
        other = found.get(f"{stem}.lora_{'B' if down else 'A'}.weight")
        if other is None or other.shape[1 if down else 0] != tensor.shape[0 if down else 1]:
            raise Refused("lora-format", where, "Its other half is missing or of another rank.", "Save it again.")
    return found


def _check_lora_settings(text: str, parts: set[str], shown: str) -> None:
    """Plain LoRA of one rank and scale per part, for none or all: some settings of peft import modules, others change
    the sum."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise Refused("lora-format", shown, "Its settings are not a JSON object.", "Save it with save_lora_weights.")
    for part in sorted(parts if settings else ()):
        if not {f"{part}.r", f"{part}.lora_alpha"} <= settings.keys():
            raise Refused("lora-format", f"{shown}: {part}.r", "The settings leave it out.", "Save it again.")
    for key, value in settings.items():
        name = key.rpartition(".")[2]
        sound = not value or name in LORA_HARMLESS or value in LORA_VALUES.get(name, ())
        if name in ("r", "lora_alpha") and not (type(value) in (int, float) and 0 < value <= 1 << 20):
            sound = False
        if not sound:
            raise Refused("lora-format", f"{shown}: {key}", "Only plain LoRA is read.", "Merge it into the weights.")


def _weight_map(content: dict[str, Any], shown: str) -> dict[str, str]:
    placed = content.get("weight_map")
    stem = shown.rpartition("/")[2].removesuffix(f".safetensors{INDEX}")
    if not isinstance(placed, dict) or not placed:
        raise _shards_refused(shown, "It has no weight_map.")
    for file in placed.values():
        if not isinstance(file, str) or not file.startswith(f"{stem}-") or not file.endswith(".safetensors"):
            raise _shards_refused(shown, f"{str(file)[:120]!r} is not the name of a shard in this folder.")
    return placed


def _header(folder: Folder, file: str) -> Header:
    shown = folder.shown(file)
    try:
        header = read_header(folder.files[file], shown)
    except BrokenHeader as error:
        raise Refused(
            f"safetensors-{error.fault}", shown, f"{error}.", "Save the weights again as safetensors."
        ) from None
    for tensor in header.tensors:
        if tensor.dtype not in FLOATING + WHOLE:
            raise Refused(
                "weights-dtype",
                f"{shown}: {tensor.name}",
                f"The tensor is {tensor.dtype}, which is not trained here.",
                f"Save the weights as {', '.join(FLOATING)}.",
            )
    return header


def _shards_refused(where: str, rule: str) -> Refused:
    return Refused("weights-files", where, rule, "Save the shards and their index again with save_pretrained.")
