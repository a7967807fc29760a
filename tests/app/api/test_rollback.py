"""Rolling an alias back: whom it un-forgets is reopened, by a key that may, for a reason, and only as long as it lasts."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from app import sweeper
from app.records.api_key import ApiKey
from app.records.checkpoint import Status
from tests.app.api.deployed import World, audited, forgotten, refused, stored
from tests.app.api.test_aliases import at_once, place, put
from tests.conftest import client_for


@pytest.fixture
def owner(world: World) -> TestClient:
    """Of a key that may move aliases, and may not reopen requests."""
    client = client_for(world.lethe)
    key_id = client.headers["Authorization"].split("_")[1]
    with world.lethe.store.write() as session:
        key = session.get_one(ApiKey, key_id)
        key.scopes = [scope for scope in key.scopes if scope != "requests:reopen"]
    return client


def roll_back(client: TestClient, path: str, /, if_match: str = "*", **body: Any) -> Response:
    return client.post(path, json=body, headers={"If-Match": if_match})


def statuses(world: World, *request_ids: str) -> list[str]:
    return [world.admin.get(f"/v1/requests/{each}").json()["status"] for each in request_ids]


def served(world: World, model: str) -> tuple[str, list[str]]:
    """`production` moved from 1 over 2 to 3, as two requests completed. The path of its rollback, and the requests."""
    path, made = f"{place(world, model)}/production", []
    put(world, path, 1)
    for _ in range(2):
        number, request_id = forgotten(world, model)
        made.append(request_id)
        put(world, path, number, If_Match="*")
    return f"{path}/rollback", made


def test_behind_a_completed_request_it_is_reopened_and_the_head_stays(world: World) -> None:
    path, (first, second) = served(world, "undone")
    answer = roll_back(world.admin, path, reason="wrong answers since noon")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["version"], answer.json()["status"], answer.json()["reopened"]) == (2, "superseded", [second])
    reopened = world.admin.get(f"/v1/requests/{second}").json()
    assert (reopened["status"], reopened["reason"], reopened["finished_at"]) == ("reopened", "rolled_back", None)
    assert statuses(world, first) == ["completed"]
    assert world.admin.get("/v1/models/undone").json()["head"] == 3
    assert [each["id"] for each in world.admin.get("/v1/requests?status=reopened&model=undone").json()["data"]] == [
        second
    ]
    again = roll_back(world.admin, path, answer.headers["etag"], reason="still wrong").json()
    assert (again["version"], again["reopened"]) == (1, [first])  # back again, not forward to where it came from
    assert statuses(world, first, second) == ["reopened", "reopened"]
    moves = world.admin.get(path.replace("rollback", "history")).json()["data"][-2:]
    assert [(move["kind"], move["from_version"], move["to_version"], move["reopened"]) for move in moves] == [
        ("rolled_back", 3, 2, [second]), ("rolled_back", 2, 1, [first])
    ]  # fmt: skip
    entries = audited(world, request=second)
    assert entries[-1]["action"] == "request.reopened" and entries[-1]["actor"].startswith("key:")
    why = {"reason": "rolled_back", "alias": "production", "version": 2, "why": "wrong answers since noon"}
    assert entries[-1]["details"] == why


def test_a_reopened_request_is_purged_as_a_completed_one(world: World) -> None:
    path, (_, second) = served(world, "purged")
    roll_back(world.admin, path, reason="x")
    assert world.admin.get(f"/v1/requests/{second}").json()["forget_set_purged_at"] is None
    sweeper.purge_old_data(world.lethe)
    shown = world.admin.get(f"/v1/requests/{second}").json()
    assert shown["status"] == "reopened" and shown["forget_set_purged_at"] is not None


def test_it_is_completed_again_once_no_alias_lacks_it(world: World) -> None:
    path, (first, second) = served(world, "healed")
    alias, other = path.replace("/rollback", ""), path.replace("production/rollback", "canary")
    put(world, other, 3)
    roll_back(world.admin, path, reason="x", to_version=1)
    roll_back(world.admin, f"{other}/rollback", reason="x", to_version=2)
    assert statuses(world, first, second) == ["reopened", "reopened"]
    assert put(world, alias, 3, If_Match="*").status_code == 200
    assert statuses(world, first, second) == ["completed", "reopened"]  # the canary still remembers the second
    etag = world.admin.get(other).headers["etag"]
    assert world.admin.delete(other, params={"reason": "x"}, headers={"If-Match": etag}).status_code == 204
    assert statuses(world, first, second) == ["completed", "completed"]
    shown = world.admin.get(f"/v1/requests/{second}").json()
    assert shown["reason"] is None and shown["finished_at"] is not None


def test_without_the_scope_or_a_reason_nothing_moves(world: World, owner: TestClient) -> None:
    path, (first, second) = served(world, "guarded")
    before = stored(world.lethe)
    assert "requests:reopen" in refused(roll_back(owner, path, reason="x"), 403, "missing-scope")["detail"]
    for body in ({}, {"reason": ""}, {"to_version": 1, "reason": "  "}, {"to_version": "1", "reason": "x"}):
        refused(roll_back(world.admin, path, **body), 422, "invalid-input")
    refused(roll_back(world.admin, path, '"0-released"', reason="x"), 412)
    unheld = refused(world.admin.post(path, json={"reason": "x"}), 428, "precondition-required", "If-Match")
    assert "GET" in unheld["errors"][0]["remedy"]
    refused(roll_back(world.admin, path, reason="x", to_version=99), 404, "not-found")
    refused(roll_back(world.admin, path, reason="x", to_version=3), 409, "alias-there-already", "to_version")
    refused(roll_back(world.requester, path, reason="x"), 403, "missing-scope")
    assert stored(world.lethe) == before and statuses(world, first, second) == ["completed", "completed"]
    roll_back(world.admin, path, reason="x", to_version=1)  # reopened already, it still takes the scope
    refused(roll_back(owner, path, reason="x", to_version=2), 403, "missing-scope")


def test_a_rollback_that_forgets_nobody_less_takes_no_override(world: World, owner: TestClient) -> None:
    path = f"{place(world, 'ahead')}/production"
    number, request_id = forgotten(world, "ahead")
    put(world, path, number)
    refused(roll_back(owner, f"{path}/rollback", reason="x"), 409, "no-earlier-version", "alias")
    quarantined, _ = forgotten(world, "ahead", Status.QUARANTINED)
    refused(
        roll_back(world.admin, f"{path}/rollback", reason="x", to_version=quarantined),
        409, "version-quarantined", "to_version",
    )  # fmt: skip
    roll_back(world.admin, f"{path}/rollback", reason="x", to_version=1)
    answer = roll_back(owner, f"{path}/rollback", reason="x", to_version=number)
    assert (answer.status_code, answer.json()["reopened"]) == (200, [])
    assert statuses(world, request_id) == ["completed"]


def test_of_rollbacks_at_once_one_wins_and_each_request_is_reopened_once(world: World) -> None:
    path, (first, second) = served(world, "hasty")
    other = path.replace("production/rollback", "canary")
    put(world, other, 3)
    etag = world.admin.get(path.replace("/rollback", "")).headers["etag"]
    once = {"json": {"reason": "x"}, "headers": {"If-Match": etag}}
    assert at_once(*[lambda: world.admin.post(path, **once)] * 3) == [200, 412, 412]
    back: dict[str, Any] = {"json": {"reason": "x", "to_version": 1}, "headers": {"If-Match": "*"}}
    assert at_once(lambda: world.admin.post(path, **back), lambda: world.admin.post(f"{other}/rollback", **back)) == [
        200,
        200,
    ]
    assert statuses(world, first, second) == ["reopened", "reopened"]
    actions = [entry["action"] for entry in audited(world, request=first)]
    assert actions.count("request.reopened") == 1
