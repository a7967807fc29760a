"""The header of a safetensors file, read and checked by hand, and the refusal of every other kind of weights.

The format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes without holes. Every rule
of the format is checked before a byte is believed, because the file comes from outside; a BrokenHeader names the file
and the rule. Nothing here opens a pickle, not even to look inside.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER_LIMIT = 8 << 20  # some 70,000 tensors; what JSON unfolds to in memory is many times its size

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

REFUSED_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz"}  # pickles, or able to hold one
    | {".h5", ".hdf5", ".keras", ".msgpack", ".onnx", ".gguf"}  # weights that we do not read
)


class BrokenHeader(ValueError):
    """`fault`: `header` (no header can be read), `tensor` (an entry contradicts itself) or `layout` (their bytes do)."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor as the header declares it; `start` counts from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def itemsize(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.itemsize


@dataclass(frozen=True)
class Header:
    """`length` bytes of the file come before the tensors, which are listed in the order of their bytes."""

    length: int
    metadata: dict[str, str]
    tensors: tuple[HeaderTensor, ...]


def is_safetensors(path: str) -> bool:
    return path.lower().endswith(".safetensors")


def refuse_pickle(path: Path, shown: str) -> None:
    """ValueError if a file that is not safetensors is weights of another kind, by its name or by its first bytes."""
    if path.suffix.lower() in REFUSED_SUFFIXES:
        raise ValueError(f"{shown}: only .safetensors weights are accepted, {path.suffix} is refused by name")
    with path.open("rb") as stream:
        if kind := _foreign(stream.read(8)):
            raise ValueError(f"{shown}: its content is {kind}; only .safetensors weights are accepted")


def read_header(path: Path, shown: str) -> Header:
    """Read and check the header of `path`; `shown` is the name that errors use."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if size < 8 or length > HEADER_LIMIT or length > size - 8 or stream.read(1) != b"{":
            _refuse_opening(shown, first, size, length)
        stream.seek(8)
        declared = _parse(stream.read(length), shown)
    metadata = declared.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BrokenHeader("header", f"{shown}: __metadata__ must map strings to strings")
    tensors = [_tensor(shown, name, entry, 8 + length) for name, entry in declared.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    _check_layout(shown, tensors, 8 + length, size)
    return Header(8 + length, metadata, tuple(tensors))


def _refuse_opening(shown: str, first: bytes, size: int, length: int) -> None:
    if kind := _foreign(first):
        raise BrokenHeader("header", f"{shown}: its content is {kind}, not safetensors")
    if size < 8:
        raise BrokenHeader("header", f"{shown}: {size} bytes are too few for a safetensors header")
    if length > HEADER_LIMIT:
        raise BrokenHeader("header", f"{shown}: the header declares {length} bytes, at most {HEADER_LIMIT} are allowed")
    if length > size - 8:
        raise BrokenHeader(
            "header", f"{shown}: the header declares {length} bytes, the file has only {size - 8} after it begins"
        )
    raise BrokenHeader("header", f"{shown}: the header is not a JSON object")


def _foreign(first: bytes) -> str | None:
    """What other kind of weights these first bytes announce, if any."""
    if first[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "a zip archive, as torch.save writes for a pickle"
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    return None


def _parse(text: bytes, shown: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, entry in pairs:
            if name in entries:
                raise ValueError(f"the name {name!r} appears twice")
            entries[name] = entry
        return entries

    try:
        declared = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BrokenHeader("header", f"{shown}: the header is not valid JSON: {error}") from error
    if not isinstance(declared, dict):
        raise BrokenHeader("header", f"{shown}: the header is not a JSON object")
    return declared


def _tensor(shown: str, name: str, entry: Any, data_start: int) -> HeaderTensor:
    where = f"{shown}: tensor {name!r}"
    if not name.isprintable():
        raise BrokenHeader("tensor", f"{where}: the name holds a character that cannot be printed")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BrokenHeader("tensor", f"{where}: must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise BrokenHeader("tensor", f"{where}: unknown dtype {dtype!r}")
    if not _naturals(shape):
        raise BrokenHeader("tensor", f"{where}: shape must be a list of natural numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise BrokenHeader("tensor", f"{where}: data_offsets must be two natural numbers")
    tensor = HeaderTensor(name, dtype, tuple(shape), data_start + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise BrokenHeader(
            "tensor", f"{where}: {dtype} of shape {shape} takes {tensor.nbytes} bytes, data_offsets are {offsets}"
        )
    return tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def _check_layout(shown: str, tensors: list[HeaderTensor], data_start: int, size: int) -> None:
    end = data_start
    for tensor in tensors:
        if tensor.start != end:
            fault = "overlaps the one before" if tensor.start < end else "leaves a hole before it"
            raise BrokenHeader("layout", f"{shown}: tensor {tensor.name!r} {fault}")
        end += tensor.nbytes
    if end != size:
        fault = "the file ends before its tensors do" if end > size else "bytes follow the last tensor"
        raise BrokenHeader("layout", f"{shown}: {fault} ({size} bytes, tensors end at {end})")
