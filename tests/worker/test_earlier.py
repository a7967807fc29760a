"""What a worker finds of earlier requests: rules that were met, what can still be asked, and labels that are not kept."""

from pathlib import Path
from typing import Any

import pytest

from app.deployment import Deployment
from app.errors import Refused
from app.privacy import purge
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records import request as requests
from app.records.base import new_id
from app.records.checkpoint import Checkpoint, Status
from tests import pictures, reports, tiny, tiny_pipelines
from tests.app.api.deployed import World, register, upload_set
from tests.app.captioned import archive, unjudged
from tests.conftest import client_for
from tests.worker.test_load import BO, CLEO, TRAIN, add_painter, loaded, specified
from worker.specification import Specification

ADA, _, _, DOV = tiny_pipelines.NAMES
MET = {"threshold": {"rule": "at_least", "value": 95.0}, "passed": True}


@pytest.fixture
def database_url() -> str:
    """SQLite: what is tested here lies behind the database."""
    return ""


@pytest.fixture
def world(lethe: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    unjudged(monkeypatch)
    admin = client_for(lethe)
    return World(lethe, admin, admin, admin, tmp_path)


def completed(world: World, told: Specification, *figures: dict[str, Any]) -> str:
    """The claimed job ends as a worker ends it, with a version whose report holds these figures; the request's id."""
    lethe = world.lethe
    with lethe.store.write() as session:
        job = session.get_one(jobs.Job, told.message["job"])
        jobs.succeed(session, job.id, job.lease_token, "worker:test", True, {})
        parent = session.get_one(Checkpoint, told.parent_id)
        version = Checkpoint(
            id=new_id("ckpt"), model_id=job.model_id, parent_id=parent.id, request_id=job.request_id,
            status=Status.RELEASED, manifest=parent.manifest, digest=parent.digest, changes={}, report=reports.report(*figures),
        )  # fmt: skip
        checkpoints.add(session, version, "worker:test")
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, job.request_id, lethe.settings)
    return str(job.request_id)


def shown(value: float = 97.0, **rule: Any) -> dict[str, Any]:
    return reports.figure("unlearning_accuracy", value, **{"before": 3.0, **MET, **rule})


def ask(world: World, **body: Any) -> Specification:
    return specified(world, model="painter", **{"forget": None, **body})


def test_the_rules_on_forgetting_that_were_met_are_promised_and_no_others(world: World) -> None:
    add_painter(world, train=TRAIN, retain=TRAIN[1:])
    kept = reports.figure("kept_accuracy", 90.0, 95.0, **MET)
    missed = shown(90.0, passed=False, threshold={"rule": "at_least", "value": 99.0})
    others = [
        reports.figure(name, 97.0, 3.0, **MET)
        for name in ("reconstruction_distance_forget", "unlearning_accuracy_row_restored")
    ]
    beside = missed, kept, reports.figure("forget_rejected", 1.0), *others
    first = completed(world, ask(world, concept=ADA), shown(), *beside)
    (told,) = ask(world, concept=CLEO).message["promises"]
    held = {"value": 97.0, "before": 3.0, "threshold": MET["threshold"]}
    promised = "unlearning_accuracy", "reconstruction_distance_forget", "unlearning_accuracy_row_restored"
    assert told["rules"] == [{"metric": name, **held} for name in promised]
    assert (told["request"], told["kind"], told["probe"], told["reason"]) == (first, "class_label", "generated", None)
    assert told["names"][told["label"]] == ADA


def test_a_rule_that_every_network_meets_promises_nothing(world: World) -> None:
    """One that the base met alone does: it may have forgotten for an earlier request, whose key may be destroyed by now."""
    add_painter(world, train=TRAIN, retain=[*TRAIN[1:], (DOV, None)])
    completed(world, ask(world, concept=ADA), shown(threshold={"rule": "at_least", "value": 0.0}))
    completed(world, ask(world, concept=BO), shown(before=96.0))
    first, second = ask(world, concept=CLEO).message["promises"]
    assert [each["threshold"] for each in first["rules"]] == [None]
    assert [each["threshold"] for each in second["rules"]] == [MET["threshold"]]


def test_a_label_forgotten_before_is_neither_kept_nor_drawn_to_keep(world: World) -> None:
    add_painter(world, train=TRAIN)
    completed(world, ask(world, concept=ADA), shown())
    message = ask(world, concept=CLEO, generate={"retain": 6}).message
    names = message["names"]
    assert [names[number] for number in message["forgotten_before"]] == [ADA]
    assert {names[number] for number in message["generate"]["retain"]} == {BO}


def test_an_uploaded_set_is_asked_about_by_its_label_alone(world: World) -> None:
    add_painter(world, retain=[(BO, None), (CLEO, None)])
    forget = upload_set(world.admin, "forget", body=archive([(ADA, "ada ash, laughing")], seed=9)).json()["id"]
    completed(world, ask(world, forget={"dataset": forget}), shown())
    message = ask(world, concept=CLEO).message
    (told,) = message["promises"]
    assert (told["probe"], told["names"][told["label"]], "set" in told) == ("generated", ADA, False)
    assert message["names"] == [BO, CLEO] and message["forgotten_before"] == []  # it was a label of that job only


