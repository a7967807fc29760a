"""Every refusal: the right status, a problem document that names field and rule, and nothing stored."""

import errno
import io
import json
import os
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

from app import catalog
from app.decoding import Decoders
from app.main import create_app
from app.storage import LocalBlobs, StorageFull
from tests import pictures, tiny
from tests.app.api.deployed import (
    ZIP,
    World,
    ask,
    forget_set,
    packed,
    refused,
    register,
    stored,
    upload_model,
    upload_set,
)
from tests.conftest import key_for


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
    upload = upload_model(world.admin, make(world.directory, tmp_path))
    before = stored(world.lethe)
    body = {"name": "bad-model", "family": "image_classifier", "source": {"upload": upload}}
    problem = refused(world.admin.post("/v1/models", json=body), 422, code)
    assert where in problem["errors"][0]["field"] and problem["errors"][0]["rule"]
    assert stored(world.lethe) == before


def test_a_model_archive_with_a_link_or_a_bomb(world: World) -> None:
    for content, status, code in ((zip_with_link(), 422, "archive-link"), (tar_with_link(), 422, "archive-link"),
                                  (zipped({"config.json": bytes(40 << 20)}, zipfile.ZIP_DEFLATED), 413, "archive-ratio")):  # fmt: skip
        upload = world.admin.post("/v1/uploads", content=content, headers=ZIP).json()["id"]
        before = stored(world.lethe)
        body = {"name": "bad-model", "family": "image_classifier", "source": {"upload": upload}}
        refused(world.admin.post("/v1/models", json=body), status, code)
        assert stored(world.lethe) == before


RULE = {"metric": "retain_accuracy", "rule": "at_least", "value": 90}
REGISTRATIONS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "family": ({"family": "text_to_speech"}, "unknown-family", "family", "image_classifier, class_diffusion"),
    "family of another library": (
        {"family": "class_diffusion"},
        "class-not-allowed",
        "config.json: _class_name",
        "UNet2DModel",
    ),
    "data set": ({"retain": "nothing-here"}, "unknown-dataset", "retain", "Upload"),
    "labels the model has not": ({"train": "five"}, "unknown-label", "train", "4 labels"),
    "judge": ({"judge": "nobody"}, "unknown-judge", "judge", "image_classifier"),
    "metric": (
        {"policy": {"samples": [RULE | {"metric": "beauty"}]}},
        "unknown-metric",
        "policy.samples[0].metric",
        "retain_accuracy",
    ),
    "metric of another family": (
        {"policy": {"samples": [RULE, RULE | {"metric": "fid"}]}},
        "unknown-metric",
        "policy.samples[1].metric",
        "retain_accuracy",
    ),
    "kind of forgetting": ({"policy": {"style": [RULE]}}, "unknown-kind", "policy.style", "class_label, samples"),
    "setting": ({"evaluation": {"sampling_steps": 3}}, "unknown-parameter", "evaluation.sampling_steps", "none"),
    "attacks that are no object": (
        {"evaluation": {"attacks": ["relearning"]}},
        "wrong-type",
        "evaluation.attacks",
        "name",
    ),
    "attack": (
        {"evaluation": {"attacks": {"bribery": {}}}},
        "unknown-attack",
        "evaluation.attacks.bribery",
        "relearning, quantised_copies, membership_sweep",
    ),
    "attack of another family": (
        {"evaluation": {"attacks": {"paraphrases": {}}}},
        "unknown-attack",
        "evaluation.attacks.paraphrases",
        "relearning",
    ),
    "parameter of an attack": (
        {"evaluation": {"attacks": {"relearning": {"speed": 1}}}},
        "unknown-parameter",
        "evaluation.attacks.relearning.speed",
        "learning_rate",
    ),
    "budget of an attack": (
        {"evaluation": {"attacks": {"relearning": {"images": 11}}}},
        "out-of-bounds",
        "evaluation.attacks.relearning.images",
        "at most 10",
    ),
    "attack held to the base": (
        {"policy": {"samples": [{"metric": "relearning", "rule": "drop_at_most", "value": 3.0}]}},
        "impossible-combination",
        "policy.samples[0].rule",
        "at_most",
    ),
}


@pytest.fixture(scope="module")
def five(world: World) -> None:
    assert upload_set(world.admin, "train", "five", pictures.imagefolder(range(5), each=1)).status_code == 201


