"""Shadow networks on their way from a model's evaluation to the attack: which may be named, and who knew which image."""

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from app.deployment import Deployment
from app.records import model as models
from app.storage import LocalBlobs
from tests import pictures, tiny
from tests.app.api.deployed import World, asked, build, refused, register, upload_set
from worker import robustness
from worker.lease import claim
from worker.load import Material, Warm, load
from worker.specification import specify

NAMES = tuple(f"shadow-{number}" for number in range(4))
FIELD = "evaluation.attacks.likelihood_ratio.shadows"


@pytest.fixture
def database_url() -> str:
    """SQLite: what is tested here lies behind the database."""
    return ""


@pytest.fixture
def world(lethe: Deployment, tmp_path: Path) -> World:
    """`digits`, and four networks that each learned every other image of its training and test set."""
    world = build(lethe, tmp_path)
    for number, name in enumerate(NAMES):
        assert upload_set(world.admin, "train", f"{name}-half", half(number)).status_code == 201
        files = tiny.write("vit", tmp_path / name, seed=10 + number)
        made = register(world, name, files, train=f"{name}-half", retain=f"{name}-half")
        assert made.status_code == 201, made.text
    return world


def half(number: int) -> bytes:
    """Of the training images those whose place is like `number` in its last bit, of the test set those in the other; the
    files' names and order tell nothing."""
    content = {}
    for seed, bit in ((1, number % 2), (2, number // 2)):
        with zipfile.ZipFile(io.BytesIO(pictures.imagefolder(seed=seed))) as source:
            own = [name for name in source.namelist() if int(Path(name).stem) % 2 == bit]
            content |= {f"{name.split('/')[0]}/{seed}-{at}.png": source.read(name) for at, name in enumerate(own)}
    order, file = list(content), io.BytesIO()
    random.Random(number).shuffle(order)
    with zipfile.ZipFile(file, "w") as archive:
        for name in order:
            archive.writestr(name, content[name])
    return file.getvalue()


def naming(shadows: str) -> dict[str, Any]:
    return {"evaluation": {"attacks": {"likelihood_ratio": {"shadows": shadows}}}}


def patched(world: World, shadows: str) -> Any:
    return world.admin.patch("/v1/models/digits", json=naming(shadows), headers={"If-Match": "*"})


def specified(world: World, **body: Any) -> dict[str, Any]:
    asked(world.admin, **body)
    lethe = world.lethe
    lease = claim(lethe.store, "worker:test", 60.0)
    assert lease is not None
    told = specify(lethe.store, lease, lethe.keyring, lethe.blobs, lethe.settings, world.directory / "scratch").message
    message: dict[str, Any] = json.loads(json.dumps(told))  # as it travels
    return message


def loaded(world: World, message: dict[str, Any]) -> Material:
    blobs = LocalBlobs(world.lethe.settings.blob_root)
    return load(message, Warm(world.directory / "networks"), blobs, torch.device("cpu"))


def test_who_knew_which_image_follows_from_the_sets_pixels(world: World) -> None:
    assert patched(world, ", ".join(NAMES)).status_code == 200
    message = specified(world, forget={"samples": ["0/0", "1/1", "2/3", "3/4"]})
    bits = [(shadow["knows_forget"], shadow["knows_test"]) for shadow in message["shadows"]]
    for number, (forget, test) in enumerate(bits):
        assert forget == [at % 2 == number % 2 for at in (0, 1, 3, 4)]
        assert test == [at % 2 == number // 2 for _ in range(4) for at in range(6)]
    assert not {"name", "labels"} & set(message["shadows"][0])


def test_the_attack_is_made_with_the_networks_that_were_named(world: World) -> None:
    assert patched(world, ",".join(NAMES)).status_code == 200
    message = specified(world, forget={"samples": [f"{label}/{at}" for label in range(4) for at in range(4)]})
    material = loaded(world, message)
    opened = [shadow.open() for shadow in material.shadows]
    for number, network in enumerate(opened):
        own = tiny.opened("vit", world.directory / f"again-{number}", 10 + number)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), own.parameters(), strict=True))
    assert not list(material.scratch.glob("shadow*"))
    row = robustness.attack(
        message, material, material.base.network, None, "likelihood_ratio", lambda done, total: None
    )
    assert row["budget"] == {"shadows": 4, "members": 16, "unseen": 24} and row["n"] == 32
    assert row["sides"]["base"]["after"] == row["sides"]["unlearned"]["after"]


def test_a_label_that_is_forgotten_whole_is_not_among_the_unseen(world: World) -> None:
    assert patched(world, ",".join(NAMES)).status_code == 200
    message = specified(world, forget={"class_label": "2"})
    material = loaded(world, message)
    shadows = robustness.shadows_of(material, message)
    assert all(len(shadow.knows_unseen) == 18 and len(shadow.knows_forget) == 6 for shadow in shadows)
    row = robustness.attack(
        message, material, material.base.network, None, "likelihood_ratio", lambda done, total: None
    )
    assert row["budget"]["unseen"] == 18


@pytest.mark.parametrize(
    "shadows", ["", "shadow-0,shadow-1,shadow-2", "shadow-0,shadow-1,shadow-2,nobody", "shadow-0,shadow-0,shadow-1,shadow-2",
                "shadow-0,shadow-1,shadow-2,unlearned", "shadow-0,shadow-1,shadow-2,narrow"],
)  # fmt: skip
def test_too_few_or_unfit_shadows_are_refused_and_nothing_changes(world: World, shadows: str, tmp_path: Path) -> None:
    assert (
        register(world, "unlearned", tiny.write("vit", tmp_path / "no-set")).status_code == 201
    )  # without a train set
    assert register(world, "narrow", tiny.write("vit", tmp_path / "narrow", labels=3)).status_code == 201
    said = refused(patched(world, shadows), 422, "unknown-shadow", FIELD)
    assert "nobody" not in json.dumps(said)
    files = tiny.write("vit", tmp_path / "another")
    posted = register(world, "another", files, train="train-set", retain="train-set", **naming(shadows))
    refused(posted, 422, "unknown-shadow", FIELD)
    with world.lethe.store.read() as session:
        found = models.find(session, "digits")
        assert found is not None and found.evaluation == {} and models.find(session, "another") is None


def test_a_shadow_that_lost_its_train_set_tells_nothing_any_more(world: World) -> None:
    assert patched(world, ",".join(NAMES)).status_code == 200
    taken = world.admin.patch(f"/v1/models/{NAMES[1]}", json={"train": None}, headers={"If-Match": "*"})
    assert taken.status_code == 200
    message = specified(world)
    assert len(message["shadows"]) == 3
    material = loaded(world, message)
    row = robustness.attack(
        message, material, material.base.network, None, "likelihood_ratio", lambda done, total: None
    )
    assert row["value"] is None and "names 3" in row["reason"]
