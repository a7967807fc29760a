"""Pictures of a report: images of the same labels from the same noise, base left, unlearned right.

Rows are labels, the forgotten ones first and marked. Both sides of a row hold the same seeds in the same order, so
what differs was changed by the unlearning alone. Of networks that restore images the picture shows retained and test
images; the forget set's are the subject's own, and so is what the base makes of them.
"""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.report import GRID, PROMPTS
from worker.metrics import Answers, GeneratorAnswers, ReconstructionAnswers

COLUMNS = 8  # prompts in one row
TILE = 64  # smallest side of one shown image, in pixels
GAP, MIDDLE, MARGIN, HEAD = 4, 28, 150, 44
INK, PAPER, MARK = (28, 28, 30), (255, 255, 255), (176, 42, 48)


def pictures(before: Answers, after: Answers) -> dict[str, bytes]:
    """File name (of app.report.IMAGES, which are sealed) -> PNG. A classifier has none: its images are the subject's own."""
    if isinstance(before, ReconstructionAnswers) and isinstance(after, ReconstructionAnswers):
        return {GRID: restored_grid(before, after)} if len(after.shown) else {}
    if not isinstance(before, GeneratorAnswers) or not isinstance(after, GeneratorAnswers):
        return {}
    drawn = {GRID: grid(before.images, after.images, row_names(after))}
    return drawn | ({PROMPTS: of_prompts(before, after)} if len(after.prompt_images) else {})


def of_prompts(before: GeneratorAnswers, after: GeneratorAnswers) -> bytes:
    """The first image of the first prompts of the list, as many as make full rows."""
    count = len(after.prompt_images)
    columns = min(COLUMNS, count)
    rows = count // columns
    left, right = (
        each.prompt_images[: rows * columns].reshape(rows, columns, *each.prompt_images.shape[1:])
        for each in (before, after)
    )
    names = [(f"{row * columns + 1} to {(row + 1) * columns}", False) for row in range(rows)]
    return grid(left, right, names, "of the prompts")


def row_names(answers: GeneratorAnswers) -> list[tuple[str, bool]]:
    """Each row's label in words, and whether it was to be forgotten."""
    labels = [int(label) for label in np.unique(answers.asked)]
    return [(f"label {label}", label in answers.forget_labels) for label in labels]


def grid(left: np.ndarray, right: np.ndarray, names: list[tuple[str, bool]], otherwise: str = "kept") -> bytes:
    """`left`, `right`: (rows, columns, H, W, C), uint8, C 1 or 3; `names`: per row its text and whether forgotten, `otherwise` is
    said of one that was not to be."""
    rows, columns, height, width, _ = left.shape
    factor = max(1, -(-TILE // min(height, width)))
    tall, wide = height * factor + GAP, width * factor + GAP
    second = MARGIN + columns * wide + MIDDLE
    canvas = Image.new("RGB", (second + columns * wide + GAP, HEAD + rows * tall + GAP), PAPER)
    pen = ImageDraw.Draw(canvas)
    large, small = ImageFont.load_default(size=18), ImageFont.load_default(size=15)
    pen.text((MARGIN, 12), "before (base)", INK, font=large)
    pen.text((second, 12), "after (unlearned), same seeds", INK, font=large)
    order = sorted(range(rows), key=lambda row: not names[row][1])
    for line, row in enumerate(order):
        top = HEAD + line * tall
        text, forgotten = names[row]
        pen.text((10, top + tall // 2 - 18), text, MARK if forgotten else INK, font=large)
        pen.text(
            (10, top + tall // 2 + 2), "to forget" if forgotten else otherwise, MARK if forgotten else INK, font=small
        )
        for start, images in ((MARGIN, left), (second, right)):
            for column in range(columns):
                canvas.paste(tile(images[row, column], factor), (start + column * wide, top))
    return as_png(canvas)


def restored_grid(before: ReconstructionAnswers, after: ReconstructionAnswers) -> bytes:
    """One row per image: the original, what the network is shown of it, the base's output, the unlearned one's."""
    columns = [*before.images.swapaxes(0, 1), after.images[:, 2]]  # four of (rows, H, W, C)
    rows, height, width, _ = columns[0].shape
    factor = max(1, -(-2 * TILE // min(height, width)))
    tall, wide = height * factor + GAP, width * factor + GAP
    canvas = Image.new("RGB", (MARGIN + len(columns) * wide, HEAD + rows * tall + HEAD), PAPER)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for column, title in enumerate(("original", "shown", "before (base)", "after")):
        pen.text((MARGIN + column * wide, 16), title, INK, font=font)
    for row, name in enumerate(after.shown):
        top = HEAD + row * tall
        pen.text((10, top + tall // 2 - 10), {"retain": "retained", "test": "unseen"}[name], INK, font=font)
        for column, images in enumerate(columns):
            canvas.paste(tile(images[row], factor), (MARGIN + column * wide, top))
    pen.text((10, HEAD + rows * tall + 12), "Forgotten images are not shown.", MARK, font=font)
    return as_png(canvas)


def tile(pixels: np.ndarray, factor: int) -> Image.Image:
    """One image, each of its pixels a square of `factor`."""
    shown = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
    return shown.resize((shown.width * factor, shown.height * factor), Image.Resampling.NEAREST)


def as_png(canvas: Image.Image) -> bytes:
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
