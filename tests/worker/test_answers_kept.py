"""Answer sets from job to job, as a supervisor and a runner keep them: what is reused, and what goes with its version."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app import sweeper
from app.deployment import Deployment
from app.named_erasure import erase_named
from app.privacy import label_figures, purge
from app.privacy.sealing import new_data_key
from app.records import checkpoint as checkpoints
from app.records import intent
from app.records import model as models
from app.records.checkpoint import Checkpoint
from app.report import IMAGES
from tests import markers, pictures, tiny
from tests.app.api.deployed import World, asked, register, upload_set
from tests.conftest import client_for
from tests.history import written
from worker import answer_set
from worker.answers import generator
from worker.evaluate import open_judge
from worker.lease import claim
from worker.load import Warm, load
from worker.register import keep_answers
from worker.register import register as register_result
from worker.run import run
from worker.specification import Specification, specify

MISSED = {"class_label": [{"metric": "kept_accuracy", "rule": "at_least", "value": 100.0}]}
EVALUATION = {"sampling_steps": 2, "forget_samples": 6, "samples_per_label": 2}


@pytest.fixture
def world(lethe: Deployment, tmp_path: Path) -> World:
    """A tiny generator of four labels with a judge, whose versions pass whatever they do."""
    admin = client_for(lethe)
    world = World(lethe, admin, admin, admin, tmp_path)
    for role, seed in (("train", 1), ("test", 2)):
        assert upload_set(admin, role, role, pictures.imagefolder(seed=seed)).status_code == 201
    assert register(world, "judge", tiny.write("vit", tmp_path / "judge", reject_below=0.2)).status_code == 201
    options: dict[str, Any] = {"train": "train", "retain": "train", "test": "test", "judge": "judge"}
    made = register(
        world, "unet", tiny.write("unet", tmp_path / "unet"), family="class_diffusion", evaluation=EVALUATION,
        policy={"class_label": []}, **options,
    )  # fmt: skip
    assert made.status_code == 201, made.text
    return world


def change(world: World, **values: Any) -> None:
    patched = world.admin.patch("/v1/models/unet", json=values, headers={"If-Match": "*"})
    assert patched.status_code == 200, patched.text


def attempt(world: World, label: int, **method: Any) -> tuple[Specification, dict[str, Any]]:
    """A request for a label up to its registration: what the runner was told and what it made."""
    method = method or {"recipe": {"steps": 2, "batch_size": 4}}
    asked(world.admin, model="unet", forget={"class_label": str(label)}, **method)
    lethe = world.lethe
    lease = claim(lethe.store, "worker:test", 60.0)
    assert lease is not None
    told = specify(lethe.store, lease, lethe.keyring, lethe.blobs, lethe.settings, world.directory / lease.job_id)
    message = json.loads(json.dumps(told.message))
    result = run(message, Warm(world.directory / "warm"), lambda kind, data: None, lambda: None)
    register_result(lethe.store, lethe.blobs, lethe.keyring, lease, told, json.loads(json.dumps(result)))
    return told, result


def forget(world: World, label: int) -> dict[str, tuple[int, int]]:
    """The same with what a supervisor does afterwards. What was drawn and what was reused, by side."""
    told, result = attempt(world, label)
    lethe = world.lethe
    purge.after_job(lethe.store, lethe.keyring, lethe.blobs, told.message["job"], lethe.settings)
    return {side: (each["drawn"], each["reused"]) for side, each in result["report"]["answers"].items()}


def versions(world: World) -> list[Checkpoint]:
    with world.lethe.store.read() as session:
        model = models.find(session, "unet")
        assert model is not None
        return checkpoints.of_model(session, model.id)


def stored(world: World, version: Checkpoint) -> tuple[bool, bool, bool]:
    """Whether row, store and keyring know of the version's answer set."""
    lethe = world.lethe
    blob = checkpoints.answers_blob(version.id)
    return version.answers == blob, lethe.blobs.exists(blob), lethe.keyring.exists(version.id)


ALL, NONE = (True, True, True), (False, False, False)


