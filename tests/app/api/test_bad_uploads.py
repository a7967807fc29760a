"""Archives and model directories that are refused: the right status, a problem document that names file and rule, nothing stored."""

import io
import json
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from app.decoding import Decoders
from app.main import create_app
from tests import pictures
from tests.app.api.deployed import (
    ZIP,
    World,
    refused,
    stored,
    stored_but_history,
    upload_model,
    upload_set,
)


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zip_with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("0/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def tar_with_link() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("0/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


ARCHIVES: dict[str, tuple[Callable[[], bytes], int, str, str]] = {
    "dots": (lambda: zipped({"0/../../up.png": pictures.png(1)}), 422, "archive-path", "entry 1"),
    "absolute": (lambda: zipped({"/0/a.png": pictures.png(1)}), 422, "archive-path", "entry 1"),
    "link in a zip": (zip_with_link, 422, "archive-link", "entry 1"),
    "link in a tar": (tar_with_link, 422, "archive-link", "entry 1"),
    "bomb": (lambda: zipped({"0/a.png": bytes(40 << 20)}, zipfile.ZIP_DEFLATED), 413, "archive-ratio", "entry 1"),
    "nested": (lambda: zipped({"0/a.zip": zipped({})}), 422, "archive-nested", "entry 1"),
    "truncated image": (lambda: zipped({"0/a.png": pictures.png(1)[:90]}), 422, "image-damaged", "entry 1"),
    "no image at all": (lambda: zipped({}), 422, "images-none", "archive"),
    "not an image": (lambda: zipped({"0/a.png": b"GIF89a"}), 422, "image-format", "entry 1"),
    "another file": (lambda: zipped({"0/a.txt": b"x"}), 422, "file-type", "entry 1"),
    "without a label": (lambda: zipped({"a.png": pictures.png(1)}), 422, "label-missing", "entry 1"),
    "cut off": (lambda: pictures.imagefolder(seed=9)[:-40], 422, "archive-damaged", "archive"),
    "no archive": (lambda: b"hello", 422, "archive-format", "archive"),
    "empty": (lambda: b"", 422, "archive-format", "archive"),
}


@pytest.mark.parametrize("case", ARCHIVES)
@pytest.mark.parametrize("role", ["train", "forget"])
def test_archives(world: World, case: str, role: str) -> None:
    make, status, code, where = ARCHIVES[case]
    before = stored(world.lethe)
    problem = refused(upload_set(world.admin, role, None if role == "forget" else "bad-archive", make()), status, code)
    (error,) = problem["errors"]
    assert where in error["field"] and error["rule"] and error["remedy"]
    assert role == "train" or not any(name in json.dumps(problem) for name in ("up.png", "link.png", "a.png", "a.txt"))
    assert stored(world.lethe) == before


def test_more_than_a_limit_is_too_large_whatever_the_header_says(world: World) -> None:
    settings = world.lethe.settings.model_copy(
        update={"max_upload_bytes": 2000, "max_forget_bytes": 1000, "max_entries": 3, "max_pixels": 63}
    )
    client = TestClient(
        create_app(replace(world.lethe, settings=settings, decoders=Decoders(settings))),
        headers=dict(world.admin.headers),
    )
    before = stored(world.lethe)
    for role, size in (("train", 2001), ("forget", 1001)):
        name = None if role == "forget" else "big"
        refused(upload_set(client, role, name, bytes(size)), 413, "too-large", "body")
        pieces = (bytes(100) for _ in range(size // 100 + 1))
        refused(
            client.post(
                "/v1/datasets", params={"role": role} | ({"name": name} if name else {}), content=pieces, headers=ZIP
            ),
            413,
            "too-large",
            "body",
        )
    refused(client.post("/v1/uploads", content=bytes(2001), headers=ZIP), 413, "too-large", "body")
    refused(
        client.post("/v1/uploads", content=b"", headers=ZIP | {"Content-Length": "9" * 30}), 413, "too-large", "body"
    )
    refused(
        upload_set(client, "train", "big", zipped({f"0/{at}.png": b"" for at in range(4)})),
        413,
        "archive-too-many-entries",
    )
    refused(upload_set(client, "train", "big", zipped({"0/a.png": pictures.png(1)})), 413, "image-too-large")
    assert stored(world.lethe) == before


def altered(directory: Path, target: Path, **changes: Any) -> dict[str, bytes]:
    config = json.loads((directory / "config.json").read_text()) | changes
    return files_of(directory) | {"config.json": json.dumps(config).encode()}


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def lacking_a_tensor(directory: Path, target: Path) -> dict[str, bytes]:
    tensors = load_file(directory / "model.safetensors")
    tensors.pop("classifier.weight")
    save_file(tensors, target / "model.safetensors")
    return files_of(directory) | {"model.safetensors": (target / "model.safetensors").read_bytes()}


def index(**entries: Any) -> bytes:
    return json.dumps({"_class_name": "ViTForImageClassification", **entries}).encode()


MODELS: dict[str, tuple[Callable[[Path, Path], dict[str, bytes]], str, str]] = {
    "pickle by name": (lambda d, t: files_of(d) | {"pytorch_model.bin": pickle.dumps({})}, "pickle-refused", "pytorch_model.bin"),
    "pickle in disguise": (lambda d, t: files_of(d) | {"model.safetensors": pickle.dumps({"a": 1}, 2)}, "pickle-refused", "model.safetensors"),
    "code": (lambda d, t: files_of(d) | {"modeling.py": b"import os"}, "code-refused", "modeling.py"),
    "auto_map": (lambda d, t: altered(d, t, auto_map={"AutoModel": "x.Y"}), "code-refused", "config.json: auto_map"),
    "another class": (lambda d, t: altered(d, t, architectures=["BertModel"]), "class-not-allowed", "config.json: architectures"),
    "an index with a foreign module": (
        lambda d, t: files_of(d) | {"model_index.json": index(unet=["os", "system"])}, "file-not-allowed", "model_index.json"),
    "an index with a class off the list": (
        lambda d, t: files_of(d) | {"model_index.json": index(text=["transformers", "CLIPTextModel"])}, "file-not-allowed", "model_index.json"),
    "config of another network": (lambda d, t: altered(d, t, hidden_size=32), "config-mismatch", "config.json: vit.embeddings"),
    "a lost tensor": (lacking_a_tensor, "config-mismatch", "config.json: classifier.weight"),
    "no config": (lambda d, t: {"model.safetensors": files_of(d)["model.safetensors"]}, "file-not-allowed", "config.json"),
    "no weights": (lambda d, t: {"config.json": files_of(d)["config.json"]}, "weights-files", "model.safetensors"),
    "config that is not JSON": (lambda d, t: files_of(d) | {"config.json": b"{"}, "config-format", "config.json"),
    "dots": (lambda d, t: files_of(d) | {"../config.json": b"{}"}, "archive-path", "../config.json"),
    "nothing": (lambda d, t: {}, "file-not-allowed", "config.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_model_directories(world: World, tmp_path: Path, case: str) -> None:
    make, code, where = MODELS[case]
    before = stored_but_history(world.lethe)
    upload = upload_model(world.admin, make(world.directory, tmp_path))
    body = {"name": "bad-model", "family": "image_classifier", "source": {"upload": upload}}
    problem = refused(world.admin.post("/v1/models", json=body), 422, code)
    assert where in problem["errors"][0]["field"] and problem["errors"][0]["rule"]
    assert stored_but_history(world.lethe) == before


def test_a_model_archive_with_a_link_or_a_bomb(world: World) -> None:
    for content, status, code in ((zip_with_link(), 422, "archive-link"), (tar_with_link(), 422, "archive-link"),
                                  (zipped({"config.json": bytes(40 << 20)}, zipfile.ZIP_DEFLATED), 413, "archive-ratio")):  # fmt: skip
        before = stored_but_history(world.lethe)
        upload = world.admin.post("/v1/uploads", content=content, headers=ZIP).json()["id"]
        body = {"name": "bad-model", "family": "image_classifier", "source": {"upload": upload}}
        refused(world.admin.post("/v1/models", json=body), status, code)
        assert stored_but_history(world.lethe) == before
