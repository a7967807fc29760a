"""`lethe alias`, `lethe rollback`, `lethe override`, and MODEL:ALIAS where a version is read, against a real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Lethe, Problem
from app.records.checkpoint import Status
from tests.app.api.deployed import World, add_version, forgotten, register
from tests.app.serving import key_of, served
from tests.app.test_cli import answer, lethe


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def world(server: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LETHE_URL", server[1])
    monkeypatch.setenv("LETHE_KEY", key_of(server[0]))
    return server[0]


def test_an_alias_is_set_moved_rolled_back_and_removed(world: World) -> None:
    assert register(world, "faces", world.directory).status_code == 201
    assert answer("alias", "set", "faces", "production", "head", "--reason", "first")["version"] == 1
    number, request_id = forgotten(world, "faces")
    assert "superseded" in lethe("alias", "ls", "faces").stdout
    moved = lethe("alias", "set", "faces", "production", str(number), "--reason", "second").stdout
    assert moved.strip() == f"faces:production is version {number}"
    assert answer("alias", "set", "faces", "canary", "production", "--reason", "as production")["version"] == number
    assert [each["name"] for each in answer("alias", "ls", "faces")] == ["canary", "production"]
    told = lethe("rollback", "faces", "production", "--reason", "wrong [answers]").stdout
    assert "faces:production is version 1 (superseded)" in told and f"{request_id} reopened" in told
    assert answer("watch", request_id, status=1)["status"] == "reopened"
    shown = lethe("alias", "history", "faces", "production").stdout
    assert "rolled_back" in shown and "wrong [answers]" in shown and request_id in shown
    back = answer("rollback", "faces", "production", "--to", str(number), "--reason", "mended")
    assert (back["version"], back["reopened"]) == (number, [])
    assert answer("alias", "rm", "faces", "canary", "--reason", "unused") == {"removed": "canary"}
    assert [move["kind"] for move in answer("alias", "history", "faces", "canary")] == ["created", "removed"]


def test_refusals_are_one_line(world: World) -> None:
    assert "--reason" in lethe("rollback", "digits", "production", status=2).stderr
    assert lethe("rollback", "digits", "nothing", "--reason", "x", status=1).stderr.startswith("Not found: ")
    assert "a-z" in lethe("alias", "set", "digits", "Best", "1", "--reason", "x", status=1).stderr
    lethe("alias", "rm", "digits", "nothing", "--reason", "x", status=1)


def test_an_alias_names_what_is_pulled_and_whose_report_is_shown(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    answer("alias", "set", "digits", "served", str(number), "--reason", "x")
    assert answer("pull", "digits:served", str(tmp_path / "pulled"))["number"] == number
    assert (tmp_path / "pulled" / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()
    assert answer("report", "digits:served") == answer("report", f"digits:{number}")
    with Lethe() as client:
        assert client.report("digits", "served")["verdict"] == "passed"
        client.pull("digits", "served", tmp_path / "again")
        with pytest.raises(Problem) as caught:
            client.report("digits", "absent")
    assert caught.value.status == 404


def test_a_client_that_read_the_alias_too_early_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert register(world, "late", world.directory).status_code == 201
    with Lethe() as client:
        client.set_alias("late", "production", 1, "first")
        stale = client.http.get("/v1/models/late/aliases/production").headers["ETag"]
        number, _ = forgotten(world, "late")
        client.set_alias("late", "production", number, "second")
        monkeypatch.setattr(client, "_etag", lambda path: stale)
        with pytest.raises(Problem) as set_late:
            client.set_alias("late", "production", number, "x")
        with pytest.raises(Problem) as rolled_back_late:
            client.roll_back("late", "production", "x")
    assert (set_late.value.status, rolled_back_late.value.status) == (412, 412)


def test_a_verdict_is_overruled_by_its_version_and_a_reason(world: World) -> None:
    assert register(world, "overruled", world.directory).status_code == 201
    number, request_id = forgotten(world, "overruled", Status.QUARANTINED)
    reason = ("--code", "judge_wrong", "--reason", "it takes [sevens] for ones")
    assert "by its number" in lethe("override", "overruled", *reason, status=2).stderr
    assert "--reason" in lethe("override", f"overruled:{number}", "--code", "other", status=2).stderr
    told = lethe("override", f"overruled:{number}", *reason).stdout
    assert told.strip() == f"overruled:{number} is released against its verdict, and {request_id} completed"
    shown = lethe("report", f"overruled:{number}").stdout
    assert "released against its verdict on" in shown and "judge wrong: it takes [sevens] for ones" in shown
    assert "released" in lethe("override", f"overruled:{number}", *reason, status=1).stderr
