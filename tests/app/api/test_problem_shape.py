"""Every route of the OpenAPI document refuses in one form: application/problem+json, and nothing of the input."""

import re
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from app import migration
from app.deployment import Deployment, deploy
from app.main import create_app
from app.settings import Settings
from tests.app.api.deployed import refused
from tests.app.records.test_job import add_model
from tests.conftest import client_for

OPEN = ("/healthz", "/readyz", "/v1/catalog", "/v1/schemas/report")
MARKER = "anna-smith-1984"
ADMINS = {
    ("get", "/v1/models/{name}/checkpoints/{number}/pictures/{picture}"),
    ("get", "/v1/requests/{request_id}/preview.png"),
    ("put", "/v1/requests/{request_id}/hold"), ("delete", "/v1/requests/{request_id}/hold"),
    ("post", "/v1/uploads"), ("post", "/v1/models"), ("patch", "/v1/models/{name}"), ("get", "/v1/audit"),
    ("get", "/v1/audit/head"), ("get", "/v1/audit/export"),
    ("post", "/v1/keys"), ("get", "/v1/keys"), ("delete", "/v1/keys/{key_id}"),
    ("post", "/v1/keys/{key_id}/rotate"),
    ("post", "/v1/models/{name}/checkpoints/{number}/override"),
    ("post", "/v1/models/{name}/checkpoints/{number}/retire"), ("post", "/v1/models/{name}/retire"),
    ("put", "/v1/models/{name}/aliases/{alias}"), ("delete", "/v1/models/{name}/aliases/{alias}"),
    ("post", "/v1/models/{name}/aliases/{alias}/rollback"), ("get", "/v1/models/{name}/aliases/{alias}/history"),
    ("post", "/v1/requests/{request_id}/verification"), ("post", "/v1/requests/{request_id}/approve"),
    ("post", "/v1/requests/{request_id}/deny"), ("post", "/v1/requests/{request_id}/extend"),
}  # fmt: skip
BODIES: dict[tuple[str, str], dict[str, object]] = {  # without one, most are 415 before anything is looked up
    ("patch", "/v1/models/{name}"): {"test": None},
    ("put", "/v1/models/{name}/aliases/{alias}"): {"version": 1, "reason": "x"},
    ("post", "/v1/models/{name}/aliases/{alias}/rollback"): {"reason": "x"},
    ("post", "/v1/models/{name}/checkpoints/{number}/override"): {"code": "other", "reason": "x"},
    ("post", "/v1/models/{name}/checkpoints/{number}/retire"): {"code": "erasure"},
    ("post", "/v1/models/{name}/retire"): {"code": "erasure"},
    ("post", "/v1/keys/{key_id}/rotate"): {},
    ("post", "/v1/requests/{request_id}/verification"): {"outcome": "verified", "method": "other"},
    ("post", "/v1/requests/{request_id}/deny"): {"code": "other"},
    ("post", "/v1/requests/{request_id}/extend"): {"code": "complexity", "notified_at": "2027-01-01T00:00:00Z"},
    ("put", "/v1/requests/{request_id}/hold"): {"code": "audit"},
    ("post", "/v1/requests/{request_id}/attacks"): {"attacks": {"quantised_copies": {}}},
}


@pytest.fixture(scope="module")
def lethe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """SQLite alone: the form of an answer does not depend on the database."""
    deployment = deploy(Settings(data=tmp_path_factory.mktemp("shape")))
    migration.upgrade(deployment.store)
    yield deployment
    deployment.store.close()


@pytest.fixture(scope="module")
def operations(lethe: Deployment) -> list[tuple[str, str]]:
    document = create_app(lethe).openapi()
    return [(verb, path) for path, verbs in document["paths"].items() for verb in verbs]


def filled(path: str, value: str = MARKER) -> str:
    return re.sub(r"\{[a-z_]+\}", value, path)


def test_the_walk_sees_every_route(operations: list[tuple[str, str]]) -> None:
    assert len(operations) >= 25 and set(operations) >= ADMINS
    assert {path for _, path in operations if not path.startswith("/v1/")} == {"/healthz", "/readyz"}


