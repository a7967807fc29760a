"""Idempotency-Key: the same POST is done once, whatever it makes, and answered from what it made."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import select, update

from app.records import job as jobs
from app.records import request as requests
from app.records.idempotency import IdempotencyKey
from app.sweeper import forget_idempotency_keys
from tests import pictures
from tests.app.api.deployed import (
    ZIP,
    World,
    add_version,
    ask,
    asked,
    forget_set,
    packed,
    refused,
    register,
    stored,
    upload_model,
)  # fmt: skip

BODY = {"model": "digits", "forget": {"samples": ["0/0", "1/1"]}, "concept": "anna"}


def keyed(key: str) -> dict[str, str]:
    return {"Idempotency-Key": key}


def rows(world: World) -> dict[str, int]:
    return {table: count for table, count in stored(world.lethe)[0].items() if table != "idempotency_keys"}


def repeated(world: World, post: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Send it twice: the second changes nothing and says that it is a repeated answer."""
    first = post()
    assert first.status_code < 300 and "idempotent-replayed" not in first.headers, first.text
    before = rows(world), stored(world.lethe)[1]
    second = post()
    assert (second.status_code, second.headers["idempotent-replayed"]) == (first.status_code, "true"), second.text
    assert (rows(world), stored(world.lethe)[1]) == before
    return first.json(), second.json()


def test_a_request_is_made_once_and_its_answer_is_rendered_anew(world: World) -> None:
    first, second = repeated(world, lambda: world.requester.post("/v1/requests", json=BODY, headers=keyed("r-1")))
    assert first == second and first["status"] == "queued"
    assert world.requester.post(f"/v1/requests/{first['id']}/cancel").status_code == 202
    third = world.requester.post(
        "/v1/requests", json=BODY, headers=keyed('"r-1"')
    )  # as a structured field: the same key
    assert third.status_code == 202 and (third.json()["id"], third.json()["status"]) == (first["id"], "cancelled")
    assert third.headers["location"] == f"/v1/requests/{first['id']}"


def test_a_key_is_refused_for_another_body_path_or_query(world: World) -> None:
    made = world.requester.post("/v1/requests", json=BODY, headers=keyed("r-2")).json()
    before = stored(world.lethe)
    others = (
        ("/v1/requests", {**BODY, "concept": "berta"}),
        (f"/v1/requests/{made['id']}/cancel", None),
        ("/v1/requests", {**BODY, "seed": 0}),
    )
    for path, body in others:
        answer = world.requester.post(path, json=body, headers=keyed("r-2"))
        refused(answer, 422, "idempotency-key-reused", "Idempotency-Key")
    assert stored(world.lethe) == before


def test_keys_of_two_callers_have_nothing_to_do_with_each_other(world: World) -> None:
    first = world.requester.post("/v1/requests", json=BODY, headers=keyed("r-3"))
    second = world.stranger.post("/v1/requests", json=BODY, headers=keyed("r-3"))
    assert first.json()["id"] != second.json()["id"] and "idempotent-replayed" not in second.headers


def test_a_refused_post_does_not_use_its_key_up(world: World) -> None:
    before = stored(world.lethe)
    refused(world.requester.post("/v1/requests", json={**BODY, "model": "absent"}, headers=keyed("r-4")), 404)
    assert stored(world.lethe) == before
    assert world.requester.post("/v1/requests", json=BODY, headers=keyed("r-4")).status_code == 202


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "\x7f"])
def test_what_is_no_key_is_refused(world: World, key: str) -> None:
    refused(world.requester.post("/v1/requests", json=BODY, headers=keyed(key)), 422, "invalid-input")
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused(world.requester.post("/v1/requests", json=BODY, headers=twice), 422, "invalid-input")


def test_data_sets_are_uploaded_once_also_those_to_forget(world: World) -> None:
    body = pictures.imagefolder(seed=77)

    def post(role: str, key: str, **name: str) -> Callable[[], Any]:
        return lambda: world.requester.post(
            "/v1/datasets", params={"role": role, **name}, content=body, headers={**ZIP, **keyed(key)}
        )

    first, second = repeated(world, post("train", "d-1", name="once"))
    assert first == second
    first, second = repeated(world, post("forget", "d-2"))
    assert first == second and first["sealed"]
    assert world.requester.delete(f"/v1/datasets/{first['id']}").status_code == 204
    assert post("forget", "d-2")().json()["purged_at"] is not None
    other = world.requester.post("/v1/datasets?role=forget", content=body + b"x", headers={**ZIP, **keyed("d-2")})
    refused(other, 422, "idempotency-key-reused")
    refused(post("train", "d-3", name="once")(), 409, "name-taken")


