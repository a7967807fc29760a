"""/v1/keys and /v1/history: who may call, and who did what when."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from app.records.api_key import ROLES, ApiKey
from tests.app.api.deployed import World, asked, refused, stored


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


def test_a_requester_makes_no_keys_and_reads_no_history(world: World) -> None:
    before = stored(world.lethe)
    refused(world.requester.post("/v1/keys", json={"name": "x", "role": "admin"}), 403, "missing-scope")
    refused(world.requester.get("/v1/history"), 403, "missing-scope")
    assert stored(world.lethe) == before


def test_the_history_is_filtered_by_request_actor_action_resource_and_time(world: World) -> None:
    start = datetime.now(UTC) - timedelta(seconds=2)
    first, second = asked(world.requester), asked(world.stranger)
    world.admin.post(f"/v1/requests/{first['id']}/cancel")

    def found(**filters: str) -> list[tuple[str, str]]:
        page = world.admin.get("/v1/history", params={"limit": "200", **filters}).json()
        return [(entry["action"], entry["resource"]) for entry in page["data"]]

    job = first["jobs"][0]["id"]
    assert found(request=first["id"]) == [
        ("request.received", first["id"]), ("job.queued", job), ("job.cancelled", job), ("request.cancelled", first["id"]),
        ("request.purged", first["id"]),
    ]  # fmt: skip
    assert found(resource=second["id"]) == [("request.received", second["id"])]
    (entry,) = world.admin.get("/v1/history", params={"request": first["id"], "action": "request.cancelled"}).json()[
        "data"
    ]
    assert entry["request"] == first["id"] and entry["actor"].startswith("key:")
    assert found(actor=entry["actor"], request=first["id"]) == [
        ("job.cancelled", job),
        ("request.cancelled", first["id"]),
    ]
    assert found(action="request.received", actor=entry["actor"], request=first["id"]) == []
    everything = found(since=start.isoformat())
    assert set(found(request=first["id"])) <= set(everything)
    assert found(since=start.isoformat(), until=start.isoformat()) == []
    assert found(until="1990-01-01T00:00:00Z") == [] and found(since=(start + timedelta(days=1)).isoformat()) == []


def test_the_history_is_paged_in_order(world: World) -> None:
    for _ in range(3):
        asked(world.requester)
    seen, after = [], None
    while True:
        page = world.admin.get("/v1/history", params={"limit": 3} | ({"after": after} if after else {})).json()
        seen += [entry["id"] for entry in page["data"]]
        if not page["has_more"]:
            break
        after = page["next"]
    assert seen == sorted(set(seen)) and len(seen) == stored(world.lethe)[0]["history"]
    for cursor in ("x", "99999999999", "-1"):
        refused(world.admin.get("/v1/history", params={"after": cursor}), 422, "bad-cursor", "after")
    refused(world.admin.get("/v1/history?since=yesterday"), 422, "invalid-input", "query.since")


def test_the_history_tells_of_uploads_and_keys_without_their_content(world: World) -> None:
    page = world.admin.get("/v1/history", params={"action": "dataset.uploaded"}).json()
    assert {tuple(sorted(entry["details"])) for entry in page["data"]} == {("count", "role")}
    issued = world.admin.get("/v1/history", params={"action": "key.issued"}).json()["data"]
    assert {entry["details"]["role"] for entry in issued} == {"admin", "requester"} and issued[0]["actor"] == "test"
