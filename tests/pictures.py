"""Small imagefolders as zip archives, made of seeded noise: every image is different."""

import io
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np
from PIL import Image


def png(seed: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def imagefolder(labels: Iterable[object] = range(4), each: int = 6, seed: int = 0) -> bytes:
    """A zip with `each` images in a folder per label. Equal seeds give equal images."""
    return archive(folder(labels, each, seed))


def folder(labels: Iterable[object], each: int, seed: int) -> dict[str, bytes]:
    """The same images by name."""
    return {f"{label}/{number}.png": png(_seed(seed, label, number)) for label in labels for number in range(each)}


def archive(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return file.getvalue()


def _seed(*parts: object) -> int:
    return int.from_bytes("/".join(map(str, parts)).encode()[-8:], "big")
