"""A look at what a request selects, for the person who approves it: a contact sheet of a few of its samples.

Made anew at each call from the sets that are kept anyway, sealed ones opened in memory; nothing of it is stored.
"""

from io import BytesIO
from typing import BinaryIO

from PIL import Image

from app.deployment import Deployment
from app.errors import NotFound
from app.privacy.images import Pixels, read_set
from app.privacy.sealing import KeyGone, unseal
from app.privacy.selection import forgotten, job_labels, read_index, read_wish
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.storage import BlobMissing

SIDE, COLUMNS, MOST = 96, 6, 24  # pixels of a sample's longer side; samples in a row, and in all
GAP = 4


def contact_sheet(lethe: Deployment, request: Request) -> bytes:
    """A PNG of at most MOST of the request's samples, spread over all of them. NotFound when there is none to show."""
    with lethe.store.read() as session:
        model = session.get_one(Model, request.model_id)
        source = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
    if source is None or request.purged_at is not None:
        raise NotFound("preview")
    try:
        what = read_wish(request, lethe.keyring)
        index = read_index(source, lethe.keyring, lethe.blobs)
        positions = forgotten(index, what, job_labels(model, index, what))
        shown = [positions[number * len(positions) // MOST] for number in range(MOST)]
        with lethe.blobs.open(source.blob) as file:
            return _sheet(list(read_set(_opened(lethe, source, file), list(dict.fromkeys(shown)))[1]))
    except (KeyGone, BlobMissing):
        raise NotFound("preview") from None


def _opened(lethe: Deployment, source: Dataset, file: BinaryIO) -> bytes | BinaryIO:
    if source.key_id is None:
        return file
    return unseal(lethe.keyring.key(source.key_id), file.read(), f"dataset/{source.id}".encode())


def _sheet(pictures: list[Pixels]) -> bytes:
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + GAP) + GAP, rows * (SIDE + GAP) + GAP), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet.paste(_thumbnail(picture), (GAP + column * (SIDE + GAP), GAP + row * (SIDE + GAP)))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _thumbnail(picture: Pixels) -> Image.Image:
    image = Image.fromarray(picture).convert("RGB")
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
