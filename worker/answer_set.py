"""Answer sets: what one network answered, by label, kept sealed so that no later job asks it again.

A row follows from the network, the judge, the settings and the label's own i-th seed, and from nothing else of the job: not
from what is forgotten, and not from how many images are asked for. So a set serves every job with the same base, and a job
that asks for more draws the rest alone. Its digest covers all that a row depends on.

Sets are kept in the store only, never in memory between jobs: their key is destroyed when their version is superseded,
and a copy elsewhere would outlive it. Labels that only one request names are not kept at all.
"""

import base64
import hashlib
import io
import json
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from app.privacy.sealing import SealBroken, seal, unseal
from app.storage import BlobMissing, LocalBlobs
from worker.load import Material

KEPT = 1  # rises with every change of what a row holds or of how it is drawn
EMPTY_PROMPT = -1  # stands where others have their label
PROMPT_LIST = -2  # and so does the evaluation's list of prompts
WITHOUT = (  # settings that no row depends on
    "forget_samples",
    "samples_per_label",
    "images_per_prompt",
    "detector_labels",
    "detector_threshold",
    "attacks",
)
UNREADABLE = (BlobMissing, SealBroken, zipfile.BadZipFile, EOFError, KeyError, OSError, ValueError)


@dataclass(eq=False)
class AnswerSet:
    """Row i of a label's arrays is about the image from its i-th seed; an array may hold fewer rows than others."""

    digest: str | None = None
    rows: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # label -> name -> (n, ...)
    drawn: int = 0
    reused: int = 0

    def count(self, label: int) -> int:
        return max((len(array) for array in self.rows.get(label, {}).values()), default=0)

    def add(self, label: int, arrays: Mapping[str, np.ndarray]) -> None:
        held = self.rows.setdefault(label, {})
        for name, array in arrays.items():
            held[name] = np.concatenate([held[name], array]) if name in held else array

    def names(self, labels: Collection[int]) -> set[str]:
        """Of the arrays that each of these labels has."""
        return set.intersection(*(set(self.rows[label]) for label in labels)) if labels else set()

    def first(self, counts: Mapping[int, int], name: str) -> np.ndarray:
        """The array of the first so many images of each label, in the labels' order."""
        return np.concatenate([self.rows[label][name][:count] for label, count in counts.items()])

    def described(self) -> dict[str, Any]:
        return {"digest": self.digest, "drawn": self.drawn, "reused": self.reused}


def open_sets(specification: Mapping[str, Any], material: Material, blobs: LocalBlobs) -> dict[str, AnswerSet]:
    """One set for each network that the job asks; no set where answers of this kind of network are not kept."""
    digests = {"base": material.base.digest, "reference": material.reference.digest if material.reference else ""}
    return {
        side: opened(place, blobs, set_digest(digests[side], specification, material))
        if side in digests
        else AnswerSet()
        for side, place in specification["answers"].items()
    }


def set_digest(network: str, specification: Mapping[str, Any], material: Material) -> str:
    settings = {name: value for name, value in specification["evaluation"].items() if name not in WITHOUT}
    device = next(material.base.network.parameters()).device
    depends = {
        "kept": KEPT,
        "network": network,
        "judge": material.judge.digest if material.judge else None,
        "evaluators": {part: each.digest for part, each in material.evaluators.items()},
        "backbones": {name: each.digest for name, each in material.backbones.items()},
        "settings": settings,
        "labels": specification["labels"],
        "libraries": {name: version(name) for name in ("diffusers", "torch", "transformers")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def opened(place: Mapping[str, str], blobs: LocalBlobs, digest: str) -> AnswerSet:
    """What is kept under this digest; an empty set where nothing is, or what is there does not open or is another's."""
    try:
        with blobs.open(place["blob"]) as file:
            raw = unseal(base64.b64decode(place["key"]), file.read(), place["blob"].encode())
        return read(raw, digest)
    except UNREADABLE:
        return AnswerSet(digest)


def read(raw: bytes, digest: str) -> AnswerSet:
    found = AnswerSet(digest)
    with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
        if str(archive["digest"]) == digest:
            for path in set(archive.files) - {"digest"}:
                label, name = path.split("/")
                found.add(int(label), {name: archive[path]})
    return found


def seal_sets(
    specification: Mapping[str, Any],
    material: Material,
    sets: Mapping[str, AnswerSet],
    version_digest: str,
    passed: bool,
) -> dict[str, str]:
    """Write the sets that have grown into scratch; paths by side. `version_digest` is the new version's.

    Not those of a network that no later job asks: a version that passed supersedes its base, one that failed is no base.
    """
    paths = {}
    for side, each in sets.items():
        if side == ("base" if passed else "unlearned") or not each.drawn:
            continue
        digest = each.digest or set_digest(version_digest, specification, material)
        path = material.scratch / f"answers-{side}"
        path.write_bytes(sealed(each, digest, specification["answers"][side], len(specification["labels"])))
        paths[side] = str(path)
    return paths


def sealed(answers: AnswerSet, digest: str, place: Mapping[str, str], labels: int) -> bytes:
    """Only the model's own labels, the empty prompt and the list of prompts: what a request alone names must not outlive the request."""
    lasting = {label: arrays for label, arrays in answers.rows.items() if label < labels}
    flat: dict[str, Any] = {
        f"{label}/{name}": array for label, arrays in lasting.items() for name, array in arrays.items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, digest=np.array(digest), **flat)
    return seal(base64.b64decode(place["key"]), buffer.getvalue(), place["blob"].encode())
