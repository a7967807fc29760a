"""Images from strangers to plain pixels, and the form in which a set of them is kept.

Decoding accepts three formats, one frame, a bounded number of pixels, and gives uint8 arrays of grey (H, W) or RGB
(H, W, 3); what is kept is a fresh lossless PNG of those pixels, so that no metadata, profile or thumbnail survives.
A kept set is one stored zip: `index.json` and PNG files under ordinal names. For role forget the caller seals it whole.
"""

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

Pixels = NDArray[np.uint8]
Fingerprint = Callable[[bytes, tuple[int, ...]], str]


@dataclass(frozen=True)
class ImageLimits:
    """`pixels` of one image; `encoded_bytes` of all re-encoded images of a set, which are held in memory."""

    pixels: int = 50_000_000
    encoded_bytes: int = 2 << 30


class Sample(NamedTuple):
    sample_id: str
    label: int
    png: bytes
    fingerprint: str
    text: str | None = None  # its own caption


@dataclass(frozen=True)
class DecodedSet:
    """`labels` are names; each sample's `label` is an index into them."""

    labels: list[str]
    samples: list[Sample]


def decode(content: bytes, where: str, limits: ImageLimits = ImageLimits()) -> Pixels:
    """Grey (H, W) or RGB (H, W, 3) pixels, upright. `where` is how a refusal may call the image."""
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
    except _UNREADABLE:
        raise Refused(
            "image-damaged", where, "The image is damaged or cut off.", "Send it again, or leave it out."
        ) from None


def encode(pixels: Pixels) -> bytes:
    """A PNG of these pixels and nothing else."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def fingerprint_of(pixels: Pixels, fingerprint: Fingerprint) -> str:
    """The keyed digest of what is seen: grey stored as RGB counts as grey."""
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    return fingerprint(pixels.tobytes(), pixels.shape)


def index_of(decoded: DecodedSet) -> dict[str, Any]:
    """What is known of each sample besides its pixels; samples keep their order, which is their position everywhere."""
    return {
        "labels": decoded.labels,
        "samples": [
            {
                "id": sample.sample_id,
                "label": sample.label,
                "file": f"{at:06d}.png",
                "fingerprint": sample.fingerprint,
                **({} if sample.text is None else {"text": sample.text}),
            }
            for at, sample in enumerate(decoded.samples)
        ],
    }


def write_set(decoded: DecodedSet) -> bytes:
    """One stored zip; the same set gives the same bytes."""
    index, buffer = index_of(decoded), BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("index.json", _EPOCH), json.dumps(index, ensure_ascii=False))
        for entry, sample in zip(index["samples"], decoded.samples, strict=True):
            archive.writestr(zipfile.ZipInfo(entry["file"], _EPOCH), sample.png)
    return buffer.getvalue()


def read_index(source: bytes | BinaryIO) -> dict[str, Any]:
    """The index of a set that `write_set` wrote, without touching its images."""
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
    image.load()
    upright = ImageOps.exif_transpose(image)  # the turn is in the metadata, which does not stay
    if upright.mode.startswith("I"):
        return (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)  # 16-bit grey
    return np.array(upright.convert("L" if upright.mode in ("1", "L", "LA", "La") else "RGB"))
