"""Intake guard for model directories: nothing that could run code, and configs that belong to their weights.

Everything is decided from file names, JSON and safetensors headers; no tensor is loaded and no class imported. A
directory passes only if every file has a known purpose (model_files), every class that it names is on the family's list
(model_classes), its weights are whole (model_weights), and the shapes that the configs imply are the shapes in the
weights (shape_anchors). What a family allows stands in its catalogue entry, `Family.files`. Directories
come as an upload or from a server path; none is pulled from a hub.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from app.catalog import Family
from app.errors import Refused
from app.privacy.archive import Limits, Member, members
from app.privacy.model_classes import (
    DIFFUSERS_PARTS,
    check_companions,
    check_components,
    check_settings,
    network_class,
)
from app.privacy.model_files import (
    PIPELINE,
    SCHEDULER,
    SENTENCEPIECE,
    WEIGHTS,
    Folder,
    check_path,
    file_refused,
    read_folders,
)
from app.privacy.model_weights import lora_tensors, network_tensors
from app.privacy.shape_anchors import Anchors, Shape, anchors, mismatches

MODEL_LIMITS = Limits(entries=512, entry_bytes=64 << 30, total_bytes=128 << 30)


@dataclass(frozen=True)
class DirectoryFacts:
    """What the directory holds. `image_shape` is (channels, height, width) where the configs say it.

    `labels` is None, and no names are read, where the family's labels come from the registered sets; `label_names` is
    None, too, when the config names none of its own.
    """

    class_name: str
    labels: int | None
    label_names: list[str] | None
    image_shape: Shape | None
    tensors: int
    bytes: int


def unpack_model(archive: BinaryIO, target: Path, limits: Limits = MODEL_LIMITS) -> None:
    """Write an uploaded directory's files to the new folder `target`, a single top folder stripped; on any failure
    `target` is gone. The files are unchecked but for their names: `inspect_directory` comes next."""
    target.mkdir(mode=0o700)
    try:
        for member in members(archive, limits):
            _unpack(member, target)
        _strip_top_folder(target)
    except BaseException:  # an interrupt must not leave an upload behind either
        shutil.rmtree(target)
        raise


def inspect_directory(directory: Path, family: Family, family_name: str) -> DirectoryFacts:
    """Check a model directory against its family; Refused names the file or tensor and the rule."""
    folders = read_folders(directory, family.files)
    for folder in folders.values():
        check_settings(folder, family.files)
    find = _pipeline if family.files.components else _plain
    class_name, networks = find(folders, family, family_name)
    tensors = sum(len(lora_tensors(folder)) for folder in folders.values())
    known = family.labels_from == "weights"
    names = _label_names(networks[""]) if known and family.library == "transformers" else None
    images: list[Shape | None] = []
    labels = 0
    for folder_name, network in networks.items():
        found = network_tensors(folders[folder_name], WEIGHTS[network.library])
        expected = _expected(network, folders[folder_name], len(names) if names else None, known)
        _compare(expected, {name: tensor.shape for name, tensor in found.items()}, folders[folder_name])
        tensors, labels = tensors + len(found), labels + expected.labels
        images.append(expected.image)
    default = [f"LABEL_{number}" for number in range(labels)]
    return DirectoryFacts(
        class_name=class_name,
        labels=labels if known else None,
        label_names=None if names == default else names,
        image_shape=images[0] if len(images) == 1 else None,
        tensors=tensors,
        bytes=sum(path.stat().st_size for folder in folders.values() for path in folder.files.values()),
    )


def _unpack(member: Member, target: Path) -> None:
    path = PurePosixPath(member.name)
    check_path(path, member.label)
    try:
        (target / path.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        with (target / path).open("xb") as file:
            file.writelines(member.pieces())
    except (FileExistsError, IsADirectoryError, NotADirectoryError):
        raise file_refused(member.label, "A file and a folder have the same name.") from None


def _strip_top_folder(target: Path) -> None:
    """The only thing in the archive is a folder, or nothing lies deeper than a component's folder."""
    inside = list(target.iterdir())
    if len(inside) == 1 and inside[0].is_dir():
        inside[0].rename(target / ".unpacked")  # no entry has such a name, so nothing inside it is in the way
        for path in (target / ".unpacked").iterdir():
            path.rename(target / path.name)
        (target / ".unpacked").rmdir()


