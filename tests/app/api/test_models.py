"""/v1/models and /v1/uploads: registration, names, policies and changes."""

import json
import shutil
import threading
from pathlib import Path
from typing import Any, get_args

import pytest

from app import catalog, registration
from app.api import models as routes
from app.catalog.types import Rule
from app.records import dataset as datasets
from app.records import model as models
from app.records.base import new_id
from tests import pictures, tiny
from tests.app.api.deployed import (
    World,
    add_version,
    audited,
    forget_set,
    packed,
    refused,
    register,
    stored,
    upload_model,
    upload_set,
)


def test_a_model_answers_with_its_sets_labels_and_the_family_defaults(world: World) -> None:
    answer = world.requester.get("/v1/models/digits")
    model = answer.json()
    train = world.admin.get("/v1/datasets/train-set").json()["id"]
    assert (model["train"], model["retain"], model["judge"], model["head"]) == (train, train, None, 1)
    assert model["labels"] == ["0", "1", "2", "3"] and model["evaluation"] == {}
    defaults = catalog.FAMILIES["image_classifier"].default_policy
    assert model["policy"] == {kind: [vars(rule) for rule in rules] for kind, rules in defaults.items()}
    assert answer.headers["etag"] == '"1-1"'
    assert world.requester.get(f"/v1/models/{model['id']}").json() == model
    assert "digits" in [each["name"] for each in world.requester.get("/v1/models").json()["data"]]


def test_registering_uses_the_upload_up(world: World) -> None:
    upload = upload_model(world.admin, world.directory)
    body = {"name": "used-up", "family": "image_classifier", "source": {"upload": upload}}
    assert list(world.lethe.blobs.list("uploads/")) != []
    answer = world.admin.post("/v1/models", json=body)
    assert answer.status_code == 201 and answer.headers["location"] == "/v1/models/used-up"
    assert not world.lethe.blobs.exists(f"uploads/{upload}")
    rows, files = stored(world.lethe)
    assert rows["intents"] == 0 and not any(name.startswith("scratch/") for name in files)
    refused(world.admin.post("/v1/models", json=body | {"name": "again"}), 404, "not-found")


def test_an_upload_whose_content_is_refused_goes_at_once_and_one_whose_request_is_refused_stays(world: World) -> None:
    upload = upload_model(world.admin, world.directory)
    body = {"name": "digits", "family": "image_classifier", "source": {"upload": upload}}
    refused(world.admin.post("/v1/models", json=body), 409, "name-taken")
    refused(world.admin.post("/v1/models", json=body | {"name": "kept", "train": "no-such"}), 422, "unknown-dataset")
    assert world.lethe.blobs.exists(f"uploads/{upload}")
    wrong = body | {"name": "kept", "family": "clip"}
    answer = world.admin.post("/v1/models", json=wrong)
    problem = refused(answer, 422)
    assert not world.lethe.blobs.exists(f"uploads/{upload}") and stored(world.lethe)[0]["intents"] == 0
    (entry,) = audited(world, resource=upload, action="upload.refused")
    assert entry["details"] == {"code": problem["type"].rpartition(":")[2]}
    refused(world.admin.post("/v1/models", json=body | {"name": "kept"}), 404, "not-found")


def test_uploads_belong_to_their_key(world: World) -> None:
    upload = upload_model(world.admin, world.directory)
    other = world.admin.post("/v1/keys", json={"name": "other", "role": "admin"}).json()["key"]
    body = {"name": "stolen", "family": "image_classifier", "source": {"upload": upload}}
    refused(world.admin.post("/v1/models", json=body, headers={"Authorization": f"Bearer {other}"}), 404, "not-found")


