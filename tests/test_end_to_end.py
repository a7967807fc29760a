"""From POST to a downloaded directory that opens with plain from_pretrained, on both deployments, as users do it."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from app.records import checkpoint as checkpoints
from app.records import model as models
from app.report import Report
from tests import pictures, tiny
from tests.app import captioned
from tests.app.test_report import beyond_the_schema
from tests.history import settle
from tests.running import Running, open_deployment, until

ATTACKS: dict[str, Any] = {"relearning": {"steps": 2, "measured": 2}, "quantised_copies": {"measured": 2}}


@pytest.fixture(scope="module", params=["embedded", "production"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp(request.param)
    deployment = open_deployment(request, request.param, folder / "lethe")
    try:
        deployment.start("server", "gpu")
        deployment.add_classifier(folder)
        yield deployment
    finally:
        deployment.stop()


def test_samples_are_forgotten_and_the_weights_come_back(running: Running, tmp_path: Path) -> None:
    client = running.client
    ids = [sample["id"] for sample in client.pages("/v1/datasets/digits-train/samples")][:5]
    posted = client.request("digits", {"samples": ids}, method="salun", recipe={"epochs": 2}, concept="five of them")
    kinds: list[str] = []
    done = client.wait(posted["id"], lambda event: kinds.append(event["data"].get("stage") or event["kind"]))
    assert done["status"] == "completed" and done["concept"] == "five of them" and done["forget_count"] == 5
    stages = [kind for kind in kinds if kind not in ("progress", "note")]
    assert stages == ["loading", "unlearning", "evaluating", "registering"]
    report = client.report("digits", done["checkpoint"])
    assert beyond_the_schema(Report.model_validate(report)) == []
    by_name = {figure["name"]: figure for figure in report["figures"]}
    assert by_name["unlearning_accuracy"]["n"] == 5 and report["verdict"] == "passed"
    assert [report["losses"][name]["steps"] for name in ("forget_loss", "retain_loss")] == [[1, 3], [2, 4]]
    assert all(value > 0 for curve in report["losses"].values() for value in curve["values"])
    assert report["pictures"] == ["losses.png"]
    assert client.picture("digits", done["checkpoint"], "losses.png").startswith(b"\x89PNG")
    assert b"own losses while it trained" in client.report_page("digits", done["checkpoint"])
    pulled = client.pull("digits", done["checkpoint"], tmp_path / "pulled")
    network = AutoModelForImageClassification.from_pretrained(pulled)
    base = client.pull("digits", 1, tmp_path / "base", reason="a test compares it")
    before, after = load_file(base / "model.safetensors"), load_file(pulled / "model.safetensors")
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    total = sum(tensor.numel() for tensor in before.values())
    assert 0 < changed <= total // 2
    assert torch.equal(network.state_dict()["classifier.weight"], after["classifier.weight"])


def test_an_uploaded_set_is_forgotten_then_gone(running: Running, tmp_path: Path) -> None:
    client = running.client
    directory = tiny.write("unet", tmp_path / "unet")
    judge = tiny.write("vit", tmp_path / "judge", reject_below=0.2)
    name = "generator"
    client.upload_dataset(pictures.imagefolder(seed=3), "retain", f"{name}-retain")
    client.upload_dataset(pictures.imagefolder(seed=4), "test", f"{name}-test")
    client.register_model(judge, f"{name}-judge", "image_classifier")
    client.register_model(
        directory, name, "class_diffusion", retain=f"{name}-retain", test=f"{name}-test", judge=f"{name}-judge",
        evaluation={"sampling_steps": 2, "forget_samples": 4, "samples_per_label": 2, "attacks": ATTACKS},
        policy={"class_label": []},
    )  # fmt: skip
    forget = client.upload_dataset(pictures.imagefolder([2], 3, seed=5), "forget")
    assert forget["labels"] == [] and forget["sealed"]
    done = client.wait(
        client.request(name, {"dataset": forget["id"]}, method="salun", recipe={"steps": 2, "batch_size": 4})["id"]
    )
    assert done["status"] == "completed"
    until(lambda: not running.lethe.keyring.exists(forget["id"]), "the key is destroyed")
    until(lambda: not running.lethe.blobs.exists(f"datasets/{forget['id']}/images"), "the bytes are deleted")
    UNet2DModel.from_pretrained(client.pull(name, 2, tmp_path / "pulled"))
    assert client.picture(name, 2, "grid.png").startswith(b"\x89PNG")
    assert client.picture(name, 2, "relearning.png").startswith(b"\x89PNG")
    attacks = {row["attack"]: row for row in client.report(name, 2)["attacks"]}
    assert (
        set(attacks) == set(ATTACKS) and attacks["relearning"]["n"] == 2 == attacks["relearning"]["settings"]["steps"]
    )
    client.call("PATCH", f"/v1/models/{name}", json={"retain": None}, headers={"If-Match": "*"})
    forget = client.upload_dataset(pictures.imagefolder([1], 3, seed=6), "forget")
    recipe = {"steps": 2, "batch_size": 4}
    posted = client.request(name, {"dataset": forget["id"]}, method="salun", recipe=recipe, generate={"retain": 4})
    assert posted["forget_source"] == "uploaded" and client.wait(posted["id"])["status"] == "completed"
    assert client.report(name, 3)["generated"] == {"retain": 4}  # the base's own images were what it kept


def test_a_second_request_reuses_what_the_first_one_s_version_answered(running: Running, tmp_path: Path) -> None:
    """Across runners, sealed, and no longer than the version is the base."""
    client, name, evaluation = (
        running.client,
        "asked",
        {"sampling_steps": 2, "forget_samples": 5, "samples_per_label": 3},
    )
    sets = {role: f"{name}-{role}" for role in ("train", "test")}
    for seed, (role, set_name) in enumerate(sets.items()):
        client.upload_dataset(pictures.imagefolder(seed=seed), role, set_name)
    client.register_model(tiny.write("vit", tmp_path / "judge", reject_below=0.2), f"{name}-judge", "image_classifier")
    client.register_model(
        tiny.write("unet", tmp_path / "unet"), name, "class_diffusion", **sets, retain=sets["train"],
        judge=f"{name}-judge", evaluation=evaluation, policy={"class_label": []},
    )  # fmt: skip
    asked, recipe = [], {"steps": 2, "batch_size": 4}
    for label in ("1", "2"):
        done = client.wait(client.request(name, {"class_label": label}, method="salun", recipe=recipe)["id"])
        assert done["status"] == "completed"
        asked.append(client.report(name, done["checkpoint"])["answers"])
        running.kill_runner("gpu")
    fresh = {"digest": None, "drawn": 14, "reused": 0}
    assert (asked[0]["base"]["drawn"], asked[0]["base"]["reused"], asked[0]["unlearned"]) == (14, 0, fresh)
    assert (asked[1]["base"]["drawn"], asked[1]["base"]["reused"], asked[1]["unlearned"]) == (2, 12, fresh)
    with running.lethe.store.read() as session:
        model = models.find(session, name)
        assert model is not None
        ids = [version.id for version in checkpoints.of_model(session, model.id)]
    folder = running.settings.blob_root / "answers"
    until(lambda: [each for each in ids if (folder / each).exists()] == ids[2:], "earlier versions' answers are gone")
    assert [each for each in ids if running.lethe.keyring.exists(each)] == ids[2:]


def test_versions_form_a_line_and_a_second_request_starts_at_the_head(running: Running) -> None:
    client = running.client
    first = client.wait(client.request("digits", {"class_label": "0"}, method="salun", recipe={"epochs": 1})["id"])
    second = client.wait(client.request("digits", {"class_label": "1"}, method="salun", recipe={"epochs": 1})["id"])
    versions = list(client.pages("/v1/models/digits/checkpoints"))
    assert [version["number"] for version in versions] == list(range(1, len(versions) + 1))
    assert [version["parent"] for version in versions] == [None, *range(1, len(versions))]
    assert versions[-1]["request"] == second["id"] and versions[-2]["request"] == first["id"]
    assert [version["status"] for version in versions] == ["superseded"] * (len(versions) - 1) + ["released"]


def test_a_damaged_checkpoint_fails_the_job_with_a_code(running: Running, tmp_path: Path) -> None:
    client = running.client
    running.add_classifier(tmp_path, name="damaged", network="resnet")  # not yet warm in the runner
    model = client.call("GET", "/v1/models/damaged")
    pack = running.settings.blob_root / "packs" / model["id"]
    content = bytearray(pack.read_bytes())
    content[-1] ^= 1
    pack.write_bytes(content)
    done = client.wait(client.request("damaged", {"class_label": "0"}, method="salun", recipe={"epochs": 1})["id"])
    assert (done["status"], done["reason"], done["checkpoint"]) == ("failed", "checkpoint_damaged", None)
    assert client.call("GET", "/v1/models/damaged")["head"] == 1


def test_a_later_request_never_trains_on_what_an_earlier_one_forgot(running: Running, tmp_path: Path) -> None:
    """Four labels, forgotten one after the other: the last leaves nothing to keep, and says so instead of re-teaching."""
    client = running.client
    running.add_classifier(tmp_path, name="shrinking")
    for label, ending in enumerate([("completed", None)] * 3 + [("failed", "nothing_retained")]):
        wish = {"class_label": str(label)}
        done = client.wait(client.request("shrinking", wish, method="salun", recipe={"epochs": 1})["id"])
        assert (done["status"], done["reason"]) == ending


def test_a_concept_alone_is_forgotten_by_a_network_of_words(running: Running, tmp_path: Path) -> None:
    """First what registered captions say, then an uploaded person whose name, caption and folder are in no file after it."""
    client, recipe = running.client, {"schedule": "steps", "steps": 2, "batch_size": 4}
    album = [("park", "anna reads"), ("park", "a bench"), ("street", "a car"), ("street", "anna again"), ("park", None)]
    for role in ("retain", "test"):
        client.upload_dataset(captioned.archive(album, seed=len(role)), role, f"album-{role}")
    sets = {"retain": "album-retain", "test": "album-test", "policy": {"class_label": []}}
    made = client.register_model(tiny.write("clip", tmp_path / "clip"), "words", "clip", **sets)
    assert made["labels"] == ["park", "street"]
    posted = client.request("words", concept="Anna", method="salun", recipe=recipe)
    assert (posted["forget_kind"], posted["forget_count"], posted["forget_source"]) == ("concept", 2, "registered")
    assert client.preview(posted["id"]).startswith(b"\x89PNG")
    assert client.wait(posted["id"])["status"] == "completed"
    markers = [b"marvin-folder", b"marvin in the rain", b"marvin-concept"]
    person = captioned.archive([("marvin-folder", "marvin in the rain"), ("marvin-folder", None)], seed=9)
    forget = client.upload_dataset(person, "forget")
    posted = client.request("words", {"dataset": forget["id"]}, concept="marvin-concept", method="salun", recipe=recipe)
    for _ in range(2):
        assert [path for path in running.settings.data.rglob("*") if path.is_file() and holds(path, markers)] == []
        assert client.wait(posted["id"])["status"] == "completed"
    assert client.call("GET", "/v1/models/words")["labels"] == ["park", "street"]
    settle(running.lethe.store)
    text = json.dumps([*client.pages("/v1/audit"), client.report("words", 3), client.report("words", 2)])
    assert "marvin" not in text and "anna" not in text.lower()


def test_nothing_of_the_person_stays_in_the_clear(running: Running, tmp_path: Path) -> None:
    """Markers in a forget set's file name, in its bytes and in the concept are in no file, before and after the job."""
    client, picture = running.client, pictures.png(12345, size=16)
    running.add_classifier(tmp_path, name="private")
    archive = tmp_path / "forget.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("1/zaphod-beeblebrox.png", picture)
    forget = client.upload_dataset(archive, "forget")
    posted = client.request(
        "private", {"dataset": forget["id"]}, concept="ford-prefect", method="salun", recipe={"epochs": 1}
    )
    pixels = np.asarray(Image.open(io.BytesIO(picture))).tobytes()
    markers = [b"zaphod-beeblebrox", b"ford-prefect", picture[-60:-20], pixels[:40]]
    for _ in range(2):
        found = [path for path in running.settings.data.rglob("*") if path.is_file() and holds(path, markers)]
        assert found == []
        assert client.wait(posted["id"])["status"] == "completed"
    settle(running.lethe.store)
    text = json.dumps(list(client.pages("/v1/audit"))) + json.dumps(client.report("private", 2))
    assert "zaphod" not in text and "ford-prefect" not in text


def holds(path: Path, markers: list[bytes]) -> bool:
    try:
        content = path.read_bytes()
    except FileNotFoundError:  # the worker's scratch comes and goes
        return False
    return any(marker in content for marker in markers)
