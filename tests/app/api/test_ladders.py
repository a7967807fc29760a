"""`method: auto` over HTTP: which ladder a request gets, what a model may name, and what of each rung is shown."""

from pathlib import Path
from typing import Any

import pytest

from app import catalog
from app.recipe import check_ladder
from app.records import job as jobs
from tests import reports
from tests.app.api.deployed import World, add_version, ask, asked, refused, register, stored

SHORT: list[dict[str, Any]] = [{"method": "slug"}, {"method": "salun", "recipe": {"epochs": 20}}]


def change(world: World, name: str, ladder: Any) -> Any:
    return world.admin.patch(f"/v1/models/{name}", json={"ladder": ladder}, headers={"If-Match": "*"})


def methods(request: dict[str, Any]) -> list[str]:
    return [rung["method"] for rung in request["ladder"]]


def miss(world: World, request: dict[str, Any]) -> str:
    """The request's newest job is claimed and misses the policy. Its id."""
    job_id = str(world.requester.get(f"/v1/requests/{request['id']}").json()["jobs"][-1]["id"])
    with world.lethe.store.write() as session:
        session.get_one(jobs.Job, job_id).deadline = -1.0  # nearest, so that it is the one that is claimed
    with world.lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.id == job_id
        jobs.write_as_holder(session, job.id, job.lease_token, unlearning_seconds=0.25)
        jobs.succeed(session, job.id, job.lease_token, "worker:test", False, {})
    return job_id


def test_auto_is_what_a_request_without_a_method_gets(world: World) -> None:
    body = {"model": "digits", "forget": {"samples": ["0/0"]}}
    made = world.requester.post("/v1/requests", json=body).json()
    default = [vars(rung) for rung in catalog.LADDERS["image_classifier"]["samples"]]
    assert (made["method"], made["ladder"]) == ("auto", check_ladder("image_classifier", default))
    (job,) = made["jobs"]
    assert (job["method"], job["rung"], job["retry"], job["status"]) == ("salun", 0, 0, "queued")
    whole = asked(world.requester, method="auto", forget={"class_label": "1"})
    assert methods(whole) == ["slug", "salun", "salun"]
    for each in (made, whole):
        world.requester.post(f"/v1/requests/{each['id']}/cancel")


def test_a_model_s_own_ladder_comes_first_and_null_takes_it_away(world: World) -> None:
    assert register(world, "own", world.directory, retain="train-set", ladder=SHORT).status_code == 201
    model = world.requester.get("/v1/models/own").json()
    assert [rung["method"] for rung in model["ladder"]] == ["slug", "salun"]
    assert model["ladder"][1]["recipe"]["epochs"] == 20 and model["ladder"][1]["recipe"]["mask_fraction"] == 0.5
    made = asked(world.requester, model="own", method="auto")
    assert made["ladder"] == model["ladder"]
    assert change(world, "own", None).json()["ladder"] is None
    assert methods(asked(world.requester, model="own", method="auto")) == ["salun", "salun"]
    kept = world.requester.get(f"/v1/requests/{made['id']}").json()
    assert kept["ladder"] == made["ladder"]


def test_the_catalogue_names_the_default_ladders(world: World) -> None:
    families = {each["name"]: each for each in world.requester.get("/v1/catalog").json()["families"]}
    assert families["clip"]["default_ladder"]["class_label"][-1] == {"method": "salun", "recipe": {"steps": 600}}


LADDERS: dict[str, tuple[Any, str, str]] = {
    "none at all": ([], "invalid-input", "body.ladder"),
    "nine": (
        [{"method": "salun", "recipe": {"epochs": each}} for each in range(1, 10)],
        "invalid-input",
        "body.ladder",
    ),
    "no list": ({"method": "salun"}, "invalid-input", "body.ladder"),
    "no method": ([{"recipe": {}}], "invalid-input", "body.ladder.0.method"),
    "another field": ([{"method": "salun", "why": 1}], "invalid-input", "body.ladder.0.why"),
    "unknown method": ([{"method": "salun"}, {"method": "wishing"}], "unknown-method", "ladder[1].method"),
    "auto": ([{"method": "auto"}], "unknown-method", "ladder[0].method"),
    "another family's": ([{"method": "uce"}], "impossible-combination", "ladder[0].method"),
    "unknown parameter": ([{"method": "salun", "recipe": {"speed": 1}}], "unknown-parameter", "ladder[0].recipe.speed"),
    "odd parameter": ([{"method": "salun", "recipe": {"Anna S": 1}}], "unknown-parameter", "ladder[0].recipe"),
    "out of bounds": ([{"method": "salun", "recipe": {"epochs": 0}}], "out-of-bounds", "ladder[0].recipe.epochs"),
    "the same twice": ([*SHORT, {"method": "slug", "recipe": {"tries": 12}}], "repeated-rung", "ladder[2]"),
}