def test_folders_under_the_roots_may_be_named_and_no_others(world: World, tmp_path: Path) -> None:
    root = world.lethe.settings.allowed_roots[0]
    shutil.copytree(world.directory, root / "local")
    body = {"name": "by-path", "family": "image_classifier", "source": {"path": str(root / "local")}}
    before = stored(world.lethe)
    (root / "link").symlink_to(world.directory)
    for path in (
        str(world.directory),
        str(root / ".." / "digits"),
        str(root / "link"),
        str(root / "absent"),
        "/",
        "",
        str(root / ("x" * 300)),
    ):
        refused(
            world.admin.post("/v1/models", json=body | {"source": {"path": path}}), 422, "path-refused", "source.path"
        )
    for source in ({}, {"path": str(root / "local"), "upload": "up_1"}):
        refused(world.admin.post("/v1/models", json=body | {"source": source}), 422, "source-missing", "source")
    assert stored(world.lethe) == before
    assert world.admin.post("/v1/models", json=body).status_code == 201
    assert (root / "local" / "config.json").exists()


def test_a_name_is_taken_once_and_is_never_another_models_id(world: World) -> None:
    model_id = world.admin.get("/v1/models/digits").json()["id"]
    for name in ("digits", model_id):
        refused(register(world, name, world.directory), 409, "name-taken")


def test_two_registrations_of_one_name_at_once_give_one_model(world: World) -> None:
    uploads = [upload_model(world.admin, world.directory) for _ in range(2)]
    statuses, barrier = [], threading.Barrier(2)

    def post(upload: str) -> None:
        barrier.wait()
        body = {"name": "racing", "family": "image_classifier", "source": {"upload": upload}}
        statuses.append(world.admin.post("/v1/models", json=body).status_code)

    threads = [threading.Thread(target=post, args=(upload,)) for upload in uploads]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201, 409]
    rows, files = stored(world.lethe)
    assert rows["intents"] == 0 and rows["checkpoints"] == len(
        [name for name in files if name.startswith("blobs/manifests/")]
    )


def test_a_top_folder_in_the_archive_is_stripped(world: World) -> None:
    files = {f"vit/{path.name}": path.read_bytes() for path in world.directory.iterdir()}
    assert register(world, "top-folder", files).status_code == 201
    listed = world.admin.get("/v1/models/top-folder/checkpoints/1").json()["files"]
    assert {file["path"] for file in listed} == {path.name for path in world.directory.iterdir()}


def test_label_names_come_from_the_config_and_sets_may_number_them(world: World) -> None:
    config = json.loads((world.directory / "config.json").read_text())
    config |= {
        "id2label": {str(at): name for at, name in enumerate("abcd")},
        "label2id": {name: at for at, name in enumerate("abcd")},
    }
    files = {path.name: path.read_bytes() for path in world.directory.iterdir()} | {
        "config.json": json.dumps(config).encode()
    }
    answer = register(world, "named", files, train="train-set")
    assert answer.status_code == 201 and answer.json()["labels"] == ["a", "b", "c", "d"]
    assert upload_set(world.admin, "test", "letters", pictures.imagefolder("ab", each=1)).status_code == 201
    etag = world.admin.get("/v1/models/named").headers["etag"]
    assert (
        world.admin.patch("/v1/models/named", json={"test": "letters"}, headers={"If-Match": etag}).status_code == 200
    )


def test_attacks_are_named_in_the_evaluation_and_held_to_the_policy(world: World) -> None:
    made = register(
        world,
        "attacked",
        world.directory,
        retain="train-set",
        evaluation={"attacks": {"membership_sweep": {}, "relearning": {"steps": 20}}},
        policy={"samples": [{"metric": "relearning", "rule": "at_most", "value": 50.0}]},
    )
    assert made.status_code == 201
    assert [each["field"] for each in made.json()["warnings"]] == ["policy.samples"]  # no figure shows forgetting
    attacks = made.json()["evaluation"]["attacks"]
    assert list(attacks) == ["relearning", "membership_sweep"] and attacks["membership_sweep"] == {}
    assert attacks["relearning"]["steps"] == 20 and attacks["relearning"]["images"] == 10
    body = {"evaluation": {}}
    patched = world.admin.patch("/v1/models/attacked", json=body, headers={"If-Match": made.headers["etag"]})
    assert patched.status_code == 200 and patched.json()["evaluation"] == {}


