"""The OpenAPI document is good enough to work from: summaries, typed pages, and every refusal documented."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.deployment import deploy
from app.main import create_app
from app.settings import Settings

OPEN = ("/healthz", "/readyz", "/v1/catalog", "/v1/schemas/report")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("openapi")
    app = create_app(deploy(Settings(data=folder)))
    first = app.openapi()
    assert app.openapi() == first
    return first


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(verb, path, operation) for path, verbs in document["paths"].items() for verb, operation in verbs.items()]


Operations = list[tuple[str, str, dict[str, Any]]]


def test_every_operation_says_what_it_does(operations: Operations) -> None:
    for verb, path, operation in operations:
        assert operation["summary"] and operation["tags"], (verb, path)
        assert operation["description"].rstrip().endswith((".", "503.")), (verb, path)
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(set(ids)) == len(ids)


def test_every_refusal_is_documented_where_it_can_occur(operations: Operations) -> None:
    for verb, path, operation in operations:
        statuses, where = set(operation["responses"]), (verb, path)
        parameters, body = operation.get("parameters", []), operation.get("requestBody", {}).get("content", {})
        assert ({"401", "403"} <= statuses) == (path not in OPEN), where
        assert bool(operation.get("security")) == (path not in OPEN), where
        assert "404" in statuses or "{" not in path, where
        assert "422" in statuses or not (body or any(each["in"] == "query" for each in parameters)), where
        named = "{" in path or any(each["in"] == "query" for each in parameters)
        assert ("400" in statuses) == ("application/json" in body or named), where
        assert ("429" in statuses) == (path not in ("/healthz", "/readyz")), where
        assert {"413", "415"} <= statuses or not body, where
    by_name = {(verb, path): set(operation["responses"]) for verb, path, operation in operations}
    assert {"202", "404", "409", "507"} <= by_name["post", "/v1/requests"]
    assert {"409", "507"} <= by_name["post", "/v1/datasets"] and {"412", "428"} <= by_name["patch", "/v1/models/{name}"]
    assert {"200", "206", "304", "416"} <= by_name["get", "/v1/models/{name}/checkpoints/{number}/files/{path}"]
    alias = "/v1/models/{name}/aliases/{alias}"
    assert {"200", "201", "409", "412", "428"} <= by_name["put", alias] and "304" in by_name["get", alias]
    assert {"204", "412", "428"} <= by_name["delete", alias] and {"409", "412", "428"} <= by_name[
        "post", f"{alias}/rollback"
    ]
    assert "409" in by_name["post", "/v1/requests/{request_id}/cancel"] and "503" in by_name["get", "/readyz"]


def test_refusals_are_problem_documents_of_one_schema(document: dict[str, Any], operations: Operations) -> None:
    schema = document["components"]["schemas"]["Problem"]
    assert {"type", "title", "status", "detail", "request_id"} == set(schema["required"])
    assert {"field", "rule", "remedy"} == set(schema["properties"]["errors"]["items"]["required"])
    for verb, path, operation in operations:
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                (kind,) = response["content"]
                content = response["content"][kind]
                assert kind == "application/problem+json", (verb, path, status)
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert content["example"]["status"] == int(status) and response["description"]


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    schemas, pending, seen = document["components"]["schemas"], [document], set()
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                seen.add(value["$ref"].removeprefix("#/components/schemas/"))
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    assert seen <= set(schemas) and {"Problem", "RequestIn", "RequestOut"} <= seen
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)


def test_pages_name_what_they_hold(operations: Operations, document: dict[str, Any]) -> None:
    for path in (
        "/v1/datasets",
        "/v1/models",
        "/v1/requests",
        "/v1/audit",
        "/v1/keys",
        "/v1/models/{name}/checkpoints",
        "/v1/jobs/{job_id}/events",
        "/v1/datasets/{name}/samples",
        "/v1/models/{name}/aliases/{alias}/history",
    ):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        page = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        assert "$ref" in page["properties"]["data"]["items"], path


def test_fields_of_a_request_are_described(document: dict[str, Any]) -> None:
    for name in ("RequestIn", "Forget", "ModelIn", "AliasIn", "RollbackIn"):
        for field, schema in document["components"]["schemas"][name]["properties"].items():
            assert schema.get("description") or "$ref" in schema or field == "name", (name, field)
    assert "/v1/catalog" in json.dumps(document["components"]["schemas"]["RequestIn"])
    assert "application/problem+json" in document["info"]["description"]
