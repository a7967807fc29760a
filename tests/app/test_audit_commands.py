"""`lethe audit`: export and heads from a real server, and `verify` without one."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from app import cli
from tests.app.api.deployed import World, asked
from tests.app.audit.logs import entries, export
from tests.app.serving import key_of, served
from tests.app.test_cli import answer, lethe
from tests.history import settle


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def world(server: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LETHE_URL", server[1])
    monkeypatch.setenv("LETHE_KEY", key_of(server[0]))
    return server[0]


def test_a_log_is_exported_and_verified_against_the_head_of_last_week(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(world.lethe.store)
    last_week, now, exported = tmp_path / "last-week.json", tmp_path / "now.json", tmp_path / "audit.jsonl"
    assert "link" in lethe("audit", "head", "-o", str(last_week)).stdout
    asked(world.requester)
    settle(world.lethe.store)  # the server's own sequencer
    head = answer("audit", "head", "-o", str(now))
    assert head == json.loads(now.read_bytes()) and head["size"] > json.loads(last_week.read_bytes())["size"]
    assert answer("audit", "export", "-o", str(exported)) == {"path": str(exported)}
    assert exported.read_bytes() == lethe("audit", "export").stdout_bytes
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    monkeypatch.setenv("LETHE_URL", "http://127.0.0.1:9")  # no server from here on
    found = answer("audit", "verify", str(exported), "--since", str(last_week), "--against", str(now))
    assert found == {"ok": True, "from": 1, "size": head["size"], "link": head["link"], "heads": 2}
    assert "no head from elsewhere" in lethe("audit", "verify", str(exported)).stdout
    lines = exported.read_bytes().splitlines(keepends=True)
    exported.write_bytes(b"".join(lines[:-2] + lines[-1:]))
    wrong = answer("audit", "verify", str(exported), status=1)
    assert wrong["ok"] is False and wrong["problem"].startswith("removed") and wrong["line"] == len(lines) - 1
    exported.write_bytes(export([json.loads(line)["entry"] for line in lines[1:-2]]))
    assert lethe("audit", "verify", str(exported)).exit_code == 0
    told = lethe("audit", "verify", str(exported), "--since", str(now), status=1).stderr
    assert told.startswith(f"line {len(lines) - 2} (seq {head['size'] - 2}): truncated")


def test_a_part_goes_on_from_a_head(world: World, tmp_path: Path) -> None:
    settle(world.lethe.store)
    part = tmp_path / "part.jsonl"
    lethe("audit", "export", "--from", "3", "--to", "4", "-o", str(part))
    assert len(part.read_bytes().splitlines()) == 3 and "entries 3 to 4" in lethe("audit", "verify", str(part)).stdout
    assert "must not be beyond" in lethe("audit", "export", "--to", "99999", status=1).stderr


def test_an_export_is_verified_from_stdin() -> None:
    arguments = ["audit", "verify", "-", "--json"]
    assert CliRunner().invoke(cli.main, arguments, input=export(entries(3))).exit_code == 0
    assert CliRunner().invoke(cli.main, arguments, input=export(entries(3))[:-5]).exit_code == 1


def test_an_earlier_head_is_never_overwritten_and_no_other_file_passes_for_one(world: World, tmp_path: Path) -> None:
    kept = tmp_path / "head.json"
    lethe("audit", "head", "-o", str(kept))
    before = kept.read_bytes()
    assert "FileExistsError" in lethe("audit", "head", "-o", str(kept), status=1).stderr
    assert kept.read_bytes() == before
    (tmp_path / "audit.jsonl").write_bytes(export(entries(3)))
    exported = str(tmp_path / "audit.jsonl")
    assert "It is no head" in lethe("audit", "verify", exported, "--since", exported, status=1).stderr