def test_a_generator_takes_a_judge_that_knows_its_labels(world: World, tmp_path: Path) -> None:
    unet = tiny.write("unet", tmp_path / "unet")
    narrow = tiny.write("vit", tmp_path / "narrow", labels=3)
    assert register(world, "narrow", narrow).status_code == 201
    settings = {"sampling_steps": 5, "guidance_scale": 3}
    options = {"family": "class_diffusion", "retain": "train-set", "evaluation": settings}
    refused(register(world, "painter", unet, judge="narrow", **options), 422, "judge-mismatch", "judge")
    refused(register(world, "painter", unet, judge="digits", **options), 422, "judge-never-rejects", "judge")
    judge = tiny.write("vit", tmp_path / "judge", reject_below=0.5)
    assert register(world, "judge", judge).status_code == 201
    answer = register(world, "painter", unet, judge="judge", **options)
    assert answer.status_code == 201
    assert (answer.json()["evaluation"]["sampling_steps"], answer.json()["evaluation"]["guidance_scale"]) == (5, 3.0)
    assert answer.json()["evaluation"]["forget_samples"] == 500
    refused(register(world, "painter-2", unet, judge="painter", **options), 422, "unknown-judge", "judge")
    refused(register(world, "painter-2", unet, judge="nobody", **options), 422, "unknown-judge", "judge")


FORGETS = [{"metric": "unlearning_accuracy", "rule": "at_least", "value": 90}]


def test_a_policy_may_hold_every_rule_of_the_catalogue(world: World, tmp_path: Path) -> None:
    lower = {"times_before_at_most": "gap_to_retrain"}
    rules = [{"metric": lower.get(rule, "retain_accuracy"), "rule": rule, "value": 1.0} for rule in get_args(Rule)]
    vit = tiny.write("vit", tmp_path / "vit")
    made = register(world, "ruled", vit, retain="train-set", policy={"class_label": rules})
    assert made.status_code == 201 and made.json()["policy"]["class_label"] == rules
    policy = {"class_label": [{"metric": "mia_auc", "rule": "share_of_before", "value": 0.5}]}
    change = world.admin.patch("/v1/models/ruled", json={"policy": policy}, headers={"If-Match": "*"})
    refused(change, 422, "impossible-combination", "policy.class_label[0].rule")


def test_a_figure_without_a_test_set_is_warned_of_until_there_is_one(world: World, tmp_path: Path) -> None:
    vit = tiny.write("vit", tmp_path / "vit")
    made = register(world, "untested", vit, retain="train-set")
    found = {each["field"]: each["n"] for each in made.json()["warnings"]}
    assert found == {"policy.samples[0]": 0, "policy.samples[1]": 0, "policy.samples[3]": 0}
    assert upload_set(world.admin, "test", "few-test", pictures.imagefolder(each=2)).status_code == 201
    path, any_version = "/v1/models/untested", {"If-Match": "*"}
    assert world.admin.patch(path, json={"test": "few-test"}, headers=any_version).json()["warnings"] == []
    policy = {"class_label": [*FORGETS, {"metric": "test_accuracy", "rule": "at_least", "value": 90}]}
    (warned,) = world.admin.patch(path, json={"policy": policy}, headers=any_version).json()["warnings"]
    assert (warned["field"], warned["n_needed"]) == ("policy.class_label[1]", 35) and 0 < warned["n"] < 35
    listed = {each["name"]: each["warnings"] for each in world.admin.get("/v1/models").json()["data"]}
    assert listed["untested"] == [warned]


