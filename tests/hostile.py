"""Uploads as an attacker would build them: archives, images and weights, byte by byte where no library writes such a thing."""

import io
import json
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests import pictures

GOOD = pictures.png(1)


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    return zip_of(*((zipfile.ZipInfo(name), content) for name, content in files.items()), method=method)


def zip_of(*entries: tuple[zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, content in entries:
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()


def image(content: bytes, name: str = "0/a.png") -> bytes:
    """A set of one image."""
    return zipped({name: content})


def special(kind: int) -> bytes:
    info = zipfile.ZipInfo("0/a.png")
    info.external_attr = (kind | 0o777) << 16
    return zip_of((info, b"/etc/passwd"))


def tar_of(content: bytes = GOOD, **fields: Any) -> bytes:
    """A tar of one image, its header altered."""
    info = tarfile.TarInfo("0/a.png")
    info.size = len(content)
    for name, value in fields.items():
        setattr(info, name, value)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def tar_with_size(size: bytes) -> bytes:
    """A tar whose header says this size, with a checksum that fits."""
    whole = bytearray(tar_of())
    whole[124:136] = size
    whole[148:156] = b" " * 8
    whole[148:156] = b"%06o\0 " % sum(whole[:512])
    return bytes(whole)


def patched(archive: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with a number of the first record that has the signature changed."""
    changed = bytearray(archive)
    struct.pack_into(form, changed, changed.index(signature) + offset, value)
    return bytes(changed)


def declaring(size: int) -> bytes:
    """A zip whose table of contents says that its image unpacks to `size` bytes."""
    packed = zipped({"0/a.png": GOOD}, zipfile.ZIP_DEFLATED)
    return patched(packed, b"PK\x01\x02", 24, "<L", size)


def overlapping() -> bytes:
    """Two names for the bytes of one entry."""
    whole = zipped({"0/a.png": GOOD})
    at, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    record = whole[at:end]
    records = record + record.replace(b"a.png", b"b.png")
    return whole[:at] + records + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(records), at, 0)


def crowded(entries: int) -> bytes:
    """A table of contents of very many entries, which no file stands behind."""
    record = b"PK\x01\x02" + bytes(42)
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, entries, entries, len(record) * entries, 30)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 30 + len(record) * entries, 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return b"PK\x03\x04" + bytes(26) + record * entries + end + locator + last


def saved(form: str, size: tuple[int, int] = (64, 64), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 99, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def png_of(width: int, height: int, *chunks: tuple[bytes, bytes], colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG of these chunks, whether or not they fit its header."""
    header = struct.pack(">LLBBBBB", width, height, 8, colour, 0, 0, 0)
    inside = [(b"IHDR", header), *chunks, (b"IDAT", data or zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in inside)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def unfolding() -> bytes:
    """A text that unpacks to 64 MiB."""
    return zlib.compress(bytes(64 << 20), 9)


def described(metadata: bytes, name: str = "metadata.jsonl") -> bytes:
    return zipped({name: metadata, "a.png": GOOD})


def safetensors(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def files_of(directory: Path) -> dict[str, bytes]:
    found = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def altered(files: Mapping[str, bytes], name: str = "config.json", **changes: Any) -> dict[str, bytes]:
    return {**files, name: json.dumps(json.loads(files[name]) | changes).encode()}


SYMLINK, FIFO, DEVICE = stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR
