"""Directories with subfolders and shards over HTTP: registered, listed and given back byte for byte."""

import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.app.api.deployed import World, refused, register, stored
from tests.tiny_pipelines import write_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A tiny Stable Diffusion by relative path."""
    directory = write_pipeline("sd", tmp_path / "sd")
    (directory / "README.md").write_text("a card\n")
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_pipeline_is_registered_and_every_file_comes_back(world: World, files: dict[str, bytes]) -> None:
    top = {f"painter/{name}": content for name, content in files.items()}
    answer = register(world, "painter", top, family="text_to_image", retain="train-set")
    assert answer.status_code == 201, answer.text
    assert answer.json()["labels"] == ["0", "1", "2", "3"]
    place = "/v1/models/painter/checkpoints/1"
    listed = world.requester.get(place).json()["files"]
    assert {file["path"]: file["size"] for file in listed} == {name: len(held) for name, held in files.items()}
    for name, content in files.items():
        assert world.requester.get(f"{place}/files/{name}").content == content, name
    part = world.requester.get(f"{place}/files/{UNET}", headers={"Range": "bytes=9-99"})
    assert (part.status_code, part.content) == (206, files[UNET][9:100])
    with zipfile.ZipFile(io.BytesIO(world.requester.get(f"{place}/archive").content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("unet/modeling.py", b"import os", "code-refused"),
        ("vae/diffusion_pytorch_model.bin", b"", "pickle-refused"),
        (UNET, b"\x80\x04pickle", "pickle-refused"),
        ("unet/deeper/config.json", b"{}", "file-not-allowed"),
        ("prior/config.json", b"{}", "file-not-allowed"),
        ("tokenizer/tokenizer_config.json", json.dumps({"auto_map": {}}).encode(), "code-refused"),
    ],
)
def test_a_refused_pipeline_leaves_nothing(
    name: str, content: bytes, code: str, world: World, files: dict[str, bytes]
) -> None:
    before, _ = stored(world.lethe)
    refused(register(world, "refused", files | {name: content}, family="text_to_image"), 422, code)
    after, kept = stored(world.lethe)
    assert {key: after[key] for key in ("models", "checkpoints", "intents")} == {
        key: before[key] for key in ("models", "checkpoints", "intents")
    }
    assert not any(each.startswith("scratch/") for each in kept)
