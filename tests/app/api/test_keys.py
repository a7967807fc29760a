"""/v1/keys: who may call."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.records.api_key import ROLES, ApiKey
from tests.app.api.deployed import World, refused, stored


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_shown_once_and_only_its_digest_is_kept(world: World) -> None:
    answer = world.admin.post("/v1/keys", json={"name": "script", "role": "requester"})
    made = answer.json()
    assert answer.status_code == 201 and made["key"].startswith(f"lethe_{made['id']}_")
    assert made["scopes"] == list(ROLES["requester"])
    assert world.admin.get("/v1/models", headers=bearer(made["key"])).status_code == 200
    listed = {each["id"]: each for each in world.admin.get("/v1/keys").json()}
    assert listed[made["id"]] == {name: value for name, value in made.items() if name != "key"}
    secret = made["key"].rpartition("_")[2].encode()
    data = world.lethe.settings.data
    assert not [path for path in data.rglob("*") if path.is_file() and secret in path.read_bytes()]
    with world.lethe.store.read() as session:
        assert secret.decode() not in str(vars(session.get_one(ApiKey, made["id"])))


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
