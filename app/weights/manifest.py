"""What a checkpoint is made of: files, their tensors, and in which packs the bytes of each lie.

A manifest is immutable and complete by itself: with it and the packs it names, every byte can be restored. It carries
no bytes of weights. In memory it is plain frozen records; stored, it is compressed JSON with the layers as columns,
because a version of a network with hundreds of tensors must not cost more to describe than to keep.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from app.storage import checked_name
from app.weights.header import DTYPE_BYTES

VERSION = 1


@dataclass(frozen=True)
class Pack:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Segment:
    """A run of bytes in a pack."""

    pack: str
    offset: int
    length: int


@dataclass(frozen=True)
class Layer:
    """One step of a tensor's history: its bytes in full, or the changed values followed by a bit mask of where.

    `changed` counts the elements that differ from the version before; for a tensor without one, all of them.
    """

    pack: str
    offset: int
    changed: int
    full: bool


@dataclass(frozen=True)
class Tensor:
    """`digest` is BLAKE2b-128 of the tensor's bytes; `layers` apply in order, and the first is full."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    layers: tuple[Layer, ...]

    @property
    def itemsize(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize

    @property
    def mask_bytes(self) -> int:
        return (self.elements + 7) // 8

    def same_content(self, other: "Tensor") -> bool:
        return (self.dtype, self.shape, self.digest) == (other.dtype, other.shape, other.digest)

    def stored_bytes(self, layer: Layer) -> int:
        return self.nbytes if layer.full else layer.changed * self.itemsize + self.mask_bytes


@dataclass(frozen=True)
class File:
    """`segment` is the whole file, or for safetensors its header, after which the tensors follow in order."""

    path: str
    size: int
    sha256: str
    segment: Segment
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Manifest:
    """Packs from the oldest to the newest; a tensor's layers follow that order, at most one from each pack."""

    packs: tuple[Pack, ...]
    files: tuple[File, ...]

    def file(self, path: str) -> File:
        for file in self.files:
            if file.path == path:
                return file
        raise LookupError(f"the checkpoint has no file {path!r}")

    def tensor(self, path: str, name: str) -> Tensor:
        for tensor in self.file(path).tensors:
            if tensor.name == name:
                return tensor
        raise LookupError(f"{path} has no tensor {name!r}")

    def tensors(self) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """Every tensor with its key (path of the file, name), in a fixed order."""
        for file in self.files:
            for tensor in file.tensors:
                yield (file.path, tensor.name), tensor


def packs_of(manifest: Manifest) -> set[str]:
    """Names of the packs without which the checkpoint cannot be restored."""
    named = {file.segment.pack for file in manifest.files}
    return named | {layer.pack for _, tensor in manifest.tensors() for layer in tensor.layers}


def digest(manifest: Manifest) -> str:
    """SHA-256 of what the checkpoint contains, wherever the bytes lie: equal content, equal digest, also repacked."""
    content = {file.path: [file.size, file.sha256] for file in manifest.files}
    return hashlib.sha256(_compact(content)).hexdigest()


def encode(manifest: Manifest) -> bytes:
    """The form to store: compressed JSON, the same bytes for the same manifest."""
    return gzip.compress(_compact(to_json(manifest)), compresslevel=9, mtime=0)


def decode(stored: bytes) -> Manifest:
    """The inverse of `encode`; ValueError when the bytes are damaged or of a version that is not known."""
    try:
        value = json.loads(gzip.decompress(stored))
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"the manifest is damaged: {error}") from error
    return from_json(value)


def to_json(manifest: Manifest) -> dict[str, Any]:
    number = {pack.name: index for index, pack in enumerate(manifest.packs)}
    files = [
        {
            "path": file.path,
            "size": file.size,
            "sha256": file.sha256,
            "segment": [number[file.segment.pack], file.segment.offset, file.segment.length],
            "tensors": [[tensor.name, tensor.dtype, list(tensor.shape), tensor.digest] for tensor in file.tensors],
        }
        for file in manifest.files
    ]
    packs = [[pack.name, pack.size, pack.sha256] for pack in manifest.packs]
    return {"version": VERSION, "packs": packs, "files": files, "layers": _columns(manifest)}


def from_json(value: Any) -> Manifest:
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise ValueError(f"a manifest of version {VERSION} is expected")
    try:
        packs = tuple(Pack(checked_name(name), int(size), str(sha256)) for name, size, sha256 in value["packs"])
        bare = [[_bare_tensor(entry) for entry in file["tensors"]] for file in value["files"]]
        layers = _layers(value["layers"], packs, [tensor for tensors in bare for tensor in tensors])
        files = []
        for entry, tensors in zip(value["files"], bare, strict=True):
            pack, offset, length = entry["segment"]
            whole = tuple(Tensor(t.name, t.dtype, t.shape, t.digest, tuple(next(layers))) for t in tensors)
            segment = Segment(packs[pack].name, int(offset), int(length))
            files.append(File(checked_name(entry["path"]), int(entry["size"]), str(entry["sha256"]), segment, whole))
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the manifest is malformed: {error!r}") from error
    return Manifest(packs, tuple(files))


def _bare_tensor(entry: list[Any]) -> Tensor:
    name, dtype, shape, tensor_digest = entry
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"the manifest names an unknown dtype {dtype!r}")
    return Tensor(str(name), dtype, tuple(int(size) for size in shape), str(tensor_digest), ())


def _columns(manifest: Manifest) -> list[list[list[int]]]:
    """Per pack four columns in the order of its bytes: steps of tensor and of offset, changed, full."""
    rows: dict[str, list[tuple[int, int, Tensor, Layer]]] = defaultdict(list)
    for number, (_, tensor) in enumerate(manifest.tensors()):
        for layer in tensor.layers:
            rows[layer.pack].append((layer.offset, number, tensor, layer))
    columns = []
    for pack in manifest.packs:
        steps: list[list[int]] = [[], [], [], []]
        end = last = 0
        for offset, number, tensor, layer in sorted(rows[pack.name], key=lambda row: row[:2]):
            row = (number - last, offset - end, layer.changed, int(layer.full))
            for column, figure in zip(steps, row, strict=True):
                column.append(figure)
            end, last = offset + tensor.stored_bytes(layer), number
        columns.append(steps)
    return columns


def _layers(columns: list[list[list[int]]], packs: tuple[Pack, ...], tensors: list[Tensor]) -> Iterator[list[Layer]]:
    """The layers of each tensor in turn; the inverse of `_columns`."""
    layers: list[list[Layer]] = [[] for _ in tensors]
    for pack, steps in zip(packs, columns, strict=True):
        end = number = 0
        for step, gap, changed, full in zip(*steps, strict=True):
            number += step
            layer = Layer(pack.name, end + gap, changed, bool(full))
            layers[number].append(layer)
            end = layer.offset + tensors[number].stored_bytes(layer)
    if not all(chain and chain[0].full for chain in layers):
        raise ValueError("the manifest has a tensor whose bytes do not begin in full")
    return iter(layers)


def _compact(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")
