"""Intake guard for model directories: nothing that could run code, and a config that belongs to its weights.

Everything is decided from file names, JSON and safetensors headers; no tensor is loaded and no class imported. A
directory passes only if every file has a known purpose, every class that a config names is on the family's list, and
the shapes that the config implies are the shapes in the weights. Issue 5 adds hub pulls in front of the same door.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from app.catalog import Family
from app.errors import Refused
from app.privacy.archive import Limits, members
from app.privacy.shape_anchors import Anchors, Shape, anchors, mismatches
from app.weights.header import REFUSED_SUFFIXES, Header, read_header, refuse_pickle

MODEL_LIMITS = Limits(entries=512, entry_bytes=64 << 30, total_bytes=128 << 30)
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json", "model_index.json")
SCHEDULERS = ("DDIMScheduler", "DDPMScheduler")
FORBIDDEN_KEYS = frozenset(
    {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config"}
)
FLOATING = ("F32", "F16", "BF16")
WHOLE = ("I64", "I32", "U8", "BOOL")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
_JSON_BYTES = 16 << 20
_WEIGHT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.safetensors")
_PROCESSOR = re.compile(r"[A-Za-z0-9]+(ImageProcessor(Fast|Pil)?|FeatureExtractor)")


@dataclass(frozen=True)
class DirectoryFacts:
    """What the directory holds. `image_shape` is (channels, height, width); `label_names` None when it names none."""

    class_name: str
    labels: int
    label_names: list[str] | None
    image_shape: Shape
    tensors: int
    bytes: int


def unpack_model(archive: BinaryIO, target: Path, limits: Limits = MODEL_LIMITS) -> None:
    """Write an uploaded directory's files to the new folder `target`, a single top folder stripped; on any failure
    `target` is gone. The files are unchecked but for their names: `inspect_directory` comes next."""
    target.mkdir(mode=0o700)
    try:
        folder: PurePosixPath | None = None
        for member in members(archive, limits):
            path = PurePosixPath(member.name)
            folder = path.parent if folder is None else folder
            if path.parent != folder or len(path.parts) > 2:
                raise _file_refused(member.label, "All files lie in one folder.")
            check_name(path.name, member.label)
            with (target / path.name).open("xb") as file:
                file.writelines(member.pieces())
    except BaseException:  # an interrupt must not leave an upload behind either
        shutil.rmtree(target)
        raise


def inspect_directory(directory: Path, family: Family, family_name: str) -> DirectoryFacts:
    """Check a model directory against its family; Refused names the file or tensor and the rule."""
    files = _plain_files(directory)
    configs = {name: _json(files[name]) for name in CONFIGS if name in files}
    for name, content in configs.items():
        _refuse_code(name, content)
    if "model_index.json" in configs:
        _check_model_index(configs["model_index.json"], family, family_name)
    if "config.json" not in configs:
        raise _file_refused("config.json", "The directory has no config.json.")
    config, preprocessor = configs["config.json"], configs.get("preprocessor_config.json", {})
    class_name = _checked_class(config, family, family_name)
    _check_companions(configs, family.library)
    header = _header(files, WEIGHTS[family.library])
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    names = _label_names(config) if family.library == "transformers" else None
    expected = anchors(class_name, config, preprocessor, len(names) if names else None)
    _compare(expected, shapes)
    return DirectoryFacts(
        class_name=class_name,
        labels=expected.labels,
        label_names=None if names == [f"LABEL_{number}" for number in range(expected.labels)] else names,
        image_shape=expected.image,
        tensors=len(shapes),
        bytes=sum(path.stat().st_size for path in files.values()),
    )


def check_name(name: str, where: str) -> None:
    """Refuse a file by its name: code, weights that are not safetensors, and whatever has no known purpose."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise _pickle_refused(
            where, f"Weights as {suffix} are refused by name: such a file can run code when it is opened."
        )
    if suffix in (".py", ".pyc", ".so", ".sh"):
        raise Refused(
            "code-refused",
            where,
            "A model directory must not carry code.",
            "Remove the file; only classes of diffusers and transformers are used.",
        )
    if name not in CONFIGS and not _WEIGHT_FILE.fullmatch(name):
        raise _file_refused(where, "The file has no known purpose.")


