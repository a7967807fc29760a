"""Weights: a checkpoint is a manifest and at most one pack with what its version changed.

`pack_base` and `pack_delta` take a directory apart, `open_range` and `materialise` put the same bytes together again,
byte for byte what `save_pretrained` wrote. No torch: bytes are the truth here, and their meaning belongs to the worker.
Only safetensors is read or written; a pickle is refused by name and by content.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from app.storage import Blobs, checked_name
from app.weights.manifest import Manifest, Tensor, decode, digest, encode, from_json, packs_of, to_json
from app.weights.pack import DescribedFile, describe, pack_base, pack_delta
from app.weights.restore import CheckpointDamaged, Elements, blocks, checked, stitch, unsigned

__all__ = [
    "Changes", "CheckpointDamaged", "DescribedFile", "Manifest", "Tensor", "changes", "decode", "describe", "digest",
    "encode", "from_json", "materialise", "open_range", "pack_base", "pack_delta", "packs_of", "read_tensor", "to_json",
]  # fmt: skip


class Changes(TypedDict):
    tensors_total: int
    tensors_changed: int
    elements_total: int
    elements_changed: int
    bytes_added: int


def open_range(manifest: Manifest, blobs: Blobs, path: str, start: int, end: int) -> Iterator[bytes]:
    """Bytes [start, end) of a file in chunks of at most 1 MiB; LookupError or ValueError before the first chunk."""
    file = manifest.file(path)
    if not 0 <= start <= end <= file.size:
        raise ValueError(f"{path}: bytes {start} to {end} are outside its {file.size} bytes")
    return stitch(file, blobs, start, end)


def materialise(manifest: Manifest, blobs: Blobs, target_dir: Path) -> None:
    """Write the whole directory, each file checked by its SHA-256; a file that fails is not left behind."""
    for file in manifest.files:
        target = target_dir / checked_name(file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".partial-{target.name}")
        try:
            found = hashlib.sha256()
            with partial.open("wb") as stream:
                for chunk in stitch(file, blobs, 0, file.size):
                    found.update(chunk)
                    stream.write(chunk)
            if found.hexdigest() != file.sha256:
                raise CheckpointDamaged(f"{file.path}: the stored bytes do not have the SHA-256 of the manifest")
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def read_tensor(manifest: Manifest, blobs: Blobs, path: str, name: str) -> Elements:
    """One tensor, checked by its digest, as unsigned integers of its dtype's width in its shape."""
    tensor = manifest.tensor(path, name)
    whole = np.empty(tensor.elements, unsigned(tensor.itemsize))
    filled = 0
    for block in checked(tensor, blocks(tensor, blobs, path, 0, tensor.elements), path):
        whole[filled : filled + len(block)] = block
        filled += len(block)
    return whole.reshape(tensor.shape)


def changes(manifest: Manifest, parent: Manifest) -> Changes:
    """How much `manifest` differs from `parent`, the version it was packed against; counted, not estimated.

    Against an older ancestor `elements_changed` is an upper bound: an element that changed twice counts twice.
    """
    before = dict(parent.tensors())
    inherited = packs_of(parent)
    tensors_changed = elements_changed = 0
    for key, tensor in manifest.tensors():
        if key not in before or not tensor.same_content(before[key]):
            tensors_changed += 1
            new = sum(layer.changed for layer in tensor.layers if layer.pack not in inherited)
            elements_changed += min(new, tensor.elements)
    return Changes(
        tensors_total=sum(1 for _ in manifest.tensors()),
        tensors_changed=tensors_changed,
        elements_total=sum(tensor.elements for _, tensor in manifest.tensors()),
        elements_changed=elements_changed,
        bytes_added=sum(pack.size for pack in manifest.packs if pack.name not in inherited),
    )
