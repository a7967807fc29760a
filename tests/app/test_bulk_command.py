"""`lethe request-bulk` and `lethe request --dry-run` against a real server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Lethe
from tests.app.api.deployed import World, stored
from tests.app.serving import key_of, served
from tests.app.test_cli import answer, lethe

GOOD = {"model": "digits", "forget": {"class_label": "3"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def world(server: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LETHE_URL", server[1])
    monkeypatch.setenv("LETHE_KEY", key_of(server[0]))
    return server[0]


def lines(folder: Path, *bodies: object) -> str:
    file = folder / "requests.jsonl"
    file.write_text("\n\n".join(json.dumps(body) for body in bodies) + "\n")
    return str(file)


def test_a_table_says_what_became_of_each_line_and_the_status_that_one_was_refused(
    world: World, tmp_path: Path
) -> None:
    file = lines(tmp_path, GOOD, {**GOOD, "model": "absent"}, {**GOOD, "forget": {"samples": ["0/0"]}})
    shown = lethe("request-bulk", file, status=1).stdout
    assert shown.count("req_") == 2 and "404" in shown and "no such model" in shown
    assert [each["status"] for each in answer("request-bulk", file, status=1)] == [202, 404, 202]


def test_a_file_sent_again_under_its_key_asks_for_nothing_twice(world: World, tmp_path: Path) -> None:
    file = lines(tmp_path, GOOD, GOOD)
    first = answer("request-bulk", file, "--idempotency-key", "today")
    before = stored(world.lethe)[0]["requests"]
    again = answer("request-bulk", file, "--idempotency-key", "today")
    assert [each["request"]["id"] for each in again] == [each["request"]["id"] for each in first]
    assert all(each["replayed"] for each in again) and stored(world.lethe)[0]["requests"] == before
    assert "(stored before)" in lethe("request-bulk", file, "--idempotency-key", "today").stdout


def test_a_line_that_is_no_json_is_named_by_its_number_and_not_repeated(world: World, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\nanna smith\n")
    before = stored(world.lethe)[0]["requests"]
    complaint = lethe("request-bulk", str(file), status=2).stderr
    assert "line 2 is not JSON" in complaint and "anna" not in complaint
    assert stored(world.lethe)[0]["requests"] == before


def test_a_dry_run_shows_what_would_come_and_asks_for_nothing(world: World) -> None:
    before = stored(world.lethe)[0]
    shown = lethe("request", "digits", "--class-label", "3", "--dry-run").stdout
    assert "would forget 6 by class_label (registered) and keep 18. Nothing was asked." in shown
    assert "slug" in shown and "1 of " in shown and shown.count("not known") == 3
    found = answer("request", "digits", "--class-label", "3", "--dry-run")
    assert [each["method"] for each in found["ladder"]] == ["slug", "salun", "salun"]
    assert "no such model" in lethe("request", "absent", "--class-label", "3", "--dry-run", status=1).stderr
    assert stored(world.lethe)[0] == before


def test_the_client_asks_for_both(world: World, server: tuple[World, str]) -> None:
    with Lethe(server[1], key_of(world)) as client:
        assert client.estimate("digits", {"samples": ["0/0"]}, method="salun")["forget_count"] == 1
        (made,) = client.request_bulk([GOOD])
        assert client.call("GET", f"/v1/requests/{made['request']['id']}")["id"] == made["request"]["id"]
