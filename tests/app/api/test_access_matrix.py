"""Who may do what: every operation of the OpenAPI document x every role and a key of chosen scopes (and no key, an expired, a revoked one) x own and
others' things. A new operation needs a row in ROWS; nothing else here knows operations by name.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app import migration
from app.deployment import deploy
from app.main import create_app
from app.records import api_key as api_keys
from app.records import job as jobs
from app.records import request as requests
from app.records.api_key import CUSTOM, ROLES, ApiKey
from app.records.checkpoint import Checkpoint, Status
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.upload import Upload
from app.settings import Settings
from tests import pictures
from tests.app.api.deployed import (
    ZIP,
    World,
    add_version,
    asked,
    attackable,
    build,
    drawn_for_a_request,
    forget_set,
    forgotten,
    packed,
    refused,
    register,
    upload_model,
)

OPEN = ""
SEES_ALL = "requests:admin"
CHANGES_ALL = "models:admin"
CALLERS = {**ROLES, CUSTOM: ("models:read", "requests:create", "requests:read", "requests:concept", "keys:write")}
_numbers = itertools.count()


@dataclass(frozen=True)
class Row:
    """`scope` opens it (OPEN: no key is needed), with those `besides`. `status`: for one who may. `thing`: makes what the
    call is about, which is the caller's own or another's; then `foreign` is the status for another's, `seen` for a key with the scope `over`, which
    reaches everybody's (by default as for one's own). `own`: the status where it is one's own and another must do it. `call`: from the thing's id, what is sent; path parameters are filled from `path`."""

    scope: str
    status: int
    thing: "Callable[[World, str], str] | None" = None
    foreign: int = 404
    seen: int | None = None
    over: str = SEES_ALL
    own: int | None = None
    besides: tuple[str, ...] = ()
    path: dict[str, str] = field(default_factory=dict)
    call: "Callable[[World, str], dict[str, Any]]" = lambda world, thing: {}


def a_forget_set(world: World, owner: str) -> str:
    made = forget_set(world.admin)
    return _given(world, Dataset, made, owner)


def a_request(world: World, owner: str) -> str:
    return _given(world, requests.Request, asked(world.admin)["id"], owner)


def an_ended_job(world: World, owner: str) -> str:
    made = asked(world.admin)
    assert world.admin.post(f"/v1/requests/{made['id']}/cancel").status_code == 202
    _given(world, requests.Request, made["id"], owner)
    return str(made["jobs"][0]["id"])


def a_failed_request(world: World, owner: str) -> str:
    request_id = a_request(world, owner)
    with world.lethe.store.write() as session:
        session.execute(update(requests.Request).where(requests.Request.id == request_id).values(status="failed"))
        session.execute(update(jobs.Job).where(jobs.Job.request_id == request_id).values(status="failed"))
    return request_id


def a_request_to_verify(world: World, owner: str) -> str:
    return _waiting(world, owner, "verification")


def a_request_to_approve(world: World, owner: str) -> str:
    return _waiting(world, owner, "approval")


def _waiting(world: World, owner: str, step: str) -> str:
    change = {"json": {"process": {step: "required"}}, "headers": {"If-Match": "*"}}
    assert world.admin.patch("/v1/models/overruled", **change).status_code == 200
    return _given(world, requests.Request, asked(world.admin, model="overruled")["id"], owner)


def an_attackable_request(world: World, owner: str) -> str:
    return _given(world, requests.Request, attackable(world), owner)


def an_attack_job(world: World, owner: str) -> str:
    request_id = attackable(world)
    answer = world.admin.post(f"/v1/requests/{request_id}/attacks", json=QUANTISED)
    _given(world, requests.Request, request_id, owner)
    return str(answer.json()["id"])


def a_held_request(world: World, owner: str) -> str:
    request_id = a_request(world, owner)
    assert world.admin.put(f"/v1/requests/{request_id}/hold", json={"code": "audit"}).status_code == 200
    return request_id


def a_purged_request(world: World, owner: str) -> str:
    made = asked(world.admin)
    assert world.admin.post(f"/v1/requests/{made['id']}/cancel").status_code == 202
    return _given(world, requests.Request, made["id"], owner)


def an_upload(world: World, owner: str) -> str:
    return _given(world, Upload, upload_model(world.admin, world.directory), owner)


def a_requester_s_key(world: World, owner: str) -> str:
    with world.lethe.store.write() as session:
        return api_keys.issue(session, world.lethe.pepper, name="x", role="requester", actor=owner)[0].id


def a_model(world: World, owner: str) -> str:
    return _owned(world, "digits", owner)


def an_alias(world: World, owner: str) -> str:
    """Of a model that has the owner; it can go back from 3 to 2."""
    name = f"alias-{next(_numbers)}"
    path = f"/v1/models/digits/aliases/{name}"
    for version, held in ((2, {"If-None-Match": "*"}), (3, {"If-Match": "*"})):
        assert world.admin.put(path, json={"version": version, "reason": "x"}, headers=held).status_code < 300
    _owned(world, "digits", owner)
    return name


def a_quarantined_version(world: World, owner: str) -> str:
    """A child of the head of a model that has the owner."""
    _owned(world, "overruled", owner)
    return str(forgotten(world, "overruled", Status.QUARANTINED)[0])


def a_drawn_version(world: World, owner: str) -> str:
    """Of a request that has the owner; in quarantine, so that it supersedes nothing."""
    number, request_id = drawn_for_a_request(world, Status.QUARANTINED)
    _given(world, requests.Request, request_id, owner)
    return str(number)


def a_retirable_version(world: World, owner: str) -> str:
    """Superseded, of a model that has the owner."""
    _owned(world, "retired", owner)
    number = forgotten(world, "retired")[0]
    forgotten(world, "retired")
    return str(number)


def _owned(world: World, name: str, owner: str) -> str:
    with world.lethe.store.write() as session:
        session.execute(update(Model).where(Model.name == name).values(owner=owner))
    return name


def _given(world: World, record: Any, thing: str, owner: str) -> str:
    with world.lethe.store.write() as session:
        session.execute(update(record).where(record.id == thing).values(created_by=owner))
    return thing


def sends(**options: Any) -> Callable[[World, str], dict[str, Any]]:
    return lambda world, thing: options


IMAGES = {"content": pictures.imagefolder(seed=5), "headers": ZIP}
DIGITS, VERSION = {"name": "digits"}, {"name": "digits", "number": "2"}
DRAWN = {"name": "digits", "number": "{thing}", "picture": "grid.png"}
QUANTISED = {"attacks": {"quantised_copies": {}}}
MATCH = {"headers": {"If-Match": "*"}}
FOREIGN: dict[str, Any] = {"foreign": 403, "over": CHANGES_ALL}
ALIAS = {"name": "digits", "alias": "{thing}"}
MODEL, ALIASES, REQUEST = "/v1/models/{name}", "/v1/models/{name}/aliases", "/v1/requests/{request_id}"
CHECKPOINTS, JOB, KEY = "/v1/models/{name}/checkpoints", "/v1/jobs/{job_id}", "/v1/keys/{key_id}"
ROWS = {
    ("get", "/healthz"): Row(OPEN, 200),
    ("get", "/readyz"): Row(OPEN, 200),
    ("get", "/v1/catalog"): Row(OPEN, 200),
    ("get", "/v1/schemas/report"): Row(OPEN, 200),
    ("get", "/v1/datasets"): Row("datasets:read", 200),
    ("post", "/v1/datasets"): Row("datasets:write", 201, call=sends(params={"role": "forget"}, **IMAGES)),
    ("get", "/v1/datasets/{name}"): Row("datasets:read", 200, a_forget_set),
    ("delete", "/v1/datasets/{name}"): Row("datasets:write", 204, a_forget_set),
    ("get", "/v1/datasets/{name}/samples"): Row("datasets:read", 200, path={"name": "train-set"}),
    ("post", "/v1/uploads"): Row(
        "models:write", 201, call=lambda world, _: {"content": packed(world.directory), "headers": ZIP}
    ),
    ("get", "/v1/models"): Row("models:read", 200),
    ("post", "/v1/models"): Row(
        "models:write", 201, an_upload, seen=404,
        call=lambda world, thing: {
            "json": {"name": f"m{next(_numbers)}", "family": "image_classifier", "source": {"upload": thing}}
        },
    ),
    ("get", MODEL): Row("models:read", 200, path=DIGITS),
    ("patch", MODEL): Row(
        "models:write", 200, a_model, path=DIGITS, call=sends(json={"evaluation": {}}, **MATCH), **FOREIGN
    ),
    ("get", ALIASES): Row("models:read", 200, path=DIGITS),
    ("get", ALIASES + "/{alias}"): Row("models:read", 200, an_alias, foreign=200, path=ALIAS),
    ("put", ALIASES + "/{alias}"): Row(
        "models:write", 200, an_alias, path=ALIAS, call=sends(json={"version": 2, "reason": "x"}, **MATCH), **FOREIGN
    ),
    ("delete", ALIASES + "/{alias}"): Row(
        "models:write", 204, an_alias, path=ALIAS, call=sends(params={"reason": "x"}, **MATCH), **FOREIGN
    ),
    ("post", ALIASES + "/{alias}/rollback"): Row(
        "models:write", 200, an_alias, path=ALIAS, call=sends(json={"reason": "x"}, **MATCH), **FOREIGN
    ),
    ("get", ALIASES + "/{alias}/history"): Row("audit:read", 200, an_alias, foreign=200, path=ALIAS),
    ("get", CHECKPOINTS): Row("models:read", 200, path=DIGITS),
    ("get", CHECKPOINTS + "/{number}"): Row("models:read", 200, path=VERSION),
    ("get", CHECKPOINTS + "/{number}/report"): Row("models:read", 200, a_drawn_version, foreign=200, path=DRAWN),
    ("get", CHECKPOINTS + "/{number}/report.html"): Row("models:read", 200, a_drawn_version, foreign=200, path=DRAWN),
    ("get", CHECKPOINTS + "/{number}/pictures/{picture}"): Row("requests:concept", 200, a_drawn_version, path=DRAWN),
    ("get", CHECKPOINTS + "/{number}/files/{path}"): Row("models:read", 200, path={**VERSION, "path": "config.json"}),
    ("get", CHECKPOINTS + "/{number}/archive"): Row("models:read", 200, path=VERSION),
    ("post", CHECKPOINTS + "/{number}/override"): Row(
        "checkpoints:override", 200, a_quarantined_version, foreign=200, path={"name": "overruled", "number": "{thing}"},
        call=sends(json={"code": "other", "reason": "x"}, **MATCH),
    ),
    ("post", CHECKPOINTS + "/{number}/retire"): Row(
        "checkpoints:retire", 200, a_retirable_version, path={"name": "retired", "number": "{thing}"},
        call=sends(json={"code": "erasure"}, **MATCH), **FOREIGN,
    ),
    ("post", MODEL + "/retire"): Row(
        "checkpoints:retire", 200, a_model, path=DIGITS, call=sends(json={"code": "erasure"}), **FOREIGN
    ),
    ("get", "/v1/requests"): Row("requests:read", 200),
    ("post", "/v1/requests"): Row(
        "requests:create", 202, a_forget_set,
        call=lambda world, thing: {"json": {"model": "digits", "forget": {"dataset": thing}}},
    ),
    ("post", "/v1/requests/bulk"): Row(
        "requests:create", 200, call=sends(json={"requests": [{"model": "digits", "forget": {"class_label": "3"}}]})
    ),
    ("post", "/v1/requests/estimate"): Row(
        "requests:create", 200, a_forget_set,
        call=lambda world, thing: {"json": {"model": "digits", "forget": {"dataset": thing}}},
    ),
    ("get", REQUEST): Row("requests:read", 200, a_request),
    ("get", REQUEST + "/preview.png"): Row("requests:concept", 200, a_request),
    ("post", REQUEST + "/cancel"): Row("requests:create", 202, a_request),
    ("post", REQUEST + "/retry"): Row("requests:create", 202, a_failed_request),
    ("post", REQUEST + "/verification"): Row(
        "requests:verify", 200, a_request_to_verify, foreign=200, own=403,
        call=sends(json={"outcome": "verified", "method": "other"}),
    ),
    ("post", REQUEST + "/approve"): Row("requests:approve", 202, a_request_to_approve, own=403),
    ("post", REQUEST + "/deny"): Row(
        "requests:approve", 200, a_request_to_approve, own=403, call=sends(json={"code": "other"})
    ),
    ("post", REQUEST + "/extend"): Row(
        "requests:approve", 200, a_request,
        call=lambda world, _: {
            "json": {"code": "complexity", "notified_at": datetime.now(UTC).isoformat(), "due_at": "2035-01-01T00:00:00Z"}
        },
    ),
    ("get", REQUEST + "/attacks"): Row("requests:read", 200, a_request),
    ("post", REQUEST + "/attacks"): Row("requests:create", 202, an_attackable_request, call=sends(json=QUANTISED)),
    ("put", REQUEST + "/hold"): Row("requests:hold", 200, a_request, call=sends(json={"code": "audit"})),
    ("delete", REQUEST + "/hold"): Row("requests:hold", 204, a_held_request),
    ("get", REQUEST + "/purge"): Row("requests:read", 200, a_purged_request),
    ("get", JOB): Row("requests:read", 200, an_ended_job),
    ("post", JOB + "/cancel"): Row("requests:create", 202, an_attack_job),
    ("get", JOB + "/events"): Row("requests:read", 200, an_ended_job),
    ("get", JOB + "/events/stream"): Row("requests:read", 200, an_ended_job),
    ("get", "/v1/audit"): Row("audit:read", 200),
    ("get", "/v1/audit/head"): Row("audit:read", 200),
    ("get", "/v1/audit/export"): Row("audit:read", 200),
    ("get", "/v1/keys"): Row("keys:write", 200),
    ("post", "/v1/keys"): Row(
        "keys:write", 201, besides=ROLES["requester"], call=sends(json={"name": "x", "role": "requester"})
    ),
    ("delete", KEY): Row("keys:write", 204, a_requester_s_key, besides=ROLES["requester"], foreign=204),
    ("post", KEY + "/rotate"): Row(
        "keys:write", 200, a_requester_s_key, besides=ROLES["requester"], foreign=200, call=sends(json={})
    ),
}  # fmt: skip
CASES = sorted(ROWS)


@dataclass(frozen=True)
class Caller:
    http: TestClient
    actor: str
    scopes: tuple[str, ...]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """SQLite alone: access does not depend on the database."""
    folder = tmp_path_factory.mktemp("matrix")
    lethe = deploy(Settings(data=folder / "lethe", rate_limit="", rate_limit_address=""))
    migration.upgrade(lethe.store)
    made = build(lethe, folder)
    for name in ("overruled", "retired"):
        assert register(made, name, made.directory, retain="train-set").status_code == 201
    numbers = [add_version(made, folder)[0] for _ in range(2)]
    assert len(numbers) == 2
    with lethe.store.write() as session:  # 1 is the base: 2 and 3 have reports and pictures
        for wanted, number in enumerate(numbers, start=2):
            session.execute(update(Checkpoint).where(Checkpoint.number == number).values(number=wanted))
    yield made
    lethe.store.close()


@pytest.fixture(scope="module")
def document(world: World) -> dict[str, Any]:
    return create_app(world.lethe).openapi()


@pytest.fixture(scope="module")
def callers(world: World) -> dict[str, Caller]:
    """One of each role, and one that reads the concepts of its own requests alone and makes keys of no role."""
    found = {}
    app = create_app(world.lethe)
    for role, scopes in CALLERS.items():
        with world.lethe.store.write() as session:
            key, text = api_keys.issue(
                session, world.lethe.pepper, name=role, role=role, actor="test", scopes=list(scopes)
            )
        http = TestClient(app, headers={"Authorization": f"Bearer {text}"}, raise_server_exceptions=False)
        found[role] = Caller(http, key.actor, scopes)
    return found


@pytest.fixture(scope="module")
def shut_out(world: World) -> dict[str, TestClient]:
    """No key, an expired and a revoked one, each with every scope there is."""
    app, found = create_app(world.lethe), {"no key": TestClient(create_app(world.lethe))}
    for why, column in (("expired", ApiKey.expires_at), ("revoked", ApiKey.revoked_at)):
        with world.lethe.store.write() as session:
            key, text = api_keys.issue(session, world.lethe.pepper, name=why, role="admin", actor="test")
            session.flush()
            session.execute(update(ApiKey).where(ApiKey.id == key.id).values({column: 1.0}))
        found[why] = TestClient(app, headers={"Authorization": f"Bearer {text}"})
    return found


def call(world: World, http: TestClient, operation: tuple[str, str], owner: str) -> Any:
    verb, path = operation
    row = ROWS[operation]
    thing = row.thing(world, owner) if row.thing else ""
    filled = re.sub(r"\{(\w+)\}", lambda name: row.path.get(name[1], "{thing}").replace("{thing}", thing), path)
    return http.request(verb, filled, **row.call(world, thing))


def test_every_operation_has_a_row(document: dict[str, Any]) -> None:
    assert set(ROWS) == {(verb, path) for path, verbs in document["paths"].items() for verb in verbs}


@pytest.mark.parametrize("operation", CASES, ids=" ".join)
def test_each_role_may_what_its_scopes_say(
    operation: tuple[str, str], world: World, callers: dict[str, Caller], document: dict[str, Any]
) -> None:
    row, documented = ROWS[operation], document["paths"][operation[1]][operation[0]]["responses"]
    for role, caller in callers.items():
        reaches_all = row.over in caller.scopes
        expected = {"own": row.own or row.status, "foreign": (row.seen or row.status) if reaches_all else row.foreign}
        for whose, owner in (("own", caller.actor), ("foreign", "key:somebody-else")):
            if whose == "foreign" and row.thing is None:
                continue
            answer = call(world, caller.http, operation, owner)
            allowed = row.scope == OPEN or {row.scope, *row.besides} <= set(caller.scopes)
            status = expected[whose] if allowed else 403
            assert answer.status_code == status, (role, whose, answer.text[:300])
            assert str(status) in documented, (role, whose)
            if status >= 400:
                forbidden = "separation-of-duties" if whose == "own" else "not-owner"
                code = "missing-scope" if not allowed else forbidden if status == 403 else "not-found"
                refused(answer, status, code)


@pytest.mark.parametrize("operation", CASES, ids=" ".join)
def test_without_a_valid_key_only_open_operations_answer(
    operation: tuple[str, str], world: World, shut_out: dict[str, TestClient]
) -> None:
    for why, http in shut_out.items():
        answer = call(world, http, operation, "key:somebody-else")
        if ROWS[operation].scope == OPEN:
            assert answer.status_code == 200, why
        else:
            refused(answer, 401, "unauthorized")


@pytest.mark.parametrize("operation", CASES, ids=" ".join)
def test_an_unknown_parameter_is_refused_wherever_a_key_is_needed(
    operation: tuple[str, str], world: World, callers: dict[str, Caller]
) -> None:
    verb, path = operation
    row = ROWS[operation]
    options = row.call(world, "x")
    options = {**options, "params": {**options.get("params", {}), "no_such_parameter": "1"}}
    answer = callers["admin"].http.request(verb, re.sub(r"\{\w+\}", "x", path), **options)
    if path in ("/healthz", "/readyz"):
        assert answer.status_code == 200
    else:
        refused(answer, 422, "unknown-parameter", "query.no_such_parameter")


def test_lists_hold_one_s_own_unless_a_key_sees_everybody_s(world: World, callers: dict[str, Caller]) -> None:
    mine = {role: a_request(world, caller.actor) for role, caller in callers.items()}
    sets = {role: a_forget_set(world, caller.actor) for role, caller in callers.items()}
    for role, caller in callers.items():
        for path, things, scope in (("/v1/requests", mine, "requests:read"), ("/v1/datasets", sets, "datasets:read")):
            if scope not in caller.scopes:
                continue
            listed = {each["id"] for each in caller.http.get(path, params={"limit": 200}).json()["data"]}
            expected = set(things.values()) if SEES_ALL in caller.scopes else {things[role]}
            assert listed & set(things.values()) == expected, (role, path)