@pytest.mark.parametrize("case", REGISTRATIONS)
def test_registrations(world: World, five: None, case: str) -> None:
    changes, code, field, possible = REGISTRATIONS[case]
    upload = upload_model(world.admin, world.directory)
    before = stored(world.lethe)
    body = {"name": "bad-model", "family": "image_classifier", "source": {"upload": upload}, **changes}
    problem = refused(world.admin.post("/v1/models", json=body), 422, code, field)
    assert possible in problem["detail"]
    assert stored(world.lethe) == before


@pytest.mark.parametrize(
    "rule",
    [
        RULE | {"value": True},
        RULE | {"value": "90"},
        RULE | {"rule": "about"},
        RULE | {"more": 1},
        {"metric": "fid"},
        7,
    ],
)
def test_thresholds_of_the_wrong_form(world: World, rule: Any) -> None:
    before = stored(world.lethe)
    body = {"name": "bad-model", "family": "image_classifier", "source": {"path": "/"}, "policy": {"samples": [rule]}}
    problem = refused(world.admin.post("/v1/models", json=body), 422, "invalid-input")
    assert problem["errors"][0]["field"].startswith("body.policy.samples.0")
    assert stored(world.lethe) == before


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_threshold_is_finite(world: World, value: str) -> None:
    rule = f'{{"metric": "retain_accuracy", "rule": "at_least", "value": {value}}}'
    body = (
        f'{{"name": "bad", "family": "image_classifier", "source": {{"path": "/"}}, "policy": {{"samples": [{rule}]}}}}'
    )
    before = stored(world.lethe)
    refused(
        world.admin.post("/v1/models", content=body, headers={"Content-Type": "application/json"}), 422, "invalid-input"
    )
    assert stored(world.lethe) == before


