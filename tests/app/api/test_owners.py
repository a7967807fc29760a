"""Whose a model is: its owner's key changes it, others read and use it; what a second person is for stays open."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.api import models as routes
from app.main import create_app
from app.records.api_key import ApiKey
from app.records.checkpoint import Status
from app.records.model import Model
from tests.app.api.deployed import (
    Response,
    World,
    audited,
    forgotten,
    refused,
    register,
    stored,
    upload_set,
)
from tests.app.api.test_override import BODY, quarantined
from tests.conftest import client_for

ANY: dict[str, Any] = {"headers": {"If-Match": "*"}}
REOPENER = ["models:read", "models:write", "requests:reopen"]


@pytest.fixture
def owner(world: World) -> TestClient:
    return client_for(world.lethe, "owner")


@pytest.fixture
def other(world: World) -> TestClient:
    return client_for(world.lethe, "owner")


def actor(client: TestClient) -> str:
    return "key:" + client.headers["Authorization"].split("_")[1]


def with_scopes(world: World, *scopes: str) -> TestClient:
    made = world.admin.post("/v1/keys", json={"name": "x", "scopes": scopes}).json()["key"]
    return TestClient(create_app(world.lethe), headers={"Authorization": f"Bearer {made}"})


def owned(world: World, name: str, client: TestClient) -> str:
    """A model that asks for an approval, registered by the client's key. Its path."""
    mine = World(world.lethe, client, world.requester, world.stranger, world.directory)
    made = register(mine, name, world.directory, retain="train-set", process={"approval": "required"})
    assert made.status_code == 201 and made.json()["owner"] == actor(client)
    return f"/v1/models/{name}"


def changes(client: TestClient, path: str) -> list[Response]:
    """Every change of a model that needs no second person."""
    alias = f"{path}/aliases/production"
    return [
        client.patch(path, json={"process": None}, **ANY),
        client.put(alias, json={"version": 1, "reason": "x"}, **ANY),
        client.post(f"{alias}/rollback", json={"reason": "x"}, **ANY),
        client.delete(alias, params={"reason": "x"}, **ANY),
        client.post(f"{path}/checkpoints/1/retire", json={"code": "erasure"}, **ANY),
        client.post(f"{path}/retire", json={"code": "erasure"}),
    ]


def test_an_owner_s_key_changes_no_model_of_another_s(world: World, owner: TestClient, other: TestClient) -> None:
    path = owned(world, "theirs", owner)
    before = stored(world.lethe)
    for answer in changes(other, path):
        assert "models:admin" in refused(answer, 403, "not-owner")["detail"]
    assert stored(world.lethe) == before
    shown = other.get(path).json()
    assert shown["process"] == {"verification": "none", "approval": "required"} and shown["owner"] == actor(owner)
    assert "not-owner" not in "".join(answer.text for answer in changes(owner, path))
    assert world.admin.patch(path, json={"process": None}, **ANY).status_code == 200


def test_models_admin_opens_nothing_without_the_scope_of_the_operation(world: World, owner: TestClient) -> None:
    path = owned(world, "beside", owner)
    alone = with_scopes(world, "models:read", "models:admin")
    for answer in changes(alone, path):
        refused(answer, 403, "missing-scope")
    both = with_scopes(world, "models:read", "models:write", "models:admin")
    assert both.patch(path, json={"process": None}, **ANY).status_code == 200