def test_a_threshold_that_the_evaluation_cannot_show_is_named_and_not_refused(world: World, tmp_path: Path) -> None:
    judge = tiny.write("vit", tmp_path / "judge", reject_below=0.5)
    assert register(world, "sure-judge", judge).status_code == 201
    options = {"family": "class_diffusion", "retain": "train-set", "judge": "sure-judge"}
    unet = tiny.write("unet", tmp_path / "unet")
    made = register(world, "few", unet, evaluation={"forget_samples": 40}, **options)
    assert made.status_code == 201
    found = {each["field"]: (each["n"], each["n_needed"]) for each in made.json()["warnings"]}
    assert found == {"policy.class_label[0]": (40, 73)}
    assert all(each["rule"] and "forget_samples" in each["remedy"] for each in made.json()["warnings"])
    path, any_version = "/v1/models/few", {"If-Match": "*"}
    assert world.admin.get(path).json()["warnings"] == made.json()["warnings"]
    enough = world.admin.patch(path, json={"evaluation": {"forget_samples": 73}}, headers=any_version)
    assert enough.json()["warnings"] == []
    policy = {"class_label": [{"metric": "unlearning_accuracy", "rule": "at_least", "value": 99}]}
    (warned,) = world.admin.patch(path, json={"policy": policy}, headers=any_version).json()["warnings"]
    assert (warned["n"], warned["n_needed"]) == (73, 381)


def test_a_change_needs_the_present_etag_and_raises_it(world: World) -> None:
    assert register(world, "changing", world.directory, test="test-set").status_code == 201
    before = stored(world.lethe)
    path = "/v1/models/changing"
    refused(world.admin.patch(path, json={"test": None}), 428, "precondition-required", "If-Match")
    refused(world.admin.patch(path, json={"test": None}, headers={"If-Match": '"7"'}), 412, "precondition-failed")
    refused(world.admin.patch(path, json={}, headers={"If-Match": '"1-1"'}), 422, "empty-change", "body")
    refused(
        world.admin.patch(path, json={"name": "x"}, headers={"If-Match": '"1-1"'}), 422, "invalid-input", "body.name"
    )
    refused(
        world.admin.patch(path, json={"retain": "nothing"}, headers={"If-Match": '"1-1"'}),
        422,
        "unknown-dataset",
        "retain",
    )
    assert stored(world.lethe) == before
    policy = {"class_label": [{"metric": "retain_accuracy", "rule": "at_least", "value": 90}], "samples": []}
    changed = world.admin.patch(
        path, json={"test": None, "train": "train-set", "policy": policy}, headers={"If-Match": '"1-1"'}
    )
    assert changed.status_code == 200 and changed.headers["etag"] == '"2-1"'
    assert (changed.json()["test"], changed.json()["policy"]) == (None, policy) and changed.json()["train"] is not None
    refused(world.admin.patch(path, json={"test": None}, headers={"If-Match": '"1-1"'}), 412)
    assert world.admin.patch(path, json={"test": "test-set"}, headers={"If-Match": "*"}).status_code == 200
    entries = audited(world, action="model.changed")
    assert [entry["details"]["fields"] for entry in entries if entry["resource"] == changed.json()["id"]] == [
        ["policy", "test_id", "train_id"], ["test_id"]
    ]  # fmt: skip


def test_a_change_waits_for_the_one_before_and_then_is_too_late(world: World) -> None:
    assert register(world, "raced", world.directory).status_code == 201
    statuses: list[int] = []

    def patch() -> None:
        statuses.append(
            world.admin.patch("/v1/models/raced", json={"test": "test-set"}, headers={"If-Match": '"1-1"'}).status_code
        )

    thread = threading.Thread(target=patch)
    with world.lethe.store.write() as session:
        model = models.find(session, "raced")
        assert model is not None
        models.change(session, model, {"evaluation": {}}, "test")
        session.flush()
        thread.start()
        thread.join(timeout=0.7)  # it has checked all it can and waits for this transaction
        assert thread.is_alive()
    thread.join()
    assert statuses == [412] and world.admin.get("/v1/models/raced").json()["test"] is None