RECIPES: dict[str, tuple[str, str, str]] = {
    "too high": ('{"mask_fraction": 1.5}', "out-of-bounds", "recipe.mask_fraction"),
    "exclusive bound": ('{"mask_fraction": 0}', "out-of-bounds", "recipe.mask_fraction"),
    "too low": ('{"epochs": 0}', "out-of-bounds", "recipe.epochs"),
    "NaN": ('{"learning_rate": NaN}', "wrong-type", "recipe.learning_rate"),
    "infinity": ('{"learning_rate": Infinity}', "wrong-type", "recipe.learning_rate"),
    "overflow": ('{"learning_rate": 1e999}', "wrong-type", "recipe.learning_rate"),
    "text": ('{"learning_rate": "0.1"}', "wrong-type", "recipe.learning_rate"),
    "null": ('{"learning_rate": null}', "wrong-type", "recipe.learning_rate"),
    "bool as number": ('{"epochs": true}', "wrong-type", "recipe.epochs"),
    "bool as fraction": ('{"mask_fraction": true}', "wrong-type", "recipe.mask_fraction"),
    "number as bool": ('{"soft": 1}', "wrong-type", "recipe.soft"),
    "fraction as integer": ('{"epochs": 2.5}', "wrong-type", "recipe.epochs"),
    "huge integer": (f'{{"epochs": {10**400}}}', "out-of-bounds", "recipe.epochs"),
    "huge integer as number": (f'{{"learning_rate": {10**400}}}', "out-of-bounds", "recipe.learning_rate"),
    "list as choice": ('{"optimizer": ["sgd"]}', "out-of-bounds", "recipe.optimizer"),
    "unknown choice": ('{"optimizer": "lion"}', "out-of-bounds", "recipe.optimizer"),
    "unknown parameter": ('{"learning_rat": 1}', "unknown-parameter", "recipe.learning_rat"),
    "parameter with an odd name": ('{"Anna Smith": 1}', "unknown-parameter", "recipe"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes(world: World, case: str) -> None:
    recipe, code, field = RECIPES[case]
    body = f'{{"model": "digits", "method": "salun", "forget": {{"samples": ["0/0"]}}, "recipe": {recipe}}}'
    before = stored(world.lethe)
    answer = world.requester.post("/v1/requests", content=body, headers={"Content-Type": "application/json"})
    problem = refused(answer, 422, code, field)
    assert "Anna" not in json.dumps(problem) and "lion" not in json.dumps(problem)
    assert stored(world.lethe) == before


REQUESTS: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "model": ({"model": "nobody"}, 404, "not-found", "", "model"),
    "method": ({"method": "wishing"}, 422, "unknown-method", "method", "salun"),
    "label": ({"forget": {"class_label": "9"}}, 422, "unknown-label", "forget.class_label", "GET /v1/models"),
    "samples": ({"forget": {"samples": ["0/0", "nobody"]}}, 422, "unknown-samples", "forget.samples", "1 of 2"),
    "whole set that is not to be forgotten": (
        {"forget": {"dataset": "train-set"}},
        422,
        "not-a-forget-set",
        "forget.dataset",
        "role=forget",
    ),
    "reference": ({"reference": "nobody"}, 422, "unknown-reference", "reference", "same family"),
    "reference to itself": ({"reference": "digits"}, 422, "unknown-reference", "reference", "another"),
    "two ways": ({"forget": {"class_label": "1", "samples": ["0/0"]}}, 422, "invalid-input", "body.forget", "not both"),
    "no way": ({"forget": {}}, 422, "invalid-input", "body.forget", "give dataset"),
    "no samples": ({"forget": {"samples": []}}, 422, "invalid-input", "body.forget.samples", "at least 1"),
    "unknown field": ({"why": "x"}, 422, "invalid-input", "body.why", "not permitted"),
    "bool as seed": ({"seed": True}, 422, "invalid-input", "body.seed", "integer"),
    "text as seed": ({"seed": "1"}, 422, "invalid-input", "body.seed", "integer"),
    "huge seed": ({"seed": 2**53}, 422, "invalid-input", "body.seed", "less than"),
    "name as external id": ({"external_id": "Anna Smith"}, 422, "invalid-input", "body.external_id", "pattern"),
    "NUL": ({"model": "a\0b"}, 422, "invalid-input", "body.model", "NUL"),
    "lone surrogate": ({"model": "\ud800"}, 422, "invalid-input", "body.model", "Unicode"),
    "lone surrogate as concept": ({"concept": "\udfff"}, 422, "invalid-input", "body.concept", "Unicode"),
    "list as recipe": ({"recipe": [1]}, 422, "invalid-input", "body.recipe", "dictionary"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_requests(world: World, case: str) -> None:
    changes, status, code, field, said = REQUESTS[case]
    before = stored(world.lethe)
    problem = refused(ask(world.requester, **changes), status, code, field or None)
    assert said in problem["detail"]
    assert "Anna" not in json.dumps(problem) and "nobody" not in json.dumps(problem)
    assert stored(world.lethe) == before


def test_a_combination_that_does_not_exist_names_what_is_possible(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = replace(catalog.METHODS["salun"], families=("class_diffusion",))
    monkeypatch.setattr(catalog, "METHODS", {**catalog.METHODS, "salun": narrow})
    before = stored(world.lethe)
    problem = refused(ask(world.requester), 422, "impossible-combination", "method")
    _, possible = problem["detail"].split("Possible here: ")
    assert "finetune" in possible and "random_label" in possible and "salun" not in possible
    assert stored(world.lethe) == before


def test_forgetting_everything_is_refused(world: World) -> None:
    every = [each["id"] for each in world.admin.get("/v1/datasets/train-set/samples").json()["data"]]
    copy = forget_set(world.requester, body=pictures.imagefolder(seed=1))
    before = stored(world.lethe)
    for forget in ({"samples": every}, {"dataset": copy}):
        refused(ask(world.requester, forget=forget), 422, "nothing-retained", "forget")
    assert stored(world.lethe) == before
    assert register(world, "apart", world.directory, train="train-set", retain="test-set").status_code == 201
    before = stored(world.lethe)
    for forget in ({"samples": every}, {"dataset": copy}):
        refused(ask(world.requester, model="apart", forget=forget), 422, "whole-training-set", "forget")
    assert stored(world.lethe) == before


def test_labels_of_a_forget_set_that_the_model_has_not(world: World) -> None:
    named = forget_set(world.requester, ("Anna",))
    before = stored(world.lethe)
    problem = refused(ask(world.requester, forget={"dataset": named}), 422, "unknown-label", "forget")
    assert "Anna" not in json.dumps(problem) and "4 labels" in problem["detail"]
    assert stored(world.lethe) == before


def test_a_model_without_a_retain_set_forgets_nothing(world: World) -> None:
    assert register(world, "bare", world.directory).status_code == 201
    before = stored(world.lethe)
    refused(ask(world.requester, model="bare", forget={"class_label": "1"}), 422, "no-retain-set", "model")
    assert stored(world.lethe) == before


def test_without_a_key_or_its_scope(world: World) -> None:
    nobody = TestClient(create_app(world.lethe))
    upload = upload_model(world.admin, world.directory)
    before = stored(world.lethe)
    refused(ask(nobody), 401, "unauthorized")
    refused(upload_set(nobody, "train", "x"), 401, "unauthorized")
    body = {"name": "x", "family": "image_classifier", "source": {"upload": upload}}
    refused(world.requester.post("/v1/models", json=body), 403, "missing-scope")
    refused(world.requester.post("/v1/uploads", content=b"x", headers=ZIP), 403, "missing-scope")
    assert stored(world.lethe) == before


@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "field"),
    [
        (b"{", "application/json", 400, "not-json", "body"),
        (b"\xff\xfe\xfa", "application/json", 400, "not-json", "body"),
        (b"[" * 100_000, "application/json", 400, "not-json", "body"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "not-json", "body"),
        (b'{"model": "digits"}', "text/plain", 415, "unsupported-media-type", "Content-Type"),
        (b'{"model": "digits"}', "", 415, "unsupported-media-type", "Content-Type"),
        (b"model=digits", "application/x-www-form-urlencoded", 415, "unsupported-media-type", "Content-Type"),
        (b"", "application/json", 422, "invalid-input", "body"),
        (b"[]", "application/json", 422, "invalid-input", "body"),
        (b"null", "application/json", 422, "invalid-input", "body"),
        (b'"digits"', "application/json", 422, "invalid-input", "body"),
    ],
)
def test_bodies_that_are_no_request(world: World, body: bytes, kind: str, status: int, code: str, field: str) -> None:
    before = stored(world.lethe)
    refused(world.requester.post("/v1/requests", content=body, headers={"Content-Type": kind}), status, code, field)
    assert stored(world.lethe) == before


def test_a_body_in_memory_has_a_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.edge.JSON_BYTES", 1000)
    before = stored(world.lethe)
    headers = {"Content-Type": "application/json"}
    refused(world.requester.post("/v1/requests", content=b" " * 1001, headers=headers), 413, "too-large")
    refused(
        world.requester.post("/v1/requests", content=(b" " * 100 for _ in range(11)), headers=headers), 413, "too-large"
    )
    assert stored(world.lethe) == before


class FullAfter(LocalBlobs):
    """A disk with room for so many blobs more."""

    def __init__(self, root: Path, room: int) -> None:
        super().__init__(root)
        self.room = room

    def put(self, name: str, source: Any) -> int:
        self.room -= 1
        if self.room < 0:
            raise StorageFull(errno.ENOSPC, f"no room to store {name}")
        return super().put(name, source)


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_disk_keeps_nothing(world: World, room: int) -> None:
    upload = upload_model(world.admin, world.directory)
    before = stored(world.lethe)

    def client() -> TestClient:
        full = replace(world.lethe, blobs=FullAfter(world.lethe.blobs.root, room))
        return TestClient(create_app(full), headers=dict(world.admin.headers))

    refused(upload_set(client(), "train", "no-room"), 507, "storage-full")
    refused(upload_set(client(), "forget"), 507, "storage-full")
    body = {"name": "no-room", "family": "image_classifier", "source": {"upload": upload}}
    refused(client().post("/v1/models", json=body), 507, "storage-full")
    if room == 0:
        refused(client().post("/v1/uploads", content=packed(world.directory), headers=ZIP), 507, "storage-full")
    assert stored(world.lethe) == before
    assert world.admin.post("/v1/models", json=body | {"name": f"room-{room}"}).status_code == 201


def test_a_full_disk_under_the_keys_keeps_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = stored(world.lethe)
    with monkeypatch.context() as kernel:
        kernel.setattr(os, "fsync", no_room)
        refused(ask(world.requester), 507, "storage-full")
        refused(upload_set(world.requester, "forget"), 507, "storage-full")
    assert stored(world.lethe) == before


def test_a_damaged_store_is_a_fault_that_says_nothing(world: World, tmp_path: Path) -> None:
    made = register(world, "damaged", tiny.write("vit", tmp_path / "damaged", seed=9))
    world.lethe.blobs.delete(f"manifests/{made.json()['id']}")
    problem = refused(world.admin.get("/v1/models/damaged/checkpoints"), 500, "internal-error")
    assert "manifests" not in json.dumps(problem)


def test_a_database_that_does_not_answer_is_503(world: World) -> None:
    away = replace(world.lethe, store=type(world.lethe.store)("postgresql://nobody@127.0.0.1:9/none?connect_timeout=1"))
    client = TestClient(create_app(away), headers={"Authorization": f"Bearer {key_for(world.lethe)}"})
    for path in ("/v1/models", "/readyz"):
        answer = client.get(path)
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "5"
