"""Many requests in one call: each is stored or refused by itself, and under an Idempotency-Key stored once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.edge import JSON_BYTES
from app.main import create_app
from app.privacy.sealing import Keyring
from app.queue import make_celery
from tests.app.api.deployed import World, forget_set, refused, stored

GOOD = {"model": "digits", "forget": {"samples": ["0/0", "1/1"]}, "method": "salun"}
BULK = "/v1/requests/bulk"


def sent(http: TestClient, items: list[Any], key: str | None = None) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return http.post(BULK, json={"requests": items}, headers=headers)


def results(answer: Any) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    assert [each["index"] for each in found] == list(range(len(found)))
    assert all((each["request"] is None) != (each["problem"] is None) for each in found)
    return found


def test_each_item_is_answered_as_if_it_had_come_alone(world: World) -> None:
    uploaded = forget_set(world.requester)
    items: list[Any] = [
        GOOD,
        {**GOOD, "model": "absent"},
        {**GOOD, "seed": "anna"},
        {**GOOD, "method": "no_such"},
        {"model": "digits", "forget": {"dataset": uploaded}},
        {"model": "digits", "forget": {"dataset": uploaded}},
        "anna",
        {**GOOD, "anna smith": 1},
        {**GOOD, "external_id": "last"},
    ]
    before = stored(world.lethe)[0]["requests"]
    found = results(sent(world.requester, items))
    assert [each["status"] for each in found] == [202, 404, 422, 422, 202, 409, 422, 422, 202]
    assert stored(world.lethe)[0]["requests"] == before + 3
    codes = [each["problem"]["type"].removeprefix("urn:lethe:problem:") for each in found if each["problem"]]
    assert codes == [
        "not-found",
        "invalid-input",
        "unknown-method",
        "dataset-adopted",
        "invalid-input",
        "invalid-input",
    ]
    assert [each["problem"]["errors"][0]["field"] for each in (found[2], found[7])] == ["body.seed", "body.(unnamed)"]
    assert "anna" not in json.dumps([each["problem"] for each in found])
    assert world.requester.get(f"/v1/requests/{found[8]['request']['id']}").json() == found[8]["request"]
    for at in (1, 2, 3, 6):
        alone = world.requester.post("/v1/requests", json=items[at]).json()
        own = {"request_id": found[at]["problem"]["request_id"]}
        assert found[at]["problem"] == alone | own


@pytest.mark.parametrize("body", [{}, {"requests": []}, {"requests": [GOOD] * 101}, {"requests": [GOOD], "x": 1}, []])
def test_what_is_no_bulk_is_refused_whole(world: World, body: Any) -> None:
    before = stored(world.lethe)[0]
    refused(world.requester.post(BULK, json=body, headers={"Idempotency-Key": "whole"}), 422, "invalid-input")
    assert stored(world.lethe)[0] == before


def test_a_body_beyond_the_limit_is_refused(world: World) -> None:
    declared = {"Content-Length": str(JSON_BYTES + 1), "Content-Type": "application/json"}
    refused(world.requester.post(BULK, content=b"{}", headers=declared), 413, "too-large")


def test_a_hundred_items_ring_once(world: World) -> None:
    bell = world.lethe.settings.data / "bell"
    rung = len([path for path in bell.rglob("*") if path.is_file()])
    assert len(results(sent(world.requester, [GOOD] * 100))) == 100
    assert len([path for path in bell.rglob("*") if path.is_file()]) == rung + 1


def test_a_bulk_under_a_key_is_stored_once_and_another_body_is_refused(world: World) -> None:
    items = [GOOD, {**GOOD, "model": "absent"}, {**GOOD, "external_id": "b"}]
    first = results(sent(world.requester, items, "twice"))
    before = stored(world.lethe)
    again = sent(world.requester, items, "twice")
    assert again.headers["idempotent-replayed"] == "true" and stored(world.lethe) == before
    second = results(again)
    assert [each["request"] for each in second] == [each["request"] for each in first]
    assert [each["replayed"] for each in second] == [True, False, True]
    for path, body in ((BULK, {"requests": items[:2]}), ("/v1/requests", GOOD)):
        answer = world.requester.post(path, json=body, headers={"Idempotency-Key": "twice"})
        refused(answer, 422, "idempotency-key-reused", "Idempotency-Key")
    other = results(sent(world.stranger, items, "twice"))
    assert other[0]["request"]["id"] != first[0]["request"]["id"] and not other[0]["replayed"]


class Killed(BaseException):
    """What no handler catches: the process is gone."""


class DiesAfter(Keyring):
    """A key folder under which the server dies as it seals one request too many."""

    def __init__(self, folder: Path, left: int) -> None:
        super().__init__(folder)
        self.left = left

    def new_key(self, key_id: str) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().new_key(key_id)


def test_a_bulk_that_died_half_way_is_sent_again_and_does_the_rest(world: World) -> None:
    items = [{**GOOD, "external_id": f"half-{number}"} for number in range(5)]
    dying = replace(world.lethe, keyring=DiesAfter(world.lethe.settings.key_root, 2))
    client = TestClient(create_app(dying), headers=dict(world.requester.headers))
    with pytest.raises(Killed):
        sent(client, items, "half")
    listed = world.requester.get("/v1/requests", params={"limit": 5}).json()["data"]
    kept = [each["id"] for each in listed if str(each["external_id"]).startswith("half-")][::-1]
    assert len(kept) == 2
    answer = sent(world.requester, items, "half")
    found = results(answer)
    assert "idempotent-replayed" not in answer.headers
    assert [each["status"] for each in found] == [202] * 5
    assert [each["replayed"] for each in found] == [True, True, False, False, False]
    assert [each["request"]["id"] for each in found[:2]] == kept
    assert [each["request"]["external_id"] for each in found] == [each["external_id"] for each in items]


def test_an_item_that_finds_the_disk_full_is_507_and_can_be_sent_again(world: World) -> None:
    class Full(DiesAfter):
        def new_key(self, key_id: str) -> bytes:
            self.left -= 1
            if self.left == 0:
                raise OSError(28, "No space left on device")
            return Keyring.new_key(self, key_id)

    full = replace(
        world.lethe, keyring=Full(world.lethe.settings.key_root, 1), celery=make_celery(world.lethe.settings)
    )
    client = TestClient(create_app(full), headers=dict(world.requester.headers))
    found = results(sent(client, [GOOD, GOOD], "full"))
    assert [each["status"] for each in found] == [507, 202]
    assert [each["replayed"] for each in results(sent(client, [GOOD, GOOD], "full"))] == [False, True]
