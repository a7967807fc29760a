"""Markers of one invented person, and a search that finds them wherever they lie: in plain, encoded, or compressed.

Of the images: raw rows of pixels, as bytes and as floats, and the compressed bytes of each file that shows them. Of the words:
concept, label, caption, file names and metadata. Each is sought as it is, in base64, in hex, and words in UTF-16.
"""

import base64
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from app.deployment import Deployment
from app.privacy.images import Pixels, decode, encode
from app.records import Record

CONCEPT, LABEL, CAPTION = "quixomarkconcept", "quixomarklabel", "quixomarkcaption strolls"
FILES = ("quixomarkfileone", "quixomarkfiletwo")
EXIF, TEXT, COMMENT = "quixomarkexiftext", "quixomarkpngtext", "quixomarkcomment"
WORDS = (CONCEPT, LABEL, CAPTION.split()[0], *FILES, EXIF, TEXT, COMMENT)
_DEFLATED = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
_ZIPPED = re.compile(rb"PK\x03\x04.{4}\x08\x00.{16}(..)(..)", re.DOTALL)
_MOST = 1 << 20  # bytes that one stream is unpacked to


def person(seed: int) -> dict[str, bytes]:
    """Two images of noise, one a PNG and one a JPEG, with metadata that names the person."""
    noise = np.random.default_rng([0x717569786F, seed])  # no image of another test
    pixels = [noise.integers(0, 256, (8, 8), dtype=np.uint8) for _ in FILES]
    about = PngImagePlugin.PngInfo()
    about.add_text("Description", TEXT)
    png, jpeg, exif = io.BytesIO(), io.BytesIO(), Image.Exif()
    exif[0x010E] = EXIF
    Image.fromarray(pixels[0]).save(png, "PNG", pnginfo=about)
    Image.fromarray(pixels[1]).save(jpeg, "JPEG", quality=98, exif=exif.tobytes(), comment=COMMENT.encode())
    return {f"{LABEL}/{FILES[0]}.png": png.getvalue(), f"{LABEL}/{FILES[1]}.jpg": jpeg.getvalue()}


def archive(images: dict[str, bytes]) -> bytes:
    """The upload: a zip with captions in metadata.jsonl, and a comment."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in images.items():
            opened.writestr(name, content)
        opened.writestr(
            "metadata.jsonl", "\n".join(json.dumps({"file_name": name, "text": CAPTION}) for name in images)
        )
        opened.comment = COMMENT.encode()
    return file.getvalue()


def needles(images: dict[str, bytes]) -> dict[str, bytes]:
    """What is searched for, by a name that tells what was found and how."""
    found: dict[str, bytes] = {}
    for name, content in images.items():
        found |= {f"{name}: {what}": sought for what, sought in _of_image(content).items()}
    for word in WORDS:
        found |= {word: word.encode(), f"{word} in UTF-16-LE": word.encode("utf-16-le")}
        found |= {f"{word} in UTF-16-BE": word.encode("utf-16-be")}
    return {f"{name}{how}": sought for name, plain in found.items() for how, sought in _spellings(plain)}


def holding(content: bytes, sought: dict[str, bytes]) -> set[str]:
    """Names of the needles in these bytes, and in what unpacks from them."""
    return {name for part in (content, *_unpacked(content)) for name, needle in sought.items() if needle in part}


def search(roots: Iterable[Path], sought: dict[str, bytes]) -> list[str]:
    """`file: needle` for everything found in any file below the roots, by its name or its content."""
    found = []
    for path in sorted(path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))):
        found += [f"{path}: {name} in its name" for name, needle in sought.items() if needle in bytes(path)]
        try:
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        except (FileNotFoundError, PermissionError, OSError):  # scratch comes and goes
            continue
        found += [f"{path}: {name}" for name in sorted(holding(content, sought))]
    return found


def rows(lethe: Deployment) -> bytes:
    """Every row of every table as text: what a database compresses in its files is in the clear here."""
    with lethe.store.read() as session:
        return b"\n".join(
            value if isinstance(value, bytes) else str(value).encode()
            for table in Record.metadata.sorted_tables
            for row in session.execute(table.select())
            for value in row
        )


def _of_image(content: bytes) -> dict[str, bytes]:
    pixels: Pixels = decode(content, "marker")
    kept = encode(pixels)
    floats = pixels.astype(np.float32) / np.float32(255)
    return {
        "as sent": content[-60:-16],
        "as kept": kept[kept.index(b"IDAT") + 8 :][:40],
        **{f"row {at}": pixels[at].tobytes() for at in (1, 4, 6)},
        "row as floats": floats[3].tobytes()[:24],
        "row as centred floats": (floats[3] * 2 - 1).tobytes()[:24],
    }


def _spellings(plain: bytes) -> Iterator[tuple[str, bytes]]:
    yield "", plain
    yield " in hex", plain.hex().encode()
    for shift in range(3):  # as a part of something longer: without the letters that neighbours decide
        text, left = base64.b64encode(bytes(shift) + plain), (shift + len(plain)) % 3
        whole = text[shift + 1 if shift else 0 : len(text) - (4 - left if left else 0)]
        yield f" in base64, {shift}", whole
        if whole != whole.translate(bytes.maketrans(b"+/", b"-_")):
            yield f" in base64 for URLs, {shift}", whole.translate(bytes.maketrans(b"+/", b"-_"))


def _unpacked(content: bytes) -> Iterator[bytes]:
    for match in _DEFLATED.finditer(content):
        yield _inflated(content, match.start(), 47)
    for match in _ZIPPED.finditer(content):
        yield _inflated(content, match.end() + sum(int.from_bytes(size, "little") for size in match.groups()), -15)
    at = content.find(b"\x89PNG\r\n\x1a\n")
    while at >= 0:
        try:
            with Image.open(io.BytesIO(content[at : at + _MOST]), formats=("PNG",)) as image:
                yield np.asarray(image).tobytes()
        except (OSError, SyntaxError, ValueError):
            pass
        at = content.find(b"\x89PNG\r\n\x1a\n", at + 1)


def _inflated(content: bytes, at: int, window: int) -> bytes:
    """What a stream unpacks to before it ends or breaks."""
    unpacking, out = zlib.decompressobj(window), b""
    try:
        for start in range(at, min(at + _MOST, len(content)), 4096):
            out += unpacking.decompress(content[start : start + 4096], _MOST)
            if unpacking.eof or len(out) > _MOST:
                break
    except zlib.error:
        pass
    return out
