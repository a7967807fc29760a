"""Repack: the versions that stay, stored without the packs that go. Every file keeps its bytes.

What a plan does not keep is read from the old packs by blocks, checked by its digest, and written to one new pack for each version:
in full, or against the version that it is stored against, whichever is smaller. What was written is read back and checked
before anybody may delete what it replaces. The largest thing in memory is one tensor's mask.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.storage import Blobs
from app.weights.living import Chain, Plan, Staying, ordered
from app.weights.manifest import File, Manifest, Pack, Segment, Tensor, packs_of
from app.weights.pack import LONGEST_CHAIN, Writer, pack_against, pack_full
from app.weights.restore import CheckpointDamaged, Elements, blocks, checked, segment_chunks


@dataclass(frozen=True)
class Repacked:
    """`pack`: the new one, already in the store; None where the version needs none of its own any more."""

    number: int
    manifest: Manifest
    pack: Pack | None


class _Stored:
    """A tensor of a version in the store, as `pack_against` asks of what it packs."""

    def __init__(self, tensor: Tensor, blobs: Blobs, path: str) -> None:
        self.path, self.digest = path, tensor.digest
        self._tensor, self._blobs = tensor, blobs

    def blocks(self) -> Iterator[Elements]:
        return checked(self._tensor, blocks(self._tensor, self._blobs, self.path, 0, self._tensor.elements), self.path)

    def tensor(self, layers: Chain) -> Tensor:
        one = self._tensor
        return Tensor(one.name, one.dtype, one.shape, one.digest, layers)


def repack(planned: Plan, blobs: Blobs, scratch: Path) -> Iterator[Repacked]:
    """Each version whose manifest changes, its new pack in the store. CheckpointDamaged when old bytes are not what they were."""
    work = _Work(planned, blobs, scratch)
    for staying in planned.staying:
        found = work.version(staying)
        if found.manifest.packs != staying.manifest.packs:
            yield found


class _Work:
    def __init__(self, planned: Plan, blobs: Blobs, scratch: Path) -> None:
        self._plan, self._blobs, self._scratch = planned, blobs, scratch
        self._layers: dict[Chain, Chain] = {}
        self._segments: dict[Segment, Segment] = {}
        self._known: dict[str, Pack] = {pack.name: pack for each in planned.staying for pack in each.manifest.packs}
        self._done: dict[int, Manifest] = {}

    def version(self, staying: Staying) -> Repacked:
        path = self._scratch / "pack"
        try:
            with path.open("wb") as stream:
                writer = Writer(stream, staying.new_pack, LONGEST_CHAIN)
                files = tuple(self._file(staying, file, writer) for file in staying.manifest.files)
            with path.open("rb") as stream:
                pack = Pack(staying.new_pack, writer.offset, hashlib.file_digest(stream, "sha256").hexdigest())
            needed = packs_of(Manifest((), files))
            if pack.name in needed:
                self._blobs.put(pack.name, path)
                self._known[pack.name] = pack
        finally:
            path.unlink(missing_ok=True)
        manifest = Manifest(self._ordered(files, needed), files)
        self._check(staying.manifest, manifest)
        self._done[staying.number] = manifest
        return Repacked(staying.number, manifest, pack if pack.name in needed else None)

    def _file(self, staying: Staying, file: File, writer: Writer) -> File:
        segment = self._segment(file, writer)
        return File(
            file.path,
            file.size,
            file.sha256,
            segment,
            tuple(self._tensor(staying, file, t, writer) for t in file.tensors),
        )

    def _segment(self, file: File, writer: Writer) -> Segment:
        old = file.segment
        if old.pack not in self._plan.condemned:
            return old
        if old not in self._segments:
            start = writer.offset
            for chunk in segment_chunks(old, self._blobs, file.path, 0, old.length):
                writer.write(chunk)
            self._segments[old] = Segment(writer.name, start, old.length)
        return self._segments[old]

    def _tensor(self, staying: Staying, file: File, tensor: Tensor, writer: Writer) -> Tensor:
        chain, source = tensor.layers, _Stored(tensor, self._blobs, file.path)
        if chain in self._plan.kept:
            self._layers[chain] = chain
        elif chain in self._plan.extended:
            self._layers[chain] = (*self._layers[chain[:-1]], chain[-1])
        elif chain not in self._layers:
            before = self._before(staying, file.path, tensor)
            if before is None:
                self._layers[chain] = (pack_full(source, writer, tensor.elements),)
            else:
                self._layers[chain] = pack_against(before, self._blobs, source, writer).layers
        return source.tensor(self._layers[chain])

    def _before(self, staying: Staying, path: str, tensor: Tensor) -> Tensor | None:
        """The tensor of the version that this one is stored against, if it can be compared."""
        if staying.base is None:
            return None
        try:
            found = self._done[staying.base].tensor(path, tensor.name)
        except LookupError:
            return None
        return found if (found.dtype, found.shape) == (tensor.dtype, tensor.shape) else None

    def _ordered(self, files: tuple[File, ...], needed: set[str]) -> tuple[Pack, ...]:
        chains = [tuple(layer.pack for layer in tensor.layers) for file in files for tensor in file.tensors]
        names = ordered([*chains, *((name,) for name in sorted(needed))])
        if names is None:
            raise AssertionError("a plan has an order")
        return tuple(self._known[name] for name in names)

    def _check(self, old: Manifest, new: Manifest) -> None:
        """Read back what lies elsewhere now: each tensor by its digest, each file's opening against the old one."""
        for before, after in zip(old.files, new.files, strict=True):
            if after.segment != before.segment:
                then, now = (
                    segment_chunks(each, self._blobs, before.path, 0, each.length)
                    for each in (before.segment, after.segment)
                )
                if any(one != other for one, other in zip(then, now, strict=True)):
                    raise CheckpointDamaged(f"{before.path}: its first bytes were not stored as they are")
            for one, other in zip(before.tensors, after.tensors, strict=True):
                if one.layers != other.layers:
                    for _ in _Stored(other, self._blobs, after.path).blocks():
                        pass
