"""`lethe retire` against a real server: it asks first, says what went, and leaves the report."""

from collections.abc import Iterator

import pytest

from tests.app.api.deployed import World, forgotten, register
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


def test_a_model_s_past_is_retired_and_its_head_is_not(world: World) -> None:
    assert register(world, "faces", world.directory).status_code == 201
    old, _ = forgotten(world, "faces")
    head, _ = forgotten(world, "faces")
    assert "Go on?" in lethe("retire", "faces", status=1).stderr
    one = answer("retire", f"faces:{old}", "--yes", "--code", "storage")
    assert (one["status"], one["retired"]["code"], one["retired"]["erased"]) == ("retired", "storage", True)
    shown = lethe("retire", "faces", "--yes").stdout
    assert "superseded" in shown and "bytes of packs deleted" in shown
    assert "nothing to retire" in lethe("retire", "faces", "--yes").stdout
    assert "version-released" in lethe("retire", f"faces:{head}", "--yes", "--json", status=1).stderr
    assert lethe("retire", "faces:head", "--yes", status=2).stderr
    assert answer("report", f"faces:{old}")["verdict"] == "passed"
