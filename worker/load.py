"""From blobs to tensors: the networks and the sets of one job. Networks stay warm between jobs, by digest."""

import base64
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from app import weights
from app.errors import JobError
from app.privacy.images import read_set
from app.privacy.sealing import unseal
from app.storage import BlobMissing, LocalBlobs
from worker import by_name
from worker.families import Samples

KEEP = 4  # networks that a runner holds between jobs


@dataclass(frozen=True)
class Loaded:
    """A registered checkpoint in memory. Shared between jobs: copy the network before changing it."""

    network: nn.Module
    directory: Path
    manifest: weights.Manifest
    digest: str
    family: ModuleType


@dataclass(frozen=True)
class Material:
    """All that a job works with."""

    base: Loaded
    reference: Loaded | None
    judge: Loaded | None
    forget: Samples
    retain: Samples
    test: Samples | None
    scratch: Path


class Warm:
    """The networks of earlier jobs, newest last, each with its directory in the private `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: OrderedDict[tuple[str, str], Loaded] = OrderedDict()

    def get(self, key: tuple[str, str], make: Callable[[Path], Loaded]) -> Loaded:
        if key not in self._held or not self._held[key].directory.is_dir():
            self._held[key] = make(self._folder / key[0])
        self._held.move_to_end(key)
        while len(self._held) > KEEP:
            _, oldest = self._held.popitem(last=False)
            shutil.rmtree(oldest.directory, ignore_errors=True)
        return self._held[key]


def load(
    specification: dict[str, Any],
    warm: Warm,
    blobs: LocalBlobs,
    device: torch.device,
) -> Material:
    scratch = Path(specification["scratch"])
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    loaded = {
        name: _network(specification[name], warm, blobs, device)
        for name in ("base", "reference", "judge")
        if specification.get(name)
    }
    base = loaded["base"]
    sets = {name: _samples(message, blobs, base) for name, message in specification["sets"].items()}
    return Material(
        base=base,
        reference=loaded.get("reference"),
        judge=loaded.get("judge"),
        forget=sets["forget"],
        retain=sets["retain"],
        test=sets.get("test"),
        scratch=scratch,
    )


def pick_device(wanted: str) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _network(
    part: dict[str, Any],
    warm: Warm,
    blobs: LocalBlobs,
    device: torch.device,
) -> Loaded:
    try:
        with blobs.open(part["manifest"]) as file:
            manifest = weights.decode(file.read())

        def make(directory: Path) -> Loaded:
            module = by_name.family(part["family"])
            weights.materialise(manifest, blobs, directory)
            return Loaded(module.load(directory, device), directory, manifest, part["digest"], module)

        warm_one = warm.get((part["digest"], str(device)), make)
    except (BlobMissing, weights.CheckpointDamaged) as error:
        raise JobError("checkpoint_damaged", "A stored checkpoint is incomplete or altered.") from error
    except ValueError as error:
        raise JobError("checkpoint_mismatch", str(error)) from error
    return replace(warm_one, manifest=manifest)  # equal bytes may lie in other packs


def _samples(message: dict[str, Any], blobs: LocalBlobs, base: Loaded) -> Samples:
    """Decode the chosen samples in memory; a sealed set is never written out."""
    with blobs.open(message["blob"]) as file:
        raw = file.read()
    if message["key"]:
        raw = unseal(base64.b64decode(message["key"]), raw, message["context"].encode())
    positions = message["positions"]
    index, images = read_set(raw, positions)
    chosen = index["samples"] if positions is None else [index["samples"][at] for at in positions]
    x = base.family.prepare(list(images), base.directory, base.network)
    y = torch.tensor([message["labels"][sample["label"]] for sample in chosen], dtype=torch.int64)
    return Samples(x, y.to(x.device))
