"""What stands around every route: headers for safety, rate limits, conditional answers, unknown parameters, and the pages of /docs."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from app import migration
from app.deployment import Deployment, deploy
from app.main import create_app
from app.settings import Settings
from tests.app.api.deployed import refused
from tests.conftest import key_for

SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@pytest.fixture(scope="module")
def lethe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """SQLite alone: none of this depends on the database."""
    deployment = deploy(Settings(data=tmp_path_factory.mktemp("edge")))
    migration.upgrade(deployment.store)
    yield deployment
    deployment.store.close()


def client(lethe: Deployment, role: str | None = "admin", **settings: object) -> TestClient:
    """Of a server with these settings, which counts anew."""
    changed = replace(lethe, settings=Settings(data=lethe.settings.data, **settings))
    headers = {"Authorization": f"Bearer {key_for(lethe, role)}"} if role else {}
    return TestClient(create_app(changed), headers=headers, raise_server_exceptions=False)


def test_every_answer_has_the_headers_for_safety(lethe: Deployment) -> None:
    admin = client(lethe)
    for path in (
        "/healthz",
        "/v1/models",
        "/v1/models/absent",
        "/nowhere",
        "/docs",
        "/docs/start.js",
        "/v1/models/%00",
    ):
        headers = admin.get(path).headers
        assert SAFE.items() <= dict(headers).items(), path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert "no-store" in headers["cache-control"] or path.startswith("/docs"), path
        assert "strict-transport-security" not in headers
    assert client(lethe, https=True).get("/v1/models").headers["strict-transport-security"] == "max-age=31536000"


def test_a_key_s_calls_are_counted_and_refused_beyond_its_quota(lethe: Deployment) -> None:
    admin = client(lethe, rate_limit="3/minute")
    for left in (2, 1, 0):
        answer = admin.get("/v1/models")
        assert answer.status_code == 200 and answer.headers["ratelimit-policy"] == '"key";q=3;w=60'
        assert re.fullmatch(rf'"key";r={left};t=[0-9]{{1,2}}', answer.headers["ratelimit"])
    for path in ("/v1/models", "/v1/absent"):
        answer = admin.get(path)
        refused(answer, 429, "too-many-requests")
        assert 1 <= int(answer.headers["retry-after"]) <= 60 and '"key";r=0;' in answer.headers["ratelimit"]
    assert admin.get("/healthz").status_code == 200 and "ratelimit" not in admin.get("/readyz").headers
    other = {"Authorization": f"Bearer {key_for(lethe)}"}
    assert admin.get("/v1/models", headers=other).status_code == 200


def test_calls_without_a_valid_key_count_for_their_address(lethe: Deployment) -> None:
    nobody = client(lethe, role=None, rate_limit_address="3/minute")
    for number in range(3):  # each guess is another key, and still one guesser
        answer = nobody.get("/v1/models", headers={"Authorization": f"Bearer lethe_{number:012x}_{number:032x}"})
        refused(answer, 401, "unauthorized")
        assert answer.headers["ratelimit-policy"] == '"address";q=3;w=60'
    refused(nobody.get("/v1/models"), 429, "too-many-requests")
    refused(nobody.post("/v1/requests", content=b"x" * 100), 429, "too-many-requests")
    valid = {"Authorization": f"Bearer {key_for(lethe)}"}
    assert nobody.get("/v1/models", headers=valid).status_code == 200


def test_the_count_is_shared_in_redis_and_goes_on_without_it(lethe: Deployment, redis_url: str) -> None:
    key = {"Authorization": f"Bearer {key_for(lethe)}"}
    one, other = (client(lethe, role=None, rate_limit="2/minute", broker_url=redis_url) for _ in range(2))
    statuses = [each.get("/v1/models", headers=key).status_code for each in (one, other, one, other)]
    assert statuses == [200, 200, 429, 429]
    alone = client(lethe, role=None, rate_limit="2/minute", broker_url="redis://127.0.0.1:1/0")
    assert [alone.get("/v1/models", headers=key).status_code for _ in range(3)] == [200, 200, 429]


def test_without_limits_nothing_is_counted(lethe: Deployment) -> None:
    admin = client(lethe, rate_limit="", rate_limit_address="")
    assert "ratelimit" not in admin.get("/v1/models").headers
    for wrong in ("often", "3", "3/fortnight"):
        with pytest.raises(ValueError, match="rate_limit"):
            Settings(rate_limit=wrong)


def test_an_unknown_parameter_is_refused_by_its_name(lethe: Deployment) -> None:
    admin = client(lethe)
    problem = refused(admin.get("/v1/requests?stauts=queued"), 422, "unknown-parameter", "query.stauts")
    assert "status" in problem["errors"][0]["remedy"]
    refused(admin.post("/v1/requests?x=1", json={}), 422, "unknown-parameter", "query.x")
    refused(admin.get("/v1/requests?Anna%20Smith=1"), 422, "unknown-parameter", "query.(unnamed)")
    refused(admin.get("/v1/catalog?x=1"), 422, "unknown-parameter")
    refused(client(lethe, role=None).get("/v1/requests?stauts=queued"), 401)
    assert admin.get("/healthz?probe=7").status_code == 200


def test_json_answers_are_conditional(lethe: Deployment) -> None:
    admin = client(lethe)
    for path in ("/v1/catalog", "/v1/models", "/v1/schemas/report", "/v1/keys", "/openapi.json"):
        first = admin.get(path)
        etag = first.headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{64}"', etag)
        for wanted in (etag, f'"other", {etag}', f"W/{etag}", "*"):
            again = admin.get(path, headers={"If-None-Match": wanted})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag), path
            assert "content-type" not in again.headers and "content-length" not in again.headers
        assert admin.get(path, headers={"If-None-Match": '"other"'}).content == first.content
    assert admin.get("/v1/models/absent", headers={"If-None-Match": "*"}).status_code == 404
    before = admin.get("/v1/keys").headers["etag"]
    admin.post("/v1/keys", json={"name": "x", "role": "requester"})
    assert admin.get("/v1/keys", headers={"If-None-Match": before}).status_code == 200


def test_bodies_that_are_no_json_or_no_utf_8_are_400(lethe: Deployment) -> None:
    admin = client(lethe)
    headers = {"Content-Type": "application/json"}
    for body in (b"{", b"\xff\xfe", b'{"name": "\xff"}', b"[" * 100_000, b"", b"NaN", b'"\xed\xa0\x80"'):
        answer = admin.post("/v1/keys", content=body, headers=headers)
        assert answer.status_code in (400, 422), body[:20]
        refused(answer, answer.status_code)
    for name, value in (
        ("Range", b"\xff"),
        ("If-None-Match", b"\xff"),
        ("Authorization", b"Bearer \xff"),
        ("Prefer", b"\xff"),
    ):
        assert admin.get("/v1/models", headers={name: value}).status_code in (200, 401), name


def test_the_pages_of_docs_name_no_other_host(lethe: Deployment) -> None:
    nobody = client(lethe, role=None)
    page = nobody.get("/docs")
    assert page.status_code == 200 and "//" not in page.text.replace("<!DOCTYPE html>", "")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "http" not in policy
    for path in re.findall(r'(?:href|src)="([^"]+)"', page.text):
        assert nobody.get(f"/{path}").status_code == 200, path
    assert "SwaggerUIBundle" in nobody.get("/docs/start.js").text
    assert len(nobody.get("/docs/viewer/swagger-ui-bundle.js").content) > 1_000_000
    refused(nobody.get("/redoc"), 404)


def test_a_time_is_a_date_and_no_number(lethe: Deployment) -> None:
    admin = client(lethe)
    for since in ("0.5", "1700000000", "2027-01-31", "2027-01-31T00:00:00"):
        refused(admin.get("/v1/audit", params={"since": since}), 422, "invalid-input", "query.since")
    assert admin.get("/v1/audit", params={"since": "2027-01-31T00:00:00Z"}).status_code == 200
    body = {"name": "x", "role": "requester", "expires_at": 4102444800}
    refused(admin.post("/v1/keys", json=body), 422, "invalid-input", "body.expires_at")
