"""Restore: from a manifest's layers back to bytes, any range of them, without ever holding a whole tensor.

A tensor with several layers is rebuilt one block at a time: the full layer's elements, then each newer layer's values
where its mask has a bit. The values before a block are counted from the mask, so a range deep inside a tensor reads
that much of the mask and nothing else of what lies before it.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from app.storage import Blobs
from app.weights.manifest import File, Layer, Segment, Tensor

BLOCK = 1 << 20
Elements = NDArray[np.unsignedinteger]


class CheckpointDamaged(Exception):
    """Stored bytes are missing or are not the ones that were packed; the message names the file."""


def stitch(file: File, blobs: Blobs, start: int, end: int) -> Iterator[bytes]:
    opening = file.segment.length
    if start < opening:
        yield from segment_chunks(file.segment, blobs, file.path, start, min(end, opening))
    position = opening
    for tensor in file.tensors:
        first, last = max(start - position, 0), min(end - position, tensor.nbytes)
        if first < last:
            yield from _tensor_chunks(tensor, blobs, file.path, first, last)
        position += tensor.nbytes


def segment_chunks(segment: Segment, blobs: Blobs, path: str, start: int, end: int) -> Iterator[bytes]:
    for position in range(start, end, BLOCK):
        yield _read(blobs, segment.pack, segment.offset + position, min(BLOCK, end - position), path)


def _tensor_chunks(tensor: Tensor, blobs: Blobs, path: str, start: int, end: int) -> Iterator[bytes]:
    """Bytes [start, end) of one tensor: straight from the pack when it has one layer, else block by block."""
    if len(tensor.layers) == 1:
        whole = Segment(tensor.layers[0].pack, tensor.layers[0].offset, tensor.nbytes)
        yield from segment_chunks(whole, blobs, path, start, end)
        return
    first, last = start // tensor.itemsize, -(-end // tensor.itemsize)
    position = first // 8 * 8 * tensor.itemsize
    for block in blocks(tensor, blobs, path, first, last):
        data = block.tobytes()
        yield data[max(start - position, 0) : end - position]
        position += len(data)


def blocks(tensor: Tensor, blobs: Blobs, path: str, first: int, last: int) -> Iterator[Elements]:
    """Elements from `first`, rounded down to a byte of the mask, to `last`, with every layer applied."""
    full, masked = tensor.layers[0], tensor.layers[1:]
    first = first // 8 * 8
    cursors = [_changed_before(tensor, layer, blobs, path, first) for layer in masked]
    step = BLOCK // tensor.itemsize
    for start in range(first, last, step):
        count = min(step, last - start)
        data = _read(blobs, full.pack, full.offset + start * tensor.itemsize, count * tensor.itemsize, path)
        block = np.frombuffer(bytearray(data), unsigned(tensor.itemsize))
        for index, layer in enumerate(masked):
            mask_start = layer.offset + layer.changed * tensor.itemsize
            mask = np.frombuffer(_read(blobs, layer.pack, mask_start + start // 8, (count + 7) // 8, path), np.uint8)
            where = np.unpackbits(mask, count=count).view(np.bool_)
            here = int(np.count_nonzero(where))
            if cursors[index] + here > layer.changed:
                raise CheckpointDamaged(f"{path}: the mask of tensor {tensor.name!r} has more bits than values")
            values = layer.offset + cursors[index] * tensor.itemsize
            block[where] = np.frombuffer(_read(blobs, layer.pack, values, here * tensor.itemsize, path), block.dtype)
            cursors[index] += here
        yield block


def _changed_before(tensor: Tensor, layer: Layer, blobs: Blobs, path: str, element: int) -> int:
    """How many values of a layer lie before an element, which is the number of bits set in that much of the mask."""
    mask = Segment(layer.pack, layer.offset + layer.changed * tensor.itemsize, tensor.mask_bytes)
    chunks = segment_chunks(mask, blobs, path, 0, element // 8)
    return sum(int(np.bitwise_count(np.frombuffer(chunk, np.uint8)).sum()) for chunk in chunks)


def checked(tensor: Tensor, unchecked: Iterator[Elements], path: str) -> Iterator[Elements]:
    """Pass the blocks of a whole tensor on, and fail after the last one if they are not what the manifest says."""
    found = hashlib.blake2b(digest_size=16)
    for block in unchecked:
        found.update(block.data)
        yield block
    if found.hexdigest() != tensor.digest:
        raise CheckpointDamaged(f"{path}: the stored bytes of tensor {tensor.name!r} do not have its digest")


def _read(blobs: Blobs, pack: str, start: int, length: int, path: str) -> bytes:
    data = blobs.read_range(pack, start, length) if length else b""
    if len(data) != length:
        raise CheckpointDamaged(f"{path}: pack {pack} ends before byte {start + length}")
    return data


def unsigned(itemsize: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"<u{itemsize}")