def test_a_second_person_overrules_and_takes_back_whoever_s_model_it_is(
    world: World, owner: TestClient, other: TestClient
) -> None:
    path = owned(world, "four-eyes", owner)
    alias = f"{path}/aliases/production"
    made = owner.put(alias, json={"version": 1, "reason": "x"}, headers={"If-None-Match": "*"})
    assert made.status_code == 201
    number, request_id = forgotten(world, "four-eyes")
    assert owner.put(alias, json={"version": number, "reason": "x"}, **ANY).status_code == 200
    refused(other.post(f"{alias}/rollback", json={"reason": "x"}, **ANY), 403, "not-owner")
    refused(owner.post(f"{alias}/rollback", json={"reason": "x"}, **ANY), 403, "missing-scope")
    second = with_scopes(world, *REOPENER)
    back = second.post(f"{alias}/rollback", json={"reason": "x"}, **ANY)
    assert back.status_code == 200 and back.json()["reopened"] == [request_id]
    refused(second.put(alias, json={"version": number, "reason": "x"}, **ANY), 403, "not-owner")
    version, _ = quarantined(world, "four-eyes")
    overruling = with_scopes(world, "models:read", "checkpoints:override")
    assert overruling.post(f"{version}/override", json=BODY, **ANY).json()["status"] == Status.RELEASED


def test_a_model_is_handed_over_by_models_admin_to_a_key_that_lives(
    world: World, owner: TestClient, other: TestClient
) -> None:
    path = owned(world, "left", owner)
    refused(owner.patch(path, json={"owner": actor(other)}, **ANY), 403, "missing-scope")
    with world.lethe.store.write() as session:
        session.execute(update(ApiKey).where(ApiKey.id == actor(owner)[4:]).values(revoked_at=1.0))
    for unfit in ("absent", actor(owner), actor(world.requester)):
        refused(world.admin.patch(path, json={"owner": unfit}, **ANY), 422, "unknown-key", "owner")
    refused(world.admin.patch(path, json={"owner": None}, **ANY), 422, "empty-change", "body")
    before = world.admin.get(path)
    held = {"If-Match": before.headers["etag"]}
    handed = world.admin.patch(path, json={"owner": actor(other)[4:]}, headers=held)
    assert handed.status_code == 200 and handed.json() == before.json() | {"owner": actor(other)}
    assert handed.headers["etag"] != before.headers["etag"]
    assert other.patch(path, json={"process": None}, **ANY).status_code == 200
    (entry, _) = [each for each in audited(world, resource=before.json()["id"]) if each["action"] == "model.changed"]
    assert entry["actor"] == actor(world.admin)
    assert entry["details"] == {"fields": ["owner"], "owner": actor(other)}


def test_a_change_that_comes_after_a_handover_is_the_new_owner_s(
    world: World, owner: TestClient, other: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is handed over while the former owner's change is checked."""
    path = owned(world, "handed", owner)
    checked = routes._changes

    def slow(*told: Any) -> dict[str, Any]:
        found = checked(*told)
        with world.lethe.store.write() as session:
            session.execute(update(Model).where(Model.name == "handed").values(owner=actor(other)))
        return found

    monkeypatch.setattr(routes, "_changes", slow)
    refused(owner.patch(path, json={"process": None}, **ANY), 403, "not-owner")
    assert world.admin.get(path).json()["process"]["approval"] == "required"


def test_models_and_sets_of_others_are_named_and_used(world: World, owner: TestClient, other: TestClient) -> None:
    owned(world, "shared", owner)
    path = owned(world, "sharing", other)  # its sets are the admin's
    assert upload_set(owner, "test", "shared-test").status_code == 201
    assert other.patch(path, json={"test": "shared-test", "judge": "shared"}, **ANY).status_code == 200
    asked = world.requester.post("/v1/requests", json={"model": "shared", "forget": {"class_label": "3"}})
    assert asked.status_code == 202


def test_a_registered_set_of_another_is_erased_with_models_admin_alone(world: World, owner: TestClient) -> None:
    assert upload_set(owner, "train", "erasable").status_code == 201
    path = "/v1/datasets/erasable"
    for scopes in (["requests:admin"], []):
        refused(with_scopes(world, "datasets:write", *scopes).delete(path), 403, "not-owner")
    assert with_scopes(world, "datasets:write", "models:admin").delete(path).status_code == 204
    assert upload_set(owner, "train", "erasable").status_code == 201
    assert owner.delete(path).status_code == 204