def test_tries_from_one_base_draw_it_once(world: World) -> None:
    """As a ladder of methods does, and whoever asks again after a version was quarantined; two labels, one base."""
    change(world, policy=MISSED)
    assert forget(world, 1) == {"base": (12, 0), "unlearned": (12, 0)}
    assert [stored(world, version) for version in versions(world)] == [ALL, NONE]  # a quarantined one is no base
    assert forget(world, 1) == {"base": (0, 12), "unlearned": (12, 0)}
    assert forget(world, 2) == {"base": (4, 8), "unlearned": (12, 0)}
    assert forget(world, 2) == {"base": (0, 12), "unlearned": (12, 0)}
    change(world, evaluation={**EVALUATION, "seed": 1})
    assert forget(world, 2)["base"] == (12, 0)


def test_a_chain_of_requests_never_draws_a_base_twice_and_keeps_none_that_remembers(world: World) -> None:
    assert forget(world, 1) == {"base": (12, 0), "unlearned": (12, 0)}
    assert [stored(world, version) for version in versions(world)] == [NONE, ALL]
    assert forget(world, 2) == {"base": (4, 8), "unlearned": (12, 0)}
    assert forget(world, 1)["base"] == (4, 8)
    assert [stored(world, version) for version in versions(world)] == [NONE, NONE, NONE, ALL]
    with world.lethe.store.read() as session:
        erased = [entry.resource for entry in written(session, action="answers.erased")]
    assert sorted(erased) == sorted(version.id for version in versions(world)[1:3])


def test_what_a_new_version_answered_is_what_it_answers_once_it_is_the_base(world: World) -> None:
    """Bit for bit: the network that was measured is the one that its files hold."""
    forget(world, 1)
    change(world, policy=MISSED)
    told, result = attempt(world, 3)
    assert result["report"]["answers"]["base"]["reused"] == 8
    material = load(told.message, Warm(world.directory / "again"), world.lethe.blobs, torch.device("cpu"))
    kept = answer_set.open_sets(told.message, material, world.lethe.blobs)["base"]
    assert {label: kept.count(label) for label in kept.rows} == {0: 2, 1: 6, 2: 2, 3: 6}
    fresh, settings = answer_set.AnswerSet(), {**told.message["evaluation"], "samples_per_label": 6}
    sets = {"forget": material.forget, "retain": material.retain, "test": None}
    base = material.base
    generator.ask(
        base.family, base.network, sets, "class_label", settings, open_judge(material), lambda *_: None, answered=fresh
    )
    for label, arrays in kept.rows.items():
        assert set(arrays) == {"probabilities", "features", "contexts", "pictures"}
        assert all(np.array_equal(array, fresh.rows[label][name][: len(array)]) for name, array in arrays.items())


def test_the_store_holds_them_sealed(world: World) -> None:
    change(world, policy=MISSED)
    told, _ = attempt(world, 1)
    with world.lethe.blobs.open(told.message["answers"]["base"]["blob"]) as file:
        raw = file.read()
    assert raw.startswith(b"LETHE-S1") and b"features" not in raw and b"PK" not in raw[:64]


def test_pictures_that_show_images_are_sealed_from_the_runner_on_and_go_with_their_version(world: World) -> None:
    lethe = world.lethe
    told, result = attempt(world, 1)
    first = versions(world)[-1]
    blob = f"{checkpoints.images_folder(first.id)}/grid.png"
    assert first.images == told.message["images"]["folder"] and result["report"]["verdict"] == "passed"
    with lethe.blobs.open(blob) as file:
        stored_bytes = file.read()
    assert Path(result["pictures"]["grid.png"]).read_bytes() == stored_bytes  # in scratch, too
    assert stored_bytes.startswith(b"LETHE-S1") and b"PNG" not in stored_bytes[:64]
    picture = "/v1/models/unet/checkpoints/2/pictures/grid.png"
    with Image.open(io.BytesIO(world.admin.get(picture).content)) as image:
        assert image.format == "PNG" and image.width > 2 * 8 * 8
    assert [name for name in lethe.blobs.list("pictures/") if name.endswith(IMAGES)] == []
    forget(world, 2)
    assert not lethe.blobs.exists(blob) and not lethe.keyring.exists(checkpoints.images_key(first.id))
    assert (
        world.admin.get(picture).status_code == 410
        and world.admin.get(picture.replace("/2/", "/3/")).status_code == 200
    )
    assert [bool(version.images) for version in versions(world)] == [False, False, True]