def test_what_met_no_rule_is_asked_again_and_binds_nothing(world: World) -> None:
    """Figures that need a test set or another network are asked again only where the policy was on them."""
    add_painter(world, train=TRAIN, retain=[*TRAIN[1:], (DOV, None)])
    missed = {"threshold": {"rule": "share_of_before", "value": 0.5}, "passed": False}
    gap = {**missed, "passed": None}
    beside = [reports.figure(name, 60.0, 70.0) for name in ("mia_auc", "gap_to_retrain")]
    first = completed(world, ask(world, concept=ADA), reports.figure("unlearning_accuracy", 40.0, 3.0), *beside)
    overruled = reports.figure("mia_auc", 60.0, 70.0, **missed), reports.figure("gap_to_retrain", None, **gap)
    second = completed(world, ask(world, concept=BO), shown(1.0, passed=False), *overruled)
    unruled, against_its_verdict = ask(world, concept=CLEO).message["promises"]
    asked: dict[str, Any] = {"metric": "unlearning_accuracy", "before": 3.0, "threshold": None}
    assert (unruled["request"], unruled["reason"], unruled["rules"]) == (first, None, [{**asked, "value": 40.0}])
    assert (against_its_verdict["request"], against_its_verdict["reason"]) == (second, None)
    assert against_its_verdict["rules"] == [
        {**asked, "value": 1.0},
        {"metric": "mia_auc", "value": 60.0, "before": 70.0, "threshold": None},
        {"metric": "gap_to_retrain", "value": None, "before": None, "threshold": None},
    ]


def test_a_destroyed_key_and_a_label_that_was_not_shown_to_be_gone_say_so(world: World) -> None:
    add_painter(world, train=TRAIN, retain=[*TRAIN[1:], (DOV, None)])
    first = completed(world, ask(world, concept=ADA), shown())
    second = completed(world, ask(world, concept=BO), shown(1.0, passed=False))
    world.lethe.keyring.destroy(first)
    told = ask(world, concept=CLEO).message
    assert [each["request"] for each in told["promises"]] == [first, second]
    assert [each["reason"] for each in told["promises"]] == ["key_destroyed", None]
    assert [told["names"][number] for number in told["forgotten_before"]] == [BO]  # asked for, though not shown


def test_a_reopened_request_is_still_a_promise(world: World) -> None:
    add_painter(world, train=TRAIN, retain=TRAIN[1:])
    first = completed(world, ask(world, concept=ADA), shown())
    with world.lethe.store.write() as session:
        requests.move(session, first, requests.Status.REOPENED, "test", "rolled_back")
    (told,) = ask(world, concept=CLEO).message["promises"]
    assert (told["request"], told["reason"]) == (first, None)


def test_a_quarantined_version_promises_nothing(world: World) -> None:
    add_painter(world, train=TRAIN, retain=TRAIN[1:])
    first = completed(world, ask(world, concept=ADA), shown())
    with world.lethe.store.write() as session:
        (version,) = checkpoints.of_request(session, first)
        version.status = Status.QUARANTINED
    assert ask(world, concept=CLEO).message["promises"] == []


def test_a_retain_set_of_labels_forgotten_before_leaves_nothing_to_keep(world: World) -> None:
    add_painter(world, train=TRAIN, retain=TRAIN[1:])
    completed(world, ask(world, concept=BO), shown())
    with pytest.raises(Refused, match="nothing would be left to keep"):
        ask(world, concept=CLEO)


def test_an_uploaded_set_that_its_retention_keeps_is_asked_about_with_its_own_images(world: World) -> None:
    lethe, admin = world.lethe, world.admin
    for role, seed in (("train", 1), ("test", 2)):
        assert upload_set(admin, role, role, pictures.imagefolder(seed=seed)).status_code == 201
    answer = register(
        world, "digits", tiny.write("vit", world.directory / "digits"), train="train", retain="train", test="test",
        retention={"completed_days": 7},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    forget = upload_set(admin, "forget", body=pictures.imagefolder([3], 3, seed=9)).json()["id"]
    completed(world, specified(world, model="digits", forget={"dataset": forget}), shown())
    told = specified(world, model="digits", forget={"class_label": "0"})
    (kept,) = told.message["promises"]
    assert (kept["probe"], kept["reason"], kept["set"]["positions"]) == ("samples", None, [0, 1, 2])
    (probe,) = loaded(world, told.message).probes
    assert probe.samples is not None and len(probe.samples.x) == 3
    lethe.blobs.delete(f"datasets/{forget}/images")  # its retention ends once the job was told of it
    (probe,) = loaded(world, told.message).probes
    assert (probe.samples, probe.told["reason"]) == (None, "forget_set_purged")
    lethe.keyring.destroy(forget)
    completed(world, told, shown())
    later = specified(world, model="digits", forget={"class_label": "1"}).message["promises"]
    assert [each["reason"] for each in later] == ["forget_set_purged", None]
