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
from app.catalog import FAMILIES, Family
from app.errors import JobError
from app.privacy.images import read_index, read_set
from app.privacy.sealing import unseal
from app.storage import BlobMissing, LocalBlobs
from worker import by_name
from worker.families import Captions, Samples

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
        self._remembered: OrderedDict[str, Any] = OrderedDict()

    def get(self, key: tuple[str, str], make: Callable[[Path], Loaded]) -> Loaded:
        if key not in self._held or not self._held[key].directory.is_dir():
            self._held[key] = make(self._folder / key[0])
        self._held.move_to_end(key)
        while len(self._held) > KEEP:
            _, oldest = self._held.popitem(last=False)
            shutil.rmtree(oldest.directory, ignore_errors=True)
        return self._held[key]

    def remember(self, context: str) -> Callable[[str, Callable[[], Any]], Any]:
        """What methods call with a name and how to make the result, when an earlier job may have made it already.

        `context` is a digest of all that the results depend on; a few of the newest are kept, in memory only.
        """

        def remembered(name: str, make: Callable[[], Any]) -> Any:
            key = f"{context}/{name}"
            if key not in self._remembered:
                self._remembered[key] = make()
            self._remembered.move_to_end(key)
            while len(self._remembered) > KEEP:
                self._remembered.popitem(last=False)
            return self._remembered[key]

        return remembered


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
    raw = {name: _open(message, blobs) for name, message in specification["sets"].items()}
    captions = _captions(specification, raw)
    if FAMILIES[specification["base"]["family"]].texts:
        for each in (base, loaded.get("reference")):
            if each is not None:
                each.family.caption(each.network, captions)
    sets = {
        name: _samples(name, message, raw[name], base, captions, FAMILIES[specification["base"]["family"]])
        for name, message in specification["sets"].items()
    }
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


def _open(message: dict[str, Any], blobs: LocalBlobs) -> bytes:
    """A set's bytes; a sealed one is opened in memory and never written out."""
    with blobs.open(message["blob"]) as file:
        raw = file.read()
    if message["key"]:
        raw = unseal(base64.b64decode(message["key"]), raw, message["context"].encode())
    return raw


def _captions(specification: dict[str, Any], raw: dict[str, bytes]) -> Captions:
    """The labels' prompts, and the own texts of all samples that this job may show to the network."""
    names = tuple(specification["names"])
    prompt = str(specification["evaluation"].get("prompt", "{}"))
    known = {(prompt.replace("{}", name), number): None for number, name in enumerate(names)}
    for name, message in specification["sets"].items():
        for sample in read_index(raw[name])["samples"]:
            if sample.get("text"):
                known.setdefault((sample["text"], message["labels"][sample["label"]]))
    return Captions(names, tuple(text for text, _ in known), tuple(label for _, label in known))


def _samples(
    name: str, message: dict[str, Any], raw: bytes, base: Loaded, captions: Captions, family: Family
) -> Samples:
    """Decode the chosen samples; what real images a generator is compared with stays pixels."""
    positions = message["positions"]
    index, images = read_set(raw, positions)
    chosen = index["samples"] if positions is None else [index["samples"][at] for at in positions]
    prepare = base.family.pictures if name == "test" and family.answers == "generator" else base.family.prepare
    x = prepare(list(images), base.directory, base.network)
    labels = [message["labels"][sample["label"]] for sample in chosen]
    if family.texts and name != "test":
        position = {pair: at for at, pair in enumerate(zip(captions.texts, captions.labels, strict=True))}
        labels = [
            position[sample["text"], label] if sample.get("text") else label
            for sample, label in zip(chosen, labels, strict=True)
        ]
    return Samples(x, torch.tensor(labels, dtype=torch.int64).to(x.device))