def _plain(folders: Mapping[str, Folder], family: Family, family_name: str) -> tuple[str, dict[str, "_Network"]]:
    """One network in one folder, with the scheduler and the tokenizer that its family needs beside it."""
    folder, allowed = folders[""], family.files
    _need(folder, "config.json", "The directory has no config.json.")
    declared = network_class(folder, family.library, family.classes, allowed, family_name)
    if allowed.schedulers:
        _need(folder, SCHEDULER, "A diffusion model needs its noise schedule beside config.json.")
    if allowed.tokenizers and not {"tokenizer.json", "vocab.json", *SENTENCEPIECE} & folder.files.keys():
        raise file_refused("tokenizer.json", "A network that reads words needs its tokenizer beside config.json.")
    check_companions(folder, allowed.schedulers, allowed.tokenizers, family_name)
    return declared, {"": _Network(declared, family.library, folder.configs["config.json"])}


def _pipeline(folders: Mapping[str, Folder], family: Family, family_name: str) -> tuple[str, dict[str, "_Network"]]:
    """A folder per component, all named by the index; the networks among them are held to their own configs."""
    _need(folders[""], PIPELINE, f"A pipeline has a {PIPELINE}.")
    index = folders[""].configs[PIPELINE]
    networks = {}
    for name, declared in check_components(index, folders, family, family_name).items():
        folder, listed = folders[name], family.files.components[name]
        if name == "scheduler":
            _need(folder, SCHEDULER, "A scheduler is its configuration.")
            check_companions(folder, (declared,), (), family_name)
        elif name.startswith("tokenizer"):
            check_companions(folder, (), listed, family_name)
        elif name.startswith("feature_extractor"):
            check_companions(folder, (), (), family_name)
        else:
            _need(folder, "config.json", "A network has a config.json.")
            library = "diffusers" if name in DIFFUSERS_PARTS else "transformers"
            network_class(folder, library, (declared,), family.files, family_name)
            check_companions(folder, (), (), family_name)
            networks[name] = _Network(declared, library, folder.configs["config.json"])
    return str(index["_class_name"]), networks


@dataclass(frozen=True)
class _Network:
    class_name: str
    library: str
    config: Mapping[str, Any]


def _need(folder: Folder, file: str, rule: str) -> None:
    if file not in folder.files:
        raise file_refused(folder.shown(file), rule)


def _label_names(network: _Network) -> list[str]:
    """The labels in order; the libraries take two when a config names none."""
    named = network.config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(named, dict) or len(named) < 2 or set(named) != {str(number) for number in range(len(named))}:
        raise Refused(
            "config-value",
            "config.json: id2label",
            "`id2label` must number two or more labels 0, 1, ... without gaps.",
            "Register the config that belongs to the weights.",
        )
    return [str(named[str(number)]) for number in range(len(named))]


def _expected(network: _Network, folder: Folder, labels: int | None, labelled: bool) -> Anchors:
    try:
        return anchors(
            network.class_name, network.config, folder.configs.get("preprocessor_config.json", {}), labels, labelled
        )
    except Refused as refused:
        raise Refused(refused.code, folder.shown(str(refused.field)), refused.rule, refused.remedy) from None


def _compare(expected: Anchors, shapes: Mapping[str, Shape], folder: Folder) -> None:
    if wrong := mismatches(expected, shapes):
        (where, what), more = wrong[0], len(wrong) - 1
        raise Refused(
            "config-mismatch",
            f"{folder.shown('config.json')}: {where}",
            f"{what}" + (f" (and {more} more differ)." if more else "."),
            "Register the config that belongs to the weights.",
        )
