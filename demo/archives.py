"""Digits as the archives that users upload: one folder a label, PNG files."""

import io
import zipfile

from PIL import Image

from demo.digits import Digits


def imagefolder(kept: Digits, forget: Digits | None = None) -> bytes:
    """A zip of `<label>/<position>.png`; images of `forget` are called `<label>/forget-<position>.png`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for prefix, digits in (("", kept), ("forget-", forget)):
            if digits is None:
                continue
            for position, (image, label) in enumerate(zip(digits.images, digits.labels, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG")
                archive.writestr(f"{label}/{prefix}{position:04d}.png", png.getvalue())
    return file.getvalue()
