"""API keys: scopes chosen at issue, roles that are named sets of them, two live secrets after a rotation."""

from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from sqlalchemy import update

from app.api.keys import Role
from app.records.api_key import ROLES, SCOPES, ApiKey
from tests.app.api.deployed import World, refused, stored


def make(world: World, by: str | None = None, **body: Any) -> Any:
    headers = {"Authorization": f"Bearer {by}"} if by else {}
    return world.admin.post("/v1/keys", json={"name": "test", **body}, headers=headers)


def opens(world: World, key: str, path: str = "/v1/models") -> bool:
    return bool(world.admin.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200)


def test_a_key_has_the_scopes_that_were_chosen_and_no_other(world: World) -> None:
    made = make(world, scopes=["models:read", "datasets:read"]).json()
    assert (made["role"], made["scopes"]) == ("custom", ["datasets:read", "models:read"])
    assert opens(world, made["key"]) and opens(world, made["key"], "/v1/datasets")
    assert not opens(world, made["key"], "/v1/requests") and not opens(world, made["key"], "/v1/keys")


def test_a_role_is_a_named_set_of_scopes(world: World) -> None:
    assert set(get_args(Role)) == set(ROLES)
    for role, scopes in ROLES.items():
        assert set(scopes) <= set(SCOPES)
        made = make(world, role=role).json()
        assert set(made["scopes"]) == set(scopes), role
    assert "requests:create" not in (*ROLES["auditor"], *ROLES["approver"], *ROLES["owner"])
    assert not [role for role, scopes in ROLES.items() if "keys:write" in scopes and role != "admin"]


def test_a_key_never_gives_scopes_that_it_lacks(world: World) -> None:
    clerk = make(world, scopes=["keys:write", "models:read", "datasets:read"]).json()["key"]
    before = stored(world.lethe)
    for body in ({"scopes": ["models:write"]}, {"scopes": ["models:read", "requests:concept"]}, {"role": "requester"}):
        problem = refused(make(world, clerk, **body), 403, "missing-scope")
        assert "scope" in problem["detail"]
    assert stored(world.lethe) == before
    assert make(world, clerk, scopes=["models:read"]).status_code == 201


def test_a_key_rotates_none_with_scopes_that_it_lacks(world: World) -> None:
    clerk = make(world, scopes=["keys:write", "models:read"]).json()["key"]
    admin, reader = make(world, role="admin").json(), make(world, scopes=["models:read"]).json()
    bearer = {"Authorization": f"Bearer {clerk}"}
    refused(world.admin.post(f"/v1/keys/{admin['id']}/rotate", json={}, headers=bearer), 403, "missing-scope")
    assert opens(world, admin["key"])
    assert world.admin.post(f"/v1/keys/{reader['id']}/rotate", json={}, headers=bearer).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"role": "requester", "scopes": ["models:read"]},
        {"scopes": []},
        {"scopes": ["models:own"]},
        {"scopes": "models:read"},
        {"role": "custom"},
    ],
)
def test_a_key_has_a_role_or_scopes(world: World, body: dict[str, Any]) -> None:
    before = stored(world.lethe)
    refused(make(world, **body), 422, "invalid-input")
    assert stored(world.lethe) == before


def test_a_rotated_key_has_two_secrets_until_the_overlap_ends(world: World) -> None:
    made = make(world, role="requester").json()
    answer = world.admin.post(f"/v1/keys/{made['id']}/rotate", json={"overlap_seconds": 600})
    rotated = answer.json()
    assert answer.status_code == 200 and rotated["key"] != made["key"]
    assert {**rotated, "key": None, "previous_until": None} == {**made, "key": None}
    until = datetime.fromisoformat(rotated["previous_until"])
    assert timedelta(minutes=9) < until - datetime.now(UTC) < timedelta(minutes=11)
    assert opens(world, made["key"]) and opens(world, rotated["key"])
    request = world.admin.post(
        "/v1/requests",
        json={"model": "digits", "forget": {"samples": ["0/0"]}},
        headers={"Authorization": f"Bearer {made['key']}"},
    ).json()
    seen = world.admin.get(f"/v1/requests/{request['id']}", headers={"Authorization": f"Bearer {rotated['key']}"})
    assert seen.status_code == 200  # one key, whichever secret
    with world.lethe.store.write() as session:
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(previous_until=1.0))
    assert not opens(world, made["key"]) and opens(world, rotated["key"])


def test_a_second_rotation_ends_the_first_secret_and_none_may_overlap(world: World) -> None:
    made = make(world, role="requester").json()
    path = f"/v1/keys/{made['id']}/rotate"
    second = world.admin.post(path, json={}).json()["key"]
    third = world.admin.post(path, json={}).json()["key"]
    assert [opens(world, key) for key in (made["key"], second, third)] == [False, True, True]
    fourth = world.admin.post(path, json={"overlap_seconds": 0}).json()["key"]
    assert [opens(world, key) for key in (second, third, fourth)] == [False, False, True]
    entries = world.admin.get("/v1/history", params={"resource": f"key:{made['id']}"}).json()["data"]
    assert [entry["action"] for entry in entries] == ["key.issued", *["key.rotated"] * 3]
    assert entries[-1]["details"] == {"overlap_seconds": 0}


def test_revoking_ends_both_secrets_and_an_ended_key_is_not_rotated(world: World) -> None:
    made = make(world, role="requester").json()
    path = f"/v1/keys/{made['id']}"
    rotated = world.admin.post(f"{path}/rotate", json={}).json()
    assert world.admin.delete(path).status_code == 204
    assert not opens(world, made["key"]) and not opens(world, rotated["key"])
    refused(world.admin.post(f"{path}/rotate", json={}), 409, "key-ended")
    refused(world.admin.post("/v1/keys/absent/rotate", json={}), 404, "not-found")
    for seconds in (-1, 30 * 86400 + 1, "600", 1.5):
        refused(world.admin.post(f"{path}/rotate", json={"overlap_seconds": seconds}), 422, "invalid-input")