def test_a_forget_set_judges_no_model_and_another_s_is_as_unknown_as_none(world: World) -> None:
    sealed, foreign = forget_set(world.admin), forget_set(world.requester)
    refused(register(world, "sealed-judge", world.directory, retain=sealed), 422, "forget-set-refused", "retain")
    told = []
    for name in (foreign, new_id("ds")):
        answers = [
            register(world, "sealed-judge", world.directory, retain=name),
            world.admin.patch("/v1/models/digits", json={"retain": name}, headers={"If-Match": "*"}),
        ]
        told.append([refused(answer, 422, "unknown-dataset", "retain")["detail"] for answer in answers])
    assert told[0] == told[1]


def test_a_set_that_goes_while_a_model_is_checked_is_not_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its deletion comes between the check and the writing."""
    checked, packed_ = routes._changes, registration._pack_and_store

    def delete() -> None:
        assert world.admin.delete("/v1/datasets/leaving").status_code == 204

    def change(*told: Any) -> dict[str, Any]:
        found = checked(*told)
        delete()
        return found

    def pack(*told: Any) -> None:
        delete()
        packed_(*told)

    monkeypatch.setattr(routes, "_changes", change)
    monkeypatch.setattr(registration, "_pack_and_store", pack)
    for role in ("train", "retain", "test"):
        assert upload_set(world.admin, "train", "leaving").status_code == 201
        changed = world.admin.patch("/v1/models/digits", json={role: "leaving"}, headers={"If-Match": "*"})
        refused(changed, 422, "unknown-dataset", role)
    assert upload_set(world.admin, "retain", "leaving").status_code == 201
    refused(register(world, "left-alone", world.directory, retain="leaving"), 422, "unknown-dataset", "retain")
    assert world.admin.get("/v1/models/left-alone").status_code == 404
    assert stored(world.lethe)[0]["intents"] == 0


def test_a_set_whose_deletion_was_cut_off_is_not_named(world: World) -> None:
    assert upload_set(world.admin, "retain", "half-gone").status_code == 201
    with world.lethe.store.write() as session:
        found = datasets.find(session, "half-gone")
        assert found is not None and datasets.withdraw(session, found.id)
    refused(register(world, "half", world.directory, retain="half-gone"), 422, "unknown-dataset", "retain")
    changed = world.admin.patch("/v1/models/digits", json={"retain": "half-gone"}, headers={"If-Match": "*"})
    refused(changed, 422, "unknown-dataset", "retain")


def test_the_newest_released_version_is_the_head(world: World, tmp_path: Path) -> None:
    number, _ = add_version(world, tmp_path)
    assert world.requester.get("/v1/models/digits").json()["head"] == number
    listed = {each["name"]: each["head"] for each in world.requester.get("/v1/models?limit=200").json()["data"]}
    assert listed["digits"] == number


def test_models_are_paged(world: World) -> None:
    for number in range(3):
        assert register(world, f"page-{number}", packed_files(world)).status_code == 201
    seen, after = [], None
    while True:
        page = world.admin.get("/v1/models", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [each["id"] for each in page["data"]]
        after = page["next"]
        if not page["has_more"]:
            break
    assert len(seen) == len(set(seen)) >= 4 and seen == sorted(seen, reverse=True)


def packed_files(world: World) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in world.directory.iterdir()}


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "x" * 101, "ü"])
def test_names_are_plain(world: World, name: str) -> None:
    body = {"name": name, "family": "image_classifier", "source": {"path": "/"}}
    refused(world.admin.post("/v1/models", json=body), 422, "invalid-input", "body.name")


def test_an_upload_keeps_no_more_than_its_bytes(world: World) -> None:
    content = packed(world.directory)
    answer = world.admin.post("/v1/uploads", content=content, headers={"Content-Type": "application/zip"})
    assert answer.json()["bytes"] == len(content)
    with world.lethe.blobs.open(f"uploads/{answer.json()['id']}") as file:
        assert file.read() == content
    assert stored(world.lethe)[0]["intents"] == 0