def test_a_model_and_its_upload_are_made_once(world: World) -> None:
    archive = packed(world.directory)
    first, second = repeated(
        world, lambda: world.admin.post("/v1/uploads", content=archive, headers={**ZIP, **keyed("u-1")})
    )
    assert first == second
    body = {"name": "made-once", "family": "image_classifier", "source": {"upload": first["id"]}}
    first, second = repeated(world, lambda: world.admin.post("/v1/models", json=body, headers=keyed("m-1")))
    assert first == second and first["name"] == "made-once"


def test_cancel_and_retry_are_done_once(world: World) -> None:
    made = asked(world.requester)
    path = f"/v1/requests/{made['id']}"
    first, second = repeated(world, lambda: world.requester.post(f"{path}/cancel", headers=keyed("c-1")))
    assert first == second and first["status"] == "cancelled"
    made = asked(world.requester)
    with world.lethe.store.write() as session:
        requests.move(session, made["id"], requests.Status.RUNNING, "test")
        requests.move(session, made["id"], requests.Status.FAILED, "test", "out_of_memory")
        session.execute(update(jobs.Job).where(jobs.Job.request_id == made["id"]).values(status="failed"))
    path = f"/v1/requests/{made['id']}/retry"
    first, second = repeated(world, lambda: world.requester.post(path, headers=keyed("t-1")))
    assert first == second and len(first["jobs"]) == 2


def test_a_rollback_is_done_once_and_tells_the_same_later(world: World, tmp_path: Any) -> None:
    register(world, "turning", world.directory)
    alias = "/v1/models/digits/aliases/turning"
    one, _ = add_version(world, tmp_path)
    two, _ = add_version(world, tmp_path)
    for number, held in ((one, {"If-None-Match": "*"}), (two, {"If-Match": "*"})):
        assert world.admin.put(alias, json={"version": number, "reason": "x"}, headers=held).status_code in (200, 201)
    held = {"If-Match": world.admin.get(alias).headers["etag"]}
    first, second = repeated(
        world, lambda: world.admin.post(f"{alias}/rollback", json={"reason": "y"}, headers={**held, **keyed("b-1")})
    )
    assert first == second and first["version"] == one
    assert world.admin.delete(alias, params={"reason": "z"}, headers={"If-Match": "*"}).status_code == 204
    third = world.admin.post(f"{alias}/rollback", json={"reason": "y"}, headers={**held, **keyed("b-1")})
    assert third.json() == first


def test_the_text_of_an_api_key_is_never_replayed(world: World) -> None:
    body = {"name": "script", "role": "requester"}
    first, second = repeated(world, lambda: world.admin.post("/v1/keys", json=body, headers=keyed("k-1")))
    assert first["key"].startswith("lethe_") and second == {**first, "key": None}
    path = f"/v1/keys/{first['id']}/rotate"
    rotated, again = repeated(world, lambda: world.admin.post(path, json={}, headers=keyed("k-2")))
    assert rotated["key"] != first["key"] and again == {**rotated, "key": None}
    bearer = {"Authorization": f"Bearer {rotated['key']}"}
    assert world.admin.get("/v1/models", headers=bearer).status_code == 200


def test_neither_key_nor_body_stands_in_the_database(world: World) -> None:
    made = forget_set(world.requester)
    document = {"model": "digits", "forget": {"dataset": made}, "concept": "anna smith 1984"}
    assert world.requester.post("/v1/requests", json=document, headers=keyed("anna-smith")).status_code == 202
    with world.lethe.store.read() as session:
        kept = [[str(each) for each in vars(row).values()] for row in session.scalars(select(IdempotencyKey))]
    assert kept and not [row for row in kept if "anna" in "".join(row)]
    bare = json.dumps(document).encode()
    guesses = {sha256(text).hexdigest() for text in (bare, b"anna-smith", b"/v1/requests?" + bare)}
    assert not [row for row in kept if guesses & set(row)]


def test_a_key_is_free_again_after_a_day_and_swept(world: World) -> None:
    first = world.requester.post("/v1/requests", json=BODY, headers=keyed("old")).json()
    with world.lethe.store.write() as session:
        session.execute(update(IdempotencyKey).values(created_at=IdempotencyKey.created_at - 86401))
    second = world.requester.post("/v1/requests", json=BODY, headers=keyed("old"))
    assert second.status_code == 202 and second.json()["id"] != first["id"]
    assert ask(world.requester).status_code == 202
    forget_idempotency_keys(world.lethe)
    with world.lethe.store.read() as session:
        assert len(list(session.scalars(select(IdempotencyKey)))) == 1


def test_twins_that_race_for_an_upload_and_a_name_get_one_answer(world: World) -> None:
    upload = upload_model(world.admin, world.directory)
    body = {"name": "raced", "family": "image_classifier", "source": {"upload": upload}}
    with ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(world.admin.post, "/v1/models", json=body, headers=keyed("race")) for _ in range(4)]
    answers = [post.result() for post in posts]
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
