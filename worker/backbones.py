"""Backbones: famous networks on weights that the operator gives (LETHE_INCEPTION, LETHE_LPIPS), opened where a model asks.

A folder holds model.safetensors; its digest is that file's SHA-256, and stands in the report. Nothing is fetched.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from app.errors import JobError
from worker import by_name

WEIGHTS = "model.safetensors"
Remember = Callable[[str, Callable[[], "Backbone"]], "Backbone"]


@dataclass(frozen=True)
class Backbone:
    embed: Callable[[np.ndarray], np.ndarray]  # uint8 images (n, H, W, C) -> (n, d)
    digest: str


def open_backbones(folders: Mapping[str, str], device: torch.device, remember: Remember) -> dict[str, Backbone]:
    """By name; `folders` holds "" where this worker was given none. Equal weights stay open between jobs."""
    found = {}
    for name, folder in folders.items():
        file = Path(folder) / WEIGHTS
        if not folder or not file.is_file():
            variable = f"LETHE_{name.upper()}"
            raise JobError(
                "evaluator_missing", f"This worker has no {WEIGHTS} of {name}: set {variable} to its folder."
            )
        digest = digest_of(file)
        found[name] = remember(f"{name}/{digest}/{device}", partial(opened, name, file, digest, device))
    return found


def opened(name: str, file: Path, digest: str, device: torch.device) -> Backbone:
    module = installed(name)
    try:
        network = module.load(load_file(file), device)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise JobError("evaluator_mismatch", f"{WEIGHTS} does not hold the weights of {name}.") from error
    return Backbone(partial(module.embed, network), digest)


def installed(name: str) -> ModuleType:
    try:
        return by_name.evaluator(name)
    except (ImportError, OSError, RuntimeError) as error:  # such as a torchvision that was built for another torch
        remedy = "pip install 'lethe[evaluators]', with the torchvision that belongs to this torch."
        raise JobError("evaluator_not_installed", f"What {name} needs does not import here: {remedy}") from error


def digest_of(file: Path) -> str:
    with file.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