def test_the_sweeper_erases_what_a_worker_that_died_left_of_a_superseded_version(world: World) -> None:
    change(world, policy=MISSED)
    forget(world, 1)
    change(world, policy={"class_label": []})
    attempt(world, 1)  # registered, and then nothing more happens
    first = versions(world)[0]
    assert first.status == "superseded" and stored(world, first) == ALL
    sweeper.sweep(world.lethe)
    assert [stored(world, version) for version in versions(world)] == [NONE, NONE, ALL]


def test_a_set_whose_version_was_never_registered_goes_with_its_key(world: World) -> None:
    lethe, blob = world.lethe, checkpoints.answers_blob("ckpt_never")
    path = world.directory / "sealed"
    path.write_bytes(b"sealed")
    with lethe.store.write() as session:
        intent.declare(session, [blob], "job_gone", 1)
        session.get_one(intent.Intent, blob).created_at -= 2 * 86400
    keep_answers(lethe.blobs, lethe.keyring, {"blob": blob, "key": base64.b64encode(new_data_key()).decode()}, path)
    assert lethe.blobs.exists(blob) and lethe.keyring.exists("ckpt_never")
    sweeper.sweep(lethe)
    assert not lethe.blobs.exists(blob) and not lethe.keyring.exists("ckpt_never")
    assert path.exists()


def by_label(world: World, version: Checkpoint) -> set[str]:
    """The labels that the version's report has shares of, as an admin sees it."""
    report = world.admin.get(f"/v1/models/unet/checkpoints/{version.number}/report").json()
    assert label_figures.SEALED not in report
    return {label for row in report["figures"] for label in row.get("by_label") or ()}


def test_shares_by_label_lie_sealed_and_go_with_what_the_request_named(world: World) -> None:
    """They tell which label was forgotten. Of one that missed its policy by the purge, of a completed one by erase-request."""
    lethe, plain = world.lethe, {"in a row": b"'by_label': {", "in a file": b'"by_label": {'}
    change(world, policy=MISSED, retention={"failed_days": 1})
    forget(world, 1)
    (missed,) = versions(world)[1:]
    assert by_label(world, missed) == {"0", "1", "2", "3"}
    change(world, policy={"class_label": []}, retention={"failed_days": 0})
    forget(world, 1)
    completed = versions(world)[-1]
    sweeper.sweep(lethe)
    assert (by_label(world, missed), by_label(world, completed)) == (set(), {"0", "1", "2", "3"})
    assert markers.holding(markers.rows(lethe), plain) == set() and markers.search([lethe.settings.data], plain) == []
    assert completed.request_id is not None and erase_named(lethe, completed.request_id, "person_asked")
    assert by_label(world, completed) == set() and label_figures.SEALED not in versions(world)[-1].report


def test_a_report_of_before_loses_its_shares_by_label_with_what_the_request_named(world: World) -> None:
    forget(world, 1)
    with world.lethe.store.write() as session:
        version = session.get_one(Checkpoint, versions(world)[-1].id)
        version.report = label_figures.opened(world.lethe.keyring, version.request_id, version.report)
    assert by_label(world, versions(world)[-1]) and version.request_id is not None
    sweeper.sweep(world.lethe)
    assert erase_named(world.lethe, version.request_id, "person_asked")
    assert by_label(world, versions(world)[-1]) == set()


def test_a_lost_key_costs_a_second_drawing_and_nothing_more(world: World) -> None:
    change(world, policy=MISSED)
    forget(world, 1)
    world.lethe.keyring.destroy(versions(world)[0].id)
    assert forget(world, 1)["base"] == (12, 0)
    assert forget(world, 1)["base"] == (0, 12)


def test_an_unfit_judge_ends_a_ladder_at_its_first_rung(world: World) -> None:
    """This one rejects nothing, so no rung could meet a rule on what it judges."""
    ladder = [{"method": "salun", "recipe": {"steps": steps, "batch_size": 4}} for steps in (1, 2)]
    change(world, policy=MISSED, ladder=ladder)
    _, result = attempt(world, 1, method="auto")
    assert result["report"]["reasons"] == ["threshold_missed", "judge_unfit"]
    (request,) = world.admin.get("/v1/requests").json()["data"]
    assert (request["status"], request["reason"], len(request["jobs"])) == ("evaluation_failed", "judge_unfit", 1)
