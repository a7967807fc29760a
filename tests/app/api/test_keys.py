"""/v1/keys: who may call; scopes chosen at issue, roles that are named sets of them, two live secrets after a rotation."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from sqlalchemy import update

from app.api.keys import Role
from app.records.api_key import ROLES, SCOPES, ApiKey
from tests.app.api.deployed import World, audited, refused, stored


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_shown_once_and_only_its_digest_is_kept(world: World) -> None:
    answer = world.admin.post("/v1/keys", json={"name": "script", "role": "requester"})
    made = answer.json()
    assert answer.status_code == 201 and made["key"].startswith(f"lethe_{made['id']}_")
    assert made["scopes"] == list(ROLES["requester"])
    assert world.admin.get("/v1/models", headers=bearer(made["key"])).status_code == 200
    listed = {each["id"]: each for each in world.admin.get("/v1/keys", params={"limit": 200}).json()["data"]}
    assert listed[made["id"]] == {name: value for name, value in made.items() if name != "key"}
    secret = made["key"].rpartition("_")[2].encode()
    data = world.lethe.settings.data
    assert not [path for path in data.rglob("*") if path.is_file() and secret in path.read_bytes()]
    with world.lethe.store.read() as session:
        assert secret.decode() not in str(vars(session.get_one(ApiKey, made["id"])))


def test_keys_are_paged_in_the_order_in_which_they_were_made(world: World) -> None:
    made = [world.admin.post("/v1/keys", json={"name": "x", "role": "requester"}).json()["id"] for _ in range(3)]
    with world.lethe.store.write() as session:  # of the same moment: their ids decide
        session.execute(update(ApiKey).where(ApiKey.id.in_(made)).values(created_at=1.0))
    seen, link = [], "/v1/keys?limit=2"
    while link:
        answer = world.admin.get(link)
        seen += [each["id"] for each in answer.json()["data"]]
        assert len(answer.json()["data"]) <= 2 and answer.json()["has_more"] == ("link" in answer.headers)
        link = answer.links["next"]["url"] if "link" in answer.headers else ""
    whole = world.admin.get("/v1/keys", params={"limit": 200}).json()
    assert seen == [each["id"] for each in whole["data"]] and not whole["has_more"]
    assert seen[:3] == sorted(made) and len(set(seen)) == len(seen) > 5
    refused(world.admin.get("/v1/keys", params={"after": "absent"}), 422, "bad-cursor", "after")


def test_a_revoked_and_an_expired_key_open_nothing(world: World) -> None:
    made = world.admin.post("/v1/keys", json={"name": "short", "role": "admin"}).json()
    assert world.admin.delete(f"/v1/keys/{made['id']}").status_code == 204
    refused(world.admin.get("/v1/models", headers=bearer(made["key"])), 401, "unauthorized")
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = world.admin.post("/v1/keys", json={"name": "hour", "role": "admin", "expires_at": soon}).json()
    assert world.admin.get("/v1/models", headers=bearer(made["key"])).status_code == 200
    with world.lethe.store.write() as session:
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=1.0))
    refused(world.admin.get("/v1/models", headers=bearer(made["key"])), 401, "unauthorized")
    refused(world.admin.delete("/v1/keys/absent"), 404, "not-found")


def test_what_looks_like_a_key_and_is_none(world: World) -> None:
    key = world.admin.headers["Authorization"].removeprefix("Bearer ")
    prefix, key_id, secret = key.split("_")
    for wrong in (
        f"lethe_{key_id}_{'0' * 32}",
        f"other_{key_id}_{secret}",
        key_id,
        f"{key}_x",
        f"lethe__{secret}",
        "x" * 5000,
        "",
    ):
        answer = world.admin.get("/v1/models", headers=bearer(wrong))
        refused(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == 'Bearer realm="lethe"'
        assert wrong == "" or wrong not in answer.text
    refused(world.admin.get("/v1/models", headers={"Authorization": f"Basic {key}"}), 401, "unauthorized")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "", "role": "admin"}, "invalid-input"),
        ({"name": "x", "role": "root"}, "invalid-input"),
        ({"name": "x\0", "role": "admin"}, "invalid-input"),
        ({"name": "\ud800", "role": "admin"}, "invalid-input"),
        ({"name": "x", "role": "admin", "scopes": []}, "invalid-input"),
        ({"name": "x", "role": "admin", "expires_at": "2020-01-01T00:00:00Z"}, "out-of-bounds"),
        ({"name": "x", "role": "admin", "expires_at": "9999-12-31T23:59:59-12:00"}, "out-of-bounds"),
    ],
)
def test_refused_keys_are_not_made(world: World, body: dict[str, object], code: str) -> None:
    before = stored(world.lethe)
    headers = {"Content-Type": "application/json"}
    refused(world.admin.post("/v1/keys", content=json.dumps(body), headers=headers), 422, code)
    assert stored(world.lethe) == before


def test_a_requester_makes_no_keys_and_reads_no_audit(world: World) -> None:
    before = stored(world.lethe)
    refused(world.requester.post("/v1/keys", json={"name": "x", "role": "admin"}), 403, "missing-scope")
    refused(world.requester.get("/v1/audit"), 403, "missing-scope")
    assert stored(world.lethe) == before


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


def test_a_key_revokes_none_with_scopes_that_it_lacks_but_itself_always(world: World) -> None:
    clerk = make(world, scopes=["keys:write", "models:read"]).json()
    admin, reader = make(world, role="admin").json(), make(world, scopes=["models:read"]).json()
    before = stored(world.lethe)
    refused(world.admin.delete(f"/v1/keys/{admin['id']}", headers=bearer(clerk["key"])), 403, "missing-scope")
    assert stored(world.lethe) == before and opens(world, admin["key"])
    for each in (reader, clerk):
        assert world.admin.delete(f"/v1/keys/{each['id']}", headers=bearer(clerk["key"])).status_code == 204
        assert not opens(world, each["key"])
    refused(world.admin.delete(f"/v1/keys/{reader['id']}", headers=bearer(clerk["key"])), 401, "unauthorized")


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
    entries = audited(world, resource=f"key:{made['id']}")
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