def _plain_files(directory: Path) -> dict[str, Path]:
    files = {}
    for path in sorted(directory.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise _file_refused(path.name, "Only regular files are read: no folders, links or devices.")
        check_name(path.name, path.name)
        try:
            refuse_pickle(path, path.name)
        except ValueError as error:
            raise _pickle_refused(path.name, f"{error}.") from None
        files[path.name] = path
    return files


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _JSON_BYTES:
        raise Refused(
            "config-format", path.name, f"At most {_JSON_BYTES} bytes of JSON are read.", "Remove what is not config."
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Refused(
            "config-format", path.name, "The file is not a JSON object.", "Save it again with save_pretrained."
        )
    return content


def _refuse_code(name: str, content: object) -> None:
    """Refuse keys that make a library fetch or run code, at any depth."""
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for key in FORBIDDEN_KEYS & value.keys():
                raise Refused(
                    "code-refused",
                    f"{name}: {key}",
                    f"`{key}` is refused: it brings in code from elsewhere.",
                    "Remove the key; only classes of diffusers and transformers are used.",
                )
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _check_model_index(content: Mapping[str, Any], family: Family, family_name: str) -> None:
    """A pipeline's index imports the modules that it names, so each must be on the family's list."""
    for key, value in content.items():
        if isinstance(value, list) and value != [None, None]:
            known = len(value) == 2 and value[0] in ("diffusers", "transformers")
            if not known or value[1] not in (*SCHEDULERS, *family.classes):
                raise _class_refused(f"model_index.json: {key}", ".".join(map(str, value)), family, family_name)
    if content.get("_class_name") not in family.classes:
        raise _class_refused("model_index.json: _class_name", str(content.get("_class_name")), family, family_name)


def _checked_class(config: Mapping[str, Any], family: Family, family_name: str) -> str:
    """The one class that config.json declares, if the family has it."""
    if family.library == "diffusers":
        declared, key = config.get("_class_name"), "_class_name"
    else:
        listed, key = config.get("architectures"), "architectures"
        declared = listed[0] if isinstance(listed, list) and len(listed) == 1 else None
    if not isinstance(declared, str) or declared not in family.classes:
        raise _class_refused(f"config.json: {key}", str(declared), family, family_name)
    if family.library == "transformers":
        kind = str(config.get("model_type"))
        if re.sub(r"[_-]", "", kind) != declared.removesuffix("ForImageClassification").lower():
            raise _class_refused("config.json: model_type", f"{kind} for {declared}", family, family_name)
    return declared


def _check_companions(configs: Mapping[str, Mapping[str, Any]], library: str) -> None:
    """The scheduler that a diffusion model needs, and the classes that both companions name."""
    scheduler = configs.get("scheduler_config.json")
    if scheduler is None and library == "diffusers":
        raise _file_refused("scheduler_config.json", "A diffusion model needs its noise schedule beside config.json.")
    if scheduler is not None:
        _check_choice("scheduler_config.json", "_class_name", scheduler.get("_class_name"), SCHEDULERS)
        _check_choice(
            "scheduler_config.json", "prediction_type", scheduler.get("prediction_type", "epsilon"), PREDICTIONS
        )
    for key in ("image_processor_type", "feature_extractor_type", "processor_class"):
        kind = configs.get("preprocessor_config.json", {}).get(key)
        if kind is not None and not (isinstance(kind, str) and _PROCESSOR.fullmatch(kind)):
            raise Refused(
                "class-not-allowed",
                f"preprocessor_config.json: {key}",
                f"{str(kind)[:80]!r} is not an image processor.",
                "Use an image processor of transformers.",
            )


def _check_choice(file: str, key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        code = "class-not-allowed" if key == "_class_name" else "config-value"
        raise Refused(
            code, f"{file}: {key}", f"{str(value)[:80]!r} is not on the list.", f"Use {' or '.join(allowed)}."
        )


def _header(files: Mapping[str, Path], canonical: str) -> Header:
    """The header of the one file that the family opens, when no other weights lie beside it."""
    for name in sorted({canonical} ^ (files.keys() - set(CONFIGS))):
        raise Refused(
            "weights-files",
            name,
            "The file is missing." if name == canonical else "The file would not be read.",
            f"Weights are one file, {canonical}: save with a max_shard_size above their size.",
        )
    try:
        header = read_header(files[canonical], canonical)
    except ValueError as error:
        raise Refused("safetensors", canonical, f"{error}.", "Save the weights again as safetensors.") from None
    floating = next((tensor.dtype for tensor in header.tensors if tensor.dtype in FLOATING), "none")
    for tensor in header.tensors:
        if tensor.dtype != floating and tensor.dtype not in WHOLE:
            raise Refused(
                "weights-dtype",
                f"{canonical}: {tensor.name}",
                f"The tensor is {tensor.dtype}, others {floating}.",
                f"Save every weight as the same of {', '.join(FLOATING)}.",
            )
    return header


def _label_names(config: Mapping[str, Any]) -> list[str]:
    """The labels in order; the libraries take two when a config names none."""
    named = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(named, dict) or len(named) < 2 or set(named) != {str(number) for number in range(len(named))}:
        raise Refused(
            "config-value",
            "config.json: id2label",
            "`id2label` must number two or more labels 0, 1, ... without gaps.",
            "Register the config that belongs to the weights.",
        )
    return [str(named[str(number)]) for number in range(len(named))]


def _compare(expected: Anchors, shapes: Mapping[str, Shape]) -> None:
    if wrong := mismatches(expected, shapes):
        (where, what), more = wrong[0], len(wrong) - 1
        raise Refused(
            "config-mismatch",
            f"config.json: {where}",
            f"{what}" + (f" (and {more} more differ)." if more else "."),
            "Register the config that belongs to the weights.",
        )


def _class_refused(where: str, declared: str, family: Family, family_name: str) -> Refused:
    return Refused(
        "class-not-allowed",
        where,
        f"{declared[:120]!r} is not a class of the family {family_name}.",
        f"Allowed are {', '.join(family.classes)}.",
    )


def _file_refused(where: str, rule: str) -> Refused:
    return Refused(
        "file-not-allowed",
        where,
        rule,
        f"A model is one flat folder of safetensors weights with {', '.join(CONFIGS[:3])}.",
    )


def _pickle_refused(where: str, rule: str) -> Refused:
    return Refused("pickle-refused", where, rule, "Save the weights as safetensors.")
