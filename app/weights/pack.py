"""Pack: from a directory that `save_pretrained` wrote to a manifest and the one pack with what its parent has not.

A tensor that did not change costs nothing. One that did is stored in full, or as its changed values followed by a bit
mask of where they go, whichever is smaller. Elements are compared as unsigned integers of the dtype's width, so the
result is exact for every dtype, NaNs and negative zeros included. Directory, parent and pack are streamed by blocks;
the largest thing in memory is one tensor's mask.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from app.storage import Blobs, checked_name
from app.weights.header import Header, HeaderTensor, is_safetensors, read_header, refuse_pickle
from app.weights.manifest import File, Layer, Manifest, Pack, Segment, Tensor, packs_of
from app.weights.restore import BLOCK, Elements, blocks, checked, segment_chunks, unsigned

# Restoring reads every layer of a tensor, so a chain is cut here: the next change is stored in full, which then is the
# one exception to "whichever is smaller". `lethe retire` folds what only retired versions had.
LONGEST_CHAIN = 32


@dataclass(frozen=True)
class DescribedFile:
    """A file of a directory to pack or to register; `header` only for safetensors."""

    path: str
    size: int
    header: Header | None


def describe(directory: Path) -> tuple[DescribedFile, ...]:
    """Check every file of a directory of weights; ValueError names the file and the rule that it breaks."""
    described = []
    for path in sorted(directory.rglob("*")):
        shown = path.relative_to(directory).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{shown}: only plain files and folders are accepted")
        if path.is_file():
            if not is_safetensors(shown):
                refuse_pickle(path, shown)
            header = read_header(path, shown) if is_safetensors(shown) else None
            described.append(DescribedFile(checked_name(shown), path.stat().st_size, header))
    if not any(file.header for file in described):
        raise ValueError("the directory has no .safetensors file")
    return tuple(described)


def pack_base(directory: Path, pack_path: Path, pack_name: str) -> Manifest:
    """Write all bytes of `directory` to the file `pack_path`, to be stored as the blob `pack_name`."""
    return _pack(None, directory, pack_path, pack_name, LONGEST_CHAIN)


def pack_delta(
    parent: Manifest,
    blobs: Blobs,
    directory: Path,
    pack_path: Path,
    pack_name: str,
    *,
    longest_chain: int = LONGEST_CHAIN,
) -> Manifest:
    """Write to `pack_path` what `directory` has and `parent` has not.

    Where nothing changed there is nothing to store: no file is left and the manifest does not name `pack_name`.
    """
    return _pack(_Parent(parent, blobs), directory, pack_path, pack_name, longest_chain)


@dataclass(frozen=True)
class _Parent:
    manifest: Manifest
    blobs: Blobs

    def file(self, path: str) -> File | None:
        return next((file for file in self.manifest.files if file.path == path), None)


class Source(Protocol):
    """A tensor to be packed: its digest, and its blocks as often as they are asked for."""

    path: str
    digest: str

    def blocks(self) -> Iterator[Elements]: ...
    def tensor(self, layers: tuple[Layer, ...]) -> Tensor: ...


class Writer:
    """The pack while it is written."""

    def __init__(self, stream: BinaryIO, name: str, longest_chain: int) -> None:
        self.name = name
        self.longest_chain = longest_chain
        self.offset = 0
        self._stream = stream

    def write(self, data: bytes | Elements) -> None:
        raw = data if isinstance(data, bytes) else data.view(np.uint8).data
        self._stream.write(raw)
        self.offset += len(raw)

    def rewind(self, offset: int) -> None:
        """Forget what was written after `offset`."""
        self._stream.seek(offset)
        self._stream.truncate()
        self.offset = offset


class _Source:
    """A tensor in the directory."""

    def __init__(self, stream: BinaryIO, declared: HeaderTensor, path: str) -> None:
        self.declared = declared
        self.path = path
        self._stream = stream
        found = hashlib.blake2b(digest_size=16)
        for block in self.blocks():
            found.update(block.data)
        self.digest = found.hexdigest()

    def blocks(self) -> Iterator[Elements]:
        for start in range(0, self.declared.nbytes, BLOCK):
            length = min(BLOCK, self.declared.nbytes - start)
            self._stream.seek(self.declared.start + start)
            data = self._stream.read(length)
            if len(data) != length:
                raise ValueError(f"{self.path}: the file became shorter while it was packed")
            yield np.frombuffer(data, unsigned(self.declared.itemsize))

    def tensor(self, layers: tuple[Layer, ...]) -> Tensor:
        return Tensor(self.declared.name, self.declared.dtype, self.declared.shape, self.digest, layers)


def _pack(parent: _Parent | None, directory: Path, pack_path: Path, pack_name: str, longest_chain: int) -> Manifest:
    described = describe(directory)
    inherited = parent.manifest.packs if parent else ()
    if checked_name(pack_name) in {pack.name for pack in inherited}:
        raise ValueError(f"{pack_name}: the parent has a pack of this name")
    try:
        with pack_path.open("wb") as stream:
            pack = Writer(stream, pack_name, longest_chain)
            files = tuple(_pack_file(parent, directory, found, pack) for found in described)
        needed = packs_of(Manifest((), files))
        with pack_path.open("rb") as stream:
            written = Pack(pack_name, pack.offset, hashlib.file_digest(stream, "sha256").hexdigest())
    except BaseException:  # an interrupt must not leave half a pack either
        pack_path.unlink(missing_ok=True)
        raise
    if pack_name not in needed:
        pack_path.unlink()
    return Manifest(tuple(known for known in (*inherited, written) if known.name in needed), files)


def _pack_file(parent: _Parent | None, directory: Path, found: DescribedFile, pack: Writer) -> File:
    before = parent.file(found.path) if parent else None
    with (directory / found.path).open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if before and (before.size, before.sha256) == (found.size, sha256):
            return before
        segment = _pack_opening(parent, before, stream, found, pack)
        known = {tensor.name: tensor for tensor in before.tensors} if before else {}
        tensors = []
        for declared in found.header.tensors if found.header else ():
            source = _Source(stream, declared, found.path)
            old = known.get(declared.name)
            if parent and old and (old.dtype, old.shape) == (declared.dtype, declared.shape):
                tensors.append(pack_against(old, parent.blobs, source, pack))
            else:
                tensors.append(source.tensor((pack_full(source, pack, declared.elements),)))
    return File(found.path, found.size, sha256, segment, tuple(tensors))


def _pack_opening(
    parent: _Parent | None, before: File | None, stream: BinaryIO, found: DescribedFile, pack: Writer
) -> Segment:
    """What precedes the first tensor, the whole file if it has none; the parent's segment where that is the same."""
    length = found.header.length if found.header else found.size
    stream.seek(0)
    if parent and before and before.segment.length == length:
        then = segment_chunks(before.segment, parent.blobs, before.path, 0, length)
        if all(stream.read(len(chunk)) == chunk for chunk in then):
            return before.segment
        stream.seek(0)
    start = pack.offset
    while left := start + length - pack.offset:
        chunk = stream.read(min(BLOCK, left))
        if not chunk:
            raise ValueError(f"{found.path}: the file became shorter while it was packed")
        pack.write(chunk)
    return Segment(pack.name, start, length)


def pack_full(source: Source, pack: Writer, changed: int) -> Layer:
    start = pack.offset
    for block in source.blocks():
        pack.write(block)
    return Layer(pack.name, start, changed, full=True)


def pack_against(old: Tensor, blobs: Blobs, source: Source, pack: Writer) -> Tensor:
    """The tensor as the parent has it, plus a layer if it changed: values and mask, or in full if that is smaller."""
    if source.digest == old.digest:
        return source.tensor(old.layers)
    start, masks, changed = pack.offset, [], 0
    room = old.nbytes - old.mask_bytes if len(old.layers) < pack.longest_chain else 0
    then_blocks = checked(old, blocks(old, blobs, source.path, 0, old.elements), source.path)
    for now, then in zip(source.blocks(), then_blocks, strict=True):
        differs = now != then
        changed += int(np.count_nonzero(differs))
        if changed * old.itemsize < room:
            pack.write(now[differs])
            masks.append(np.packbits(differs))
    if changed * old.itemsize < room:
        for mask in masks:
            pack.write(mask)
        return source.tensor((*old.layers, Layer(pack.name, start, changed, full=False)))
    pack.rewind(start)
    return source.tensor((pack_full(source, pack, changed),))
