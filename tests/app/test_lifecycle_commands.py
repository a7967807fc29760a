"""`lethe verify`, `approve`, `deny`, `extend` and `requests --at-risk` against a real server."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app import cli
from app.client import Lethe, Problem
from app.records import api_key as api_keys
from app.records.api_key import ApiKey
from tests.app.api.deployed import World, asked
from tests.app.serving import key_of, served
from tests.conftest import key_for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("served")) as (world, address):
        process = {"process": {"verification": "required", "approval": "required"}}
        assert world.admin.patch("/v1/models/digits", json=process, headers={"If-Match": "*"}).status_code == 200
        yield world, address


@pytest.fixture
def world(server: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LETHE_URL", server[1])
    monkeypatch.setenv("LETHE_KEY", key_of(server[0]))
    return server[0]


def lethe(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == status, result.output + result.stderr
    return result


def test_a_request_is_verified_extended_and_approved(world: World) -> None:
    made = asked(world.requester, method="auto", regime="gdpr")
    assert made["id"] in lethe("requests", "--status", "awaiting_verification").stdout  # auto, and no rung yet
    said = lethe("verify", made["id"], "--method", "in_person", "--reference", "desk/1").stdout
    assert said.strip() == f"{made['id']} verified, now awaiting_approval"
    told = datetime.now(UTC).isoformat()
    extended = json.loads(lethe("extend", made["id"], "--code", "complexity", "--notified", told, "--json").stdout)
    assert extended["due_at"] > made["due_at"]
    assert lethe("approve", made["id"]).stdout.startswith(f"{made['id']} queued, due {extended['due_at'][:10]}")
    assert "illegal-transition" in lethe("approve", made["id"], "--json", status=1).stderr


def test_a_denial_names_a_code_and_a_watcher_sees_the_end(world: World) -> None:
    made = asked(world.requester)
    assert lethe("deny", made["id"], status=2).exit_code == 2
    denied = json.loads(lethe("deny", made["id"], "--code", "duplicate", "--json").stdout)
    assert (denied["status"], denied["reason"]) == ("denied", "duplicate")
    assert lethe("watch", made["id"], status=1).stdout.strip() == f"{made['id']} denied duplicate"


def test_who_asked_is_refused_with_its_own_code(world: World, server: tuple[World, str]) -> None:
    posted = json.loads(lethe("request", "digits", "--class-label", "1", "--regime", "ccpa", "--json").stdout)
    assert (posted["status"], posted["regime"]) == ("awaiting_verification", "ccpa")
    assert "separation-of-duties" in lethe("deny", posted["id"], "--code", "other", "--json", status=1).stderr
    with Lethe(server[1], key_for(world.lethe, "verifier")) as check, pytest.raises(Problem) as problem:
        check.approve(posted["id"])
    assert problem.value.status == 403 and problem.value.type.endswith("missing-scope")


def test_what_is_due_soon_is_listed_with_the_days_that_are_left(world: World) -> None:
    soon = asked(world.requester, due_at=(datetime.now(UTC) + timedelta(days=3, hours=1)).isoformat())
    later = asked(world.requester)
    found: list[dict[str, Any]] = json.loads(lethe("requests", "--at-risk", "7", "--json").stdout)
    assert [each["id"] for each in found] == [soon["id"]] and found[0]["days_left"] == 3
    shown = lethe("requests", "--at-risk", "7").stdout
    assert soon["id"] in shown and "days left" in shown and later["id"] not in shown


def test_an_expired_or_revoked_admin_key_is_no_admin(world: World) -> None:
    with world.lethe.store.write() as session:
        assert api_keys.any_admin(session)
        for key in session.query(ApiKey).filter_by(role="admin"):
            key.expires_at = 1.0
        session.flush()
        assert not api_keys.any_admin(session)
        api_keys.issue(session, b"x", name="x", role="admin", actor="test", expires_at=4e9)
        assert api_keys.any_admin(session)
        session.rollback()
