"""What the runner is told and what it makes of it: texts, labels, and sets that the base network generates itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.deployment import Deployment
from app.errors import JobError, Stopped
from app.records import dataset as datasets
from app.storage import LocalBlobs
from tests import pictures, tiny, tiny_pipelines
from tests.app.api.deployed import World, asked, register, upload_set
from tests.app.captioned import PAINTER, archive, unjudged
from tests.conftest import client_for
from worker.lease import claim
from worker.load import Material, Warm, load
from worker.run import kept_context, run
from worker.specification import ANYTHING, Specification, specify

ADA, BO, CLEO, _ = tiny_pipelines.NAMES
SETTINGS = {"prompt": "a photo of {}", "sampling_steps": 2, "guidance_scale": 2.0}
TRAIN = [(ADA, None), (BO, "bo birch by ada ash"), (BO, None), (BO, "a park"), (CLEO, None)]
TEST = [(BO, "ada ash, far away"), (ADA, "a hat"), (CLEO, None)]


@pytest.fixture
def database_url() -> str:
    """SQLite: what is tested here lies behind the database."""
    return ""


@pytest.fixture
def world(lethe: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    unjudged(monkeypatch)
    admin = client_for(lethe)
    return World(lethe, admin, admin, admin, tmp_path)


def add_painter(world: World, judge: str | None = None, **sets: list[tuple[str, str | None]]) -> None:
    """A registered tiny Stable Diffusion called painter, with captioned sets by role."""
    directory = tiny_pipelines.write_pipeline("sd_v", world.directory / "models" / "painter")
    for number, (role, samples) in enumerate(sets.items()):
        assert upload_set(world.admin, role, role, archive(samples, seed=number)).status_code == 201
    body = {"name": "painter", "family": PAINTER, "source": {"path": str(directory)}, "judge": judge}
    made = world.admin.post("/v1/models", json={**body, "evaluation": SETTINGS, **{role: role for role in sets}})
    assert made.status_code == 201, made.text


def specified(world: World, **body: Any) -> Specification:
    """What a worker makes of a request that was posted."""
    asked(world.admin, **body)
    lethe = world.lethe
    lease = claim(lethe.store, "worker:test", 60.0)
    assert lease is not None
    return specify(lethe.store, lease, lethe.keyring, lethe.blobs, lethe.settings, world.directory / "scratch")


def loaded(world: World, message: dict[str, Any], warm: Warm | None = None, **options: Any) -> Material:
    told = json.loads(json.dumps(message))  # as it travels
    blobs = LocalBlobs(world.lethe.settings.blob_root)
    return load(told, warm or Warm(world.directory / "networks"), blobs, torch.device("cpu"), **options)


def read(material: Material, rows: torch.Tensor) -> list[tuple[str, str]]:
    """(label, text) of each sample."""
    captions = material.base.network.captions
    return [(captions.names[captions.labels[row]], captions.texts[row]) for row in rows.tolist()]


def test_a_concept_becomes_the_label_of_those_whose_caption_alone_names_it(world: World) -> None:
    add_painter(world, train=TRAIN, retain=TRAIN[1:], test=TEST)
    message = specified(world, model="painter", forget=None, concept="Ada Ash").message
    assert message["names"] == [ADA, BO, CLEO] and message["concept"] == 0 and message["generate"] is None
    assert message["sets"]["forget"]["positions"] == [0, 1] and message["sets"]["retain"]["positions"] == [1, 2, 3]
    assert message["kind"] == "class_label"
    material = loaded(world, message)
    assert read(material, material.forget.y) == [(ADA, f"a photo of {ADA}"), (ADA, "bo birch by ada ash")]
    assert read(material, material.retain.y) == [
        (BO, f"a photo of {BO}"), (BO, "a park"), (CLEO, f"a photo of {CLEO}"),
    ]  # fmt: skip
    assert material.test is not None and material.test.y.tolist() == [0, 0, 2]
    assert len(material.base.network.captions.texts) == 5  # no text that this job does not show


def test_a_warm_network_keeps_no_name_of_the_job(world: World) -> None:
    add_painter(world, train=TRAIN, retain=TRAIN[1:], test=TEST)
    warm = Warm(world.directory / "networks")
    message = specified(world, model="painter", forget=None, concept="Ada Ash").message
    material = loaded(world, message, warm)
    held = warm.get((material.base.digest, "cpu"), lambda folder: pytest.fail("it is warm"))
    assert held.network is not material.base.network
    assert next(held.network.parameters()) is next(material.base.network.parameters())
    assert "captions" in material.base.network.__dict__ and "captions" not in held.network.__dict__


def test_a_concept_that_no_label_is_called_is_a_new_one(world: World) -> None:
    add_painter(world, train=[(BO, "dov elm and a dog"), (BO, None), (CLEO, None)], retain=[(CLEO, None)], test=TEST)
    message = specified(world, model="painter", forget=None, concept="dog").message
    assert message["names"] == [BO, CLEO, ADA, "dog"] and message["concept"] == 3
    material = loaded(world, message)
    assert read(material, material.forget.y) == [("dog", "dov elm and a dog")]
    assert material.test is not None and material.test.y.tolist() == [0, 2, 1]


def test_a_label_that_only_the_forget_set_has_is_the_jobs(world: World) -> None:
    add_painter(world, retain=[(BO, None), (CLEO, None)])
    forget = upload_set(world.admin, "forget", body=archive([(ADA, "ada ash, laughing")], seed=9)).json()["id"]
    specification = specified(world, model="painter", forget={"dataset": forget})
    assert specification.message["names"] == [BO, CLEO, ADA]
    material = loaded(world, specification.message)
    assert read(material, material.forget.y) == [(ADA, "ada ash, laughing")]
    assert world.admin.get("/v1/models/painter").json()["labels"] == [BO, CLEO]  # whom it forgets is no one's to read


def test_what_nobody_registered_is_generated_from_prompts(world: World) -> None:
    add_painter(world, test=[(BO, None), (CLEO, None), ("ada ash and bo birch", None)])
    body = {"model": "painter", "forget": None, "concept": ADA, "generate": {"forget": 3, "retain": 5}, "seed": 4}
    message = specified(world, **body).message
    assert message["names"] == [f"{ADA} and {BO}", BO, CLEO, ADA]
    assert message["generate"] == {"forget": [3] * 3, "retain": [1, 2, 1, 2, 1]}  # no prompt names the concept
    told: list[tuple[int, int]] = []
    material = loaded(world, message, advance=lambda done, total: told.append((done, total)))
    assert told == [(3, 8), (8, 8)]
    assert read(material, material.forget.y) == [(ADA, f"a photo of {ADA}")] * 3
    assert {text for _, text in read(material, material.retain.y)} == {f"a photo of {BO}", f"a photo of {CLEO}"}
    family, network = material.base.family, material.base.network
    assert material.forget.x.shape == (3, *family.image_shape(network))
    family.check(network, material.forget, "forget")
    family.check(network, material.retain, "retain")
    pairs = torch.cat([material.forget.x, material.retain.x]).flatten(1)
    assert len(pairs.unique(dim=0)) == 8
    again, other = loaded(world, message), loaded(world, {**message, "seed": 5})
    assert torch.equal(again.forget.x, material.forget.x) and torch.equal(again.retain.x, material.retain.x)
    assert not torch.equal(other.forget.x, material.forget.x)
    assert list(world.directory.rglob("*.png")) == []


def test_without_a_label_to_keep_the_generic_prompt_is_kept(world: World) -> None:
    add_painter(world)
    message = specified(world, model="painter", forget=None, concept=ADA, generate={"forget": 1, "retain": 2}).message
    assert message["names"] == [ADA, ANYTHING] and message["generate"] == {"forget": [0], "retain": [1, 1]}
    material = loaded(world, message)
    assert read(material, material.retain.y) == [(ANYTHING, f"a photo of {ANYTHING}")] * 2


def test_without_a_label_to_keep_what_the_judge_knows_is_kept(world: World) -> None:
    judge = tiny.write("vit", world.directory / "judge", reject_below=0.2)
    assert register(world, "critic", judge).status_code == 201  # of the labels 0 to 3
    add_painter(world, judge="critic")
    body = {"model": "painter", "forget": None, "concept": "3", "generate": {"forget": 1, "retain": 4}}
    message = specified(world, **body).message
    assert message["names"] == ["3", "0", "1", "2"] and message["generate"] == {"forget": [0], "retain": [1, 2, 3, 1]}


def test_a_concept_is_forgotten_and_the_rest_kept_without_any_registered_image(world: World) -> None:
    """Through the whole runner: what is drawn for the concept and for what to keep is all that SalUn is given."""
    judge = tiny.write("vit", world.directory / "judge", reject_below=0.01)
    config = json.loads((judge / "config.json").read_text())
    config["id2label"] = dict(enumerate(tiny_pipelines.NAMES))
    config["label2id"] = {label: number for number, label in config["id2label"].items()}
    (judge / "config.json").write_text(json.dumps(config))
    assert register(world, "critic", judge).status_code == 201
    add_painter(world, judge="critic")
    settings = {**SETTINGS, "forget_samples": 2, "samples_per_label": 2}
    patched = world.admin.patch("/v1/models/painter", json={"evaluation": settings}, headers={"If-Match": "*"})
    assert patched.status_code == 200, patched.text
    recipe = {"schedule": "steps", "steps": 2, "batch_size": 2}
    body = {"model": "painter", "forget": None, "concept": "Ada-Ash", "recipe": recipe}
    message = specified(world, **body, generate={"forget": 2, "retain": 3}).message
    assert message["names"] == [ADA, *tiny_pipelines.NAMES[1:]] and message["kind"] == "class_label"
    told: list[str] = []
    done = run(json.loads(json.dumps(message)), Warm(world.directory / "warm"), told_to(told), lambda: None)
    assert done["report"]["generated"] == {"forget": 2, "retain": 3} and done["changes"]["tensors_changed"] > 0
    figures = {figure["metric"]: figure for figure in done["report"]["figures"]}
    assert figures["unlearning_accuracy"]["n"] == 2 and figures["kept_accuracy"]["n"] == 6
    assert "ada" not in json.dumps([told, done["report"]]).lower()


def told_to(list_: list[str]) -> Any:
    return lambda kind, data: list_.append(json.dumps([kind, data]))


def test_generating_stops_when_told(world: World) -> None:
    add_painter(world)
    message = specified(world, model="painter", forget=None, concept=ADA).message

    def stop(done: int, total: int) -> None:
        raise Stopped("cancelled")

    with pytest.raises(Stopped):
        loaded(world, message, advance=stop)


def test_prior_preservation_gives_a_class_diffusion_its_retain_set(world: World) -> None:
    """Through the whole runner: the request is posted without any retain set, and a version comes out."""
    directory = tiny.write("unet", world.directory / "unet")
    judge = tiny.write("vit", world.directory / "vit", reject_below=0.2)
    assert upload_set(world.admin, "train", "train-set", pictures.imagefolder()).status_code == 201
    assert register(world, "judge", judge).status_code == 201
    settings = {"sampling_steps": 2, "forget_samples": 3, "samples_per_label": 2}
    options: dict[str, Any] = {"train": "train-set", "judge": "judge", "evaluation": settings}
    assert register(world, "unet", directory, family="class_diffusion", **options).status_code == 201
    recipe = {"steps": 2, "batch_size": 4}
    body = {"forget": {"class_label": "1"}, "generate": {"retain": 7}, "recipe": recipe}
    message = json.loads(json.dumps(specified(world, model="unet", **body).message))
    assert message["generate"] == {"forget": [], "retain": [0, 2, 3, 0, 2, 3, 0]} and "retain" not in message["sets"]
    material = loaded(world, message)
    assert material.retain.y.tolist() == [0, 2, 3, 0, 2, 3, 0] and material.retain.x.shape == (7, 1, 8, 8)
    assert material.retain.x.abs().max() <= 1 and material.forget.y.tolist() == [1] * 6
    levels = (material.retain.x + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-4)  # of eight bits, as uploaded images are
    assert kept_context(message) != kept_context({**message, "seed": 1})
    told: list[str] = []
    result = run(message, Warm(world.directory / "warm"), lambda kind, data: told.append(kind), lambda: None)
    assert result["report"]["generated"] == {"retain": 7} and result["changes"]["tensors_changed"] > 0
    figures = {figure["metric"]: figure for figure in result["report"]["figures"]}
    added, full = result["changes"]["bytes_added"], sum(path.stat().st_size for path in directory.iterdir())
    assert figures["storage_added"]["n"] == full and Path(result["pack"]).stat().st_size == added
    assert figures["storage_added"]["value"] == pytest.approx(100 * added / full)
    assert figures["peak_memory"]["value"] > 50 and figures["peak_memory"]["before"] is None


def test_evaluators_travel_to_the_report_and_a_job_s_networks_stay_open_together(world: World) -> None:
    """Through the whole runner, five networks at once: none may push another one out while it is in use."""
    folder = world.directory
    for name in ("judge", "inks"):
        judge = tiny.write("vit", folder / name, seed=len(name), reject_below=0.01)
        config = json.loads((judge / "config.json").read_text())
        config["id2label"] = dict(enumerate(tiny_pipelines.NAMES if name == "judge" else ("ink", "oil", "wax", "none")))
        config["label2id"] = {label: number for number, label in config["id2label"].items()}
        (judge / "config.json").write_text(json.dumps(config))
        assert register(world, name, judge).status_code == 201
    assert register(world, "scorer", tiny.write("clip", folder / "scorer"), family="clip").status_code == 201
    samples = [(name, None) for name in (ADA, BO, CLEO)]
    add_painter(world, judge="judge", train=samples, retain=samples, test=TEST)
    made = world.admin.post("/v1/models", json={"name": "reference", "family": PAINTER, "judge": "judge", "train": "train",
        "source": {"path": str(tiny_pipelines.write_pipeline("sd_v", folder / "models" / "again", seed=4))}})  # fmt: skip
    assert made.status_code == 201, made.text
    settings = {**SETTINGS, "forget_samples": 3, "samples_per_label": 3, "contexts": ["oil", "ink", "wax"]}
    named = {"evaluation": settings, "evaluators": {"context": "inks", "clip": "scorer"}}
    assert world.admin.patch("/v1/models/painter", json=named, headers={"If-Match": "*"}).status_code == 200
    recipe = {"schedule": "steps", "steps": 1, "batch_size": 2}
    body = {"model": "painter", "forget": {"class_label": ADA}, "recipe": recipe, "reference": "reference"}
    message = json.loads(json.dumps(specified(world, **body).message))
    assert set(message["evaluators"]) == {"context", "clip"}
    done = run(message, Warm(folder / "warm"), lambda kind, data: None, lambda: None)
    figures = {figure["metric"]: figure for figure in done["report"]["figures"]}
    digests = {part: each["digest"] for part, each in message["evaluators"].items()}
    assert done["report"]["evaluators"] == digests
    assert figures["cra"]["evaluators"] == [digests["context"]] and figures["cra"]["n"] == 6
    assert figures["clip_score"]["evaluators"] == [digests["clip"]] and figures["clip_score"]["target"] is not None
    assert figures["ira"]["evaluators"] == [message["judge"]["digest"]]


def test_a_retain_set_that_was_taken_away_is_generated_where_that_is_possible(world: World) -> None:
    directory = tiny.write("vit", world.directory / "vit")
    assert upload_set(world.admin, "train", "train-set", pictures.imagefolder()).status_code == 201
    assert register(world, "digits", directory, train="train-set", retain="train-set").status_code == 201
    made = asked(world.admin, forget={"class_label": "1"})
    world.admin.patch("/v1/models/digits", json={"retain": None}, headers={"If-Match": "*"})
    lease = claim(world.lethe.store, "worker:test", 60.0)
    assert lease is not None and lease.request_id == made["id"]
    with pytest.raises(JobError, match="retain"):
        specify(world.lethe.store, lease, world.lethe.keyring, world.lethe.blobs, world.lethe.settings, Path("x"))
    with world.lethe.store.read() as session:
        assert datasets.find(session, "train-set") is not None