def test_without_a_key_every_route_but_the_open_ones_is_401(
    lethe: Deployment, operations: list[tuple[str, str]]
) -> None:
    nobody = TestClient(create_app(lethe))
    for verb, path in operations:
        answer = nobody.request(verb, filled(path))
        if path in OPEN:
            assert answer.status_code == 200, path
        else:
            refused(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert MARKER not in answer.text


def test_a_requester_is_403_where_an_admin_is_needed(lethe: Deployment, operations: list[tuple[str, str]]) -> None:
    requester = client_for(lethe, "requester")
    for verb, path in operations:
        answer = requester.request(verb, filled(path))
        assert (answer.status_code == 403) == ((verb, path) in ADMINS), (verb, path, answer.text)
        if answer.status_code == 403:
            assert "scope" in refused(answer, 403, "missing-scope")["detail"]


def test_unknown_ids_are_404_and_are_not_repeated(lethe: Deployment, operations: list[tuple[str, str]]) -> None:
    admin = client_for(lethe)
    for verb, path in operations:
        if "{" in path:
            query = {"reason": "x"} if (verb, path) == ("delete", "/v1/models/{name}/aliases/{alias}") else {}
            body = BODIES.get((verb, path))
            answer = admin.request(verb, filled(path), params=query, json=body, headers={"If-Match": "*"})
            refused(answer, 404, "not-found")
            assert MARKER not in answer.text
    for path in ("/", "/v2/models", "/v1", "/v1/nothing", f"/v1/models/{MARKER}/other"):
        answer = admin.get(path)
        refused(answer, 404, "not-found")
        assert MARKER not in answer.text


def test_other_verbs_are_405(lethe: Deployment, operations: list[tuple[str, str]]) -> None:
    admin = client_for(lethe)
    for path in {path for _, path in operations}:
        known = {verb for verb, other in operations if other == path}
        for verb in {"get", "post", "put", "patch", "delete", "options"} - known:
            answer = admin.request(verb, filled(path))
            refused(answer, 405, "method-not-allowed")
            assert {each.lower() for each in answer.headers["allow"].split(", ")} - {"head"} == known, path


def test_bodies_of_another_type_are_415_and_what_is_not_json_is_400(lethe: Deployment) -> None:
    """Of a model that is there: whether a key may change it is asked before its body is read."""
    admin, document = client_for(lethe), create_app(lethe).openapi()
    there = add_model(lethe)
    walked = 0
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            kinds = operation.get("requestBody", {}).get("content", {})
            if not kinds:
                continue
            walked += 1
            url = filled(path, there) + ("?role=train&name=x" if path == "/v1/datasets" else "")
            answer = admin.request(
                verb, url, content=MARKER.encode(), headers={"Content-Type": "text/plain", "If-Match": "*"}
            )
            refused(answer, 415, "unsupported-media-type")
            assert MARKER not in answer.text
            if "application/json" in kinds:
                answer = admin.request(verb, url, content=MARKER.encode(), headers={"Content-Type": "application/json"})
                assert refused(answer, 400, "not-json")["errors"][0]["field"] == "body"
                assert MARKER not in answer.text
    assert walked >= 6


def test_queries_are_checked_and_not_repeated(lethe: Deployment) -> None:
    admin, document = client_for(lethe), create_app(lethe).openapi()
    walked = 0
    for path, verbs in document["paths"].items():
        for parameter in verbs.get("get", {}).get("parameters", []):
            if parameter["in"] == "query" and parameter["name"] in ("limit", "role", "status", "since", "until"):
                walked += 1
                answer = admin.get(filled(path), params={parameter["name"]: MARKER})
                problem = refused(answer, 422, "invalid-input")
                assert problem["errors"][0]["field"] == f"query.{parameter['name']}" and MARKER not in answer.text
    assert walked >= 9


def test_an_odd_name_of_a_field_is_not_repeated(lethe: Deployment) -> None:
    answer = client_for(lethe).post("/v1/keys", json={"name": "x", "role": "admin", "Anna Smith": 1})
    assert refused(answer, 422, "invalid-input")["errors"][0]["field"] == "body.(unnamed)"


def test_nul_is_refused_in_paths_and_queries(lethe: Deployment) -> None:
    admin = client_for(lethe)
    for path in ("/v1/models/%00", "/v1/requests/a%00b", "/v1/requests?external_id=%00", "/v1/audit?actor=x%00"):
        refused(admin.get(path), 400, "control-character")


def test_each_answer_has_an_id_of_its_own(lethe: Deployment) -> None:
    admin = client_for(lethe)
    ids = [
        admin.get(path).headers["x-request-id"] for path in ("/healthz", "/v1/models", "/v1/models/absent", "/nowhere")
    ]
    assert len(set(ids)) == 4 and all(re.fullmatch(r"[0-9a-f]{32}", each) for each in ids)