@pytest.mark.parametrize("case", LADDERS)
def test_bad_ladders_are_refused_with_field_rule_and_remedy(world: World, case: str) -> None:
    ladder, code, field = LADDERS[case]
    before = stored(world.lethe)
    problem = refused(change(world, "digits", ladder), 422, code, field)
    assert "Anna" not in str(problem)
    body = {"name": "bad", "family": "image_classifier", "source": {"path": "/"}, "ladder": ladder}
    refused(world.admin.post("/v1/models", json=body), 422, code, field)
    assert stored(world.lethe) == before


def test_auto_takes_no_recipe(world: World) -> None:
    before = stored(world.lethe)
    problem = refused(
        ask(world.requester, method="auto", recipe={"epochs": 2}), 422, "impossible-combination", "recipe"
    )
    assert "Name a method" in problem["errors"][0]["remedy"]
    assert stored(world.lethe) == before
    problem = refused(ask(world.requester, method="wishing"), 422, "unknown-method", "method")
    assert "auto, salun" in problem["errors"][0]["remedy"]


def test_each_rung_is_shown_and_a_retry_climbs_what_the_model_has_by_then(world: World, tmp_path: Path) -> None:
    assert register(world, "climbed", world.directory, retain="train-set", ladder=SHORT).status_code == 201
    made = asked(world.requester, model="climbed", method="auto")
    first = miss(world, made)
    number, _ = add_version(
        world, tmp_path, report=reports.report(verdict="failed"), request_id=made["id"], job_id=first
    )
    shown = world.requester.get(f"/v1/requests/{made['id']}").json()
    assert (shown["status"], shown["reason"]) == ("queued", "next_rung")
    tried, waiting = shown["jobs"]
    assert (tried["method"], tried["verdict"], tried["version"], tried["unlearning_seconds"]) == (
        "slug",
        "failed",
        number,
        0.25,
    )
    assert tried["seconds"] >= 0 and (waiting["rung"], waiting["status"], waiting["seconds"]) == (1, "queued", None)
    job = world.requester.get(f"/v1/jobs/{waiting['id']}").json()
    assert (job["method"], job["rung"], job["recipe"]["epochs"]) == ("salun", 1, 20)
    (listed,) = world.requester.get("/v1/requests", params={"model": "climbed"}).json()["data"]
    assert listed == shown
    miss(world, made)
    ended = world.requester.get(f"/v1/requests/{made['id']}").json()
    assert (ended["status"], ended["reason"]) == ("evaluation_failed", "threshold_missed")
    assert change(world, "climbed", [{"method": "finetune"}]).status_code == 200
    again = world.requester.post(f"/v1/requests/{made['id']}/retry").json()
    assert methods(again) == ["finetune"]
    assert [(each["method"], each["retry"], each["rung"]) for each in again["jobs"]] == [
        ("slug", 0, 0),
        ("salun", 0, 1),
        ("finetune", 1, 0),
    ]


def test_a_retry_of_a_named_method_runs_the_same_again(world: World) -> None:
    assert register(world, "named", world.directory, retain="train-set").status_code == 201
    made = asked(world.requester, model="named", recipe={"epochs": 3})
    miss(world, made)
    change(world, "named", [{"method": "finetune"}])
    again = world.requester.post(f"/v1/requests/{made['id']}/retry").json()
    assert again["ladder"] == made["ladder"] and again["jobs"][1]["method"] == "salun"


def test_the_page_names_the_rung_that_made_the_version(world: World, tmp_path: Path) -> None:
    made = asked(world.requester, method="auto", forget={"class_label": "2"})
    first = miss(world, made)
    earlier = {
        "method": "slug",
        "version": 7,
        "verdict": "failed",
        "error": None,
        "unlearning_seconds": 1.5,
        "seconds": 4.0,
    }
    ladder = {"rung": 1, "rungs": 3, "method": "salun", "earlier": [earlier]}
    document = reports.of_a_generator(ladder=ladder)
    number, _ = add_version(world, tmp_path, report=document, request_id=made["id"], job_id=first)
    page = world.requester.get(f"/v1/models/digits/checkpoints/{number}/report.html").text
    assert "Rung 2 of 3: salun." in page and "slug: version 7 failed, 1.50 s unlearning, 4.00 s in all" in page
    assert "<dt>Method</dt><dd>slug, seed 0</dd>" in page  # of the job, not of the request, which says auto
