"""What tests of curation need before a network is asked: families of words, and captioned archives."""

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import replace

import pytest

from app import catalog
from tests import pictures

READER, PAINTER = "clip", "text_to_image"  # a family of words that cannot generate, and one that can


def unjudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let painters do without a judge, where what is tested is not how they are measured."""
    families = {**catalog.FAMILIES, PAINTER: replace(catalog.FAMILIES[PAINTER], needs_judge=False)}
    monkeypatch.setattr(catalog, "FAMILIES", families)


def archive(samples: Iterable[tuple[str, str | None]], seed: int = 0) -> bytes:
    """A zip of one image per (label, caption), the captions in metadata.jsonl."""
    file, rows = io.BytesIO(), []
    with zipfile.ZipFile(file, "w") as opened:
        for number, (label, text) in enumerate(samples):
            opened.writestr(f"{label}/{number}.png", pictures.png(1000 * seed + number))
            rows.append({"file_name": f"{label}/{number}.png"} | ({} if text is None else {"text": text}))
        opened.writestr("metadata.jsonl", "\n".join(map(json.dumps, rows)))
    return file.getvalue()
