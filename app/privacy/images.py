"""Images from strangers to plain pixels, and the form in which a set of them is kept.

Decoding accepts three formats, one frame, a bounded number of pixels, and gives uint8 arrays of grey (H, W) or RGB
(H, W, 3); what is kept is a fresh lossless PNG of those pixels, so that no metadata, profile or thumbnail survives.
A kept set is one stored zip: PNG files under ordinal names and `index.json`. For role forget the caller seals it whole.
"""

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from app.errors import Refused
from app.privacy.fingerprints import with_marks

FORMATS = ("PNG", "JPEG", "WEBP")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no time in the archive: equal sets have equal bytes
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    struct.error,
    OverflowError,
    RuntimeError,
    ZeroDivisionError,
    zlib.error,
)  # what decoders raise on damaged input

_ARCHIVE_END = struct.Struct("<4s16xH")  # of a zip: its signature, and how long the comment after it is

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageLimits:
    """`pixels` of one image; `encoded_bytes` of all re-encoded images of a set."""

    pixels: int = 50_000_000
    encoded_bytes: int = 2 << 30


class Sample(NamedTuple):
    """`digest` is of its pixels and not keyed: it leaves memory only as a fingerprint. `text` is its own caption."""

    sample_id: str
    label: int
    digest: str
    text: str | None = None


@dataclass(frozen=True)
class DecodedSet:
    """`labels` are names; each sample's `label` is an index into them."""

    labels: list[str]
    samples: list[Sample]


def decode(content: bytes, where: str, limits: ImageLimits = ImageLimits()) -> Pixels:
    """Grey (H, W) or RGB (H, W, 3) pixels, upright. `where` is how a refusal may call the image."""
    if _ends_as_archive(content):
        raise Refused("image-polyglot", where, "The image is an archive, too.", "Save it as a plain image.")
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > limits.pixels:
                raise Refused(
                    "image-too-large",
                    where,
                    f"An image may have at most {limits.pixels} pixels.",
                    "Send it smaller.",
                    413,
                )
            if getattr(image, "n_frames", 1) > 1:
                raise Refused(
                    "image-animated", where, "An image may have one frame only.", "Send the frames as images."
                )
            return _plain(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refused(
            "image-too-large", where, "The image declares too many pixels.", "Send it smaller.", 413
        ) from None
    except Image.UnidentifiedImageError:
        raise Refused(
            "image-format", where, f"Its content is not one of {', '.join(FORMATS)}.", "Convert it to PNG."
        ) from None
    except MemoryError:
        raise Refused(
            "decoding-memory",
            where,
            "The image takes more memory than its decoder may have.",
            "Send it smaller, or ask the operator to raise LETHE_DECODER_MEMORY_MB.",
            413,
        ) from None
    except _UNREADABLE as error:
        if (
            "too large" in str(error).lower()
        ):  # Pillow's words for a text or a profile of a PNG that unpacks without end
            raise Refused(
                "image-metadata",
                where,
                "A text or a colour profile in the image unpacks to more than 1 MiB.",
                "Save the image without metadata.",
            ) from None
        raise Refused(
            "image-damaged", where, "The image is damaged or cut off.", "Send it again, or leave it out."
        ) from None


def encode(pixels: Pixels) -> bytes:
    """A PNG of these pixels and nothing else."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def digest_of(pixels: Pixels) -> str:
    """SHA-256 of what is seen: grey stored as RGB counts as grey."""
    if pixels.ndim == 3 and all(np.array_equal(pixels[:, :, 0], pixels[:, :, other]) for other in (1, 2)):
        pixels = pixels[:, :, 0]
    digest = hashlib.sha256(struct.pack(f">B{pixels.ndim}Q", pixels.ndim, *pixels.shape))
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def index_of(decoded: DecodedSet, marks: Callable[[str], list[str]]) -> dict[str, Any]:
    """What is known of each sample besides its pixels; samples keep their order, which is their position everywhere.
    `marks` makes keyed digests of a plain one, the newest key's first."""
    return {
        "labels": decoded.labels,
        "samples": [
            with_marks(
                {
                    "id": sample.sample_id,
                    "label": sample.label,
                    "file": f"{at:06d}.png",
                    **({} if sample.text is None else {"text": sample.text}),
                },
                marks(sample.digest),
            )
            for at, sample in enumerate(decoded.samples)
        ],
    }


def set_pieces(pictures: Iterable[Iterable[bytes]], index: Callable[[], dict[str, Any]]) -> Iterator[bytes]:
    """The zip of a set, in pieces, from its PNGs in pieces; `index` is asked for after the last one. The same set gives
    the same bytes."""
    written = _Pieces()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]  # write and flush do
        for at, picture in enumerate(pictures):
            with archive.open(zipfile.ZipInfo(f"{at:06d}.png", _EPOCH), "w") as file:
                for piece in picture:
                    file.write(piece)
                    yield written.taken()
        archive.writestr(zipfile.ZipInfo("index.json", _EPOCH), json.dumps(index(), ensure_ascii=False))
    yield written.taken()


def read_index(source: bytes | BinaryIO) -> dict[str, Any]:
    """The index of a set that `set_pieces` made, without touching its images."""
    with zipfile.ZipFile(_seekable(source)) as archive:
        return _index(archive)


def read_set(
    source: bytes | BinaryIO, positions: Iterable[int] | None = None
) -> tuple[dict[str, Any], Iterator[Pixels]]:
    """The index, and the pixels of the samples at `positions` (default: all) in that order, decoded as asked for."""
    archive = zipfile.ZipFile(_seekable(source))
    index = _index(archive)
    wanted = range(len(index["samples"])) if positions is None else positions
    return index, (_kept(archive.read(index["samples"][position]["file"])) for position in wanted)


def _seekable(source: bytes | BinaryIO) -> BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else source


def _index(archive: zipfile.ZipFile) -> dict[str, Any]:
    index: dict[str, Any] = json.loads(archive.read("index.json"))
    return index


def _kept(png: bytes) -> Pixels:
    with Image.open(BytesIO(png), formats=("PNG",)) as image:
        return np.array(image)


def _plain(image: Image.Image) -> Pixels:
    """In place where that can be: a decoder's memory is small, and four bytes a pixel are much of it."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # the turn is in the metadata, which does not stay
    if image.mode.startswith("I"):
        deep = np.array(image)
        deep >>= 8  # 16-bit grey
        return deep.clip(0, 255, out=deep).astype(np.uint8)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return np.array(image if image.mode == mode else image.convert(mode))


def _ends_as_archive(content: bytes) -> bool:
    """Whether the bytes are a zip to whoever reads from their end, where a zip has its table of contents."""
    at = content.rfind(b"PK\x05\x06", -(1 << 16) - 22)
    while at >= 0 and at + 22 <= len(content):
        if at + 22 + _ARCHIVE_END.unpack_from(content, at)[1] == len(content):
            return True
        at = content.rfind(b"PK\x05\x06", -(1 << 16) - 22, at)
    return False


class _Pieces:
    """What `zipfile` writes, to be taken away piece by piece."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, piece: bytes) -> int:
        self._held += piece
        return len(piece)

    def flush(self) -> None:
        return

    def taken(self) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return held
