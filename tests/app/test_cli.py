"""The `lethe` command against a real server, and the commands that need none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from app import cli, settings
from app.catalog import FAMILIES, METHODS
from app.records import job as jobs
from tests import pictures, reports, tiny
from tests.app.api.deployed import World, add_version
from tests.app.captioned import PAINTER, unjudged
from tests.app.captioned import archive as captioned
from tests.app.serving import key_of, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture
def world(server: tuple[World, str], monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LETHE_URL", server[1])
    monkeypatch.setenv("LETHE_KEY", key_of(server[0]))
    return server[0]


def lethe(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == status, result.output + result.stderr
    return result


def answer(*arguments: str, status: int = 0) -> Any:
    return json.loads(lethe(*arguments, "--json", status=status).stdout)


def fail(world: World, request: dict[str, Any]) -> None:
    with world.lethe.store.write() as session:
        jobs.of_request(session, request["id"])[-1].deadline = -1.0
    with world.lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.request_id == request["id"]
        jobs.fail(session, job.id, job.lease_token, "worker:test", {"code": "out_of_memory", "detail": ""})


def test_the_catalogue_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_URL", "http://127.0.0.1:9")
    found = answer("catalog")
    assert [method["name"] for method in found["methods"]] == list(METHODS)
    assert all({"name", "families", "parameters"} <= method.keys() for method in found["methods"])
    assert [family["name"] for family in found["families"]] == list(FAMILIES) and isinstance(found["metrics"], list)
    shown = lethe("catalog").stdout
    assert all(name in shown for name in METHODS)


def test_every_command_that_answers_has_json() -> None:
    running = {"up", "serve", "work"}  # they run until they are stopped; their logs are JSON lines

    def walk(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
        found: dict[str, click.Command] = {}
        for name, command in group.commands.items():
            found |= walk(command, f"{prefix}{name} ") if isinstance(command, click.Group) else {prefix + name: command}
        return found

    commands = walk(cli.main)
    assert {
        "models register",
        "request",
        "watch",
        "pull",
        "requests",
        "report",
        "compare",
        "catalog",
    } <= commands.keys()
    lacking = {
        name
        for name, command in commands.items()
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert lacking == running
    assert all(command.help for command in commands.values())


def test_migrate_and_key_work_on_the_servers_own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_DATA", str(tmp_path / "data"))
    settings.settings.cache_clear()
    (tmp_path / "data").mkdir()
    try:
        assert answer("migrate")["schema"]
        made = answer("key", "--name", "ci", "--role", "requester")
        assert made["key"].startswith(f"lethe_{made['id']}_")
        assert lethe("key").stdout.startswith("lethe_")
    finally:
        settings.settings.cache_clear()


def test_from_upload_to_request_and_back(world: World, tmp_path: Path) -> None:
    archive = tmp_path / "set.zip"
    archive.write_bytes(pictures.imagefolder(seed=11))
    dataset = answer("upload", str(archive), "--role", "train", "--name", "cli-train")
    assert (dataset["name"], dataset["count"]) == ("cli-train", 24)
    assert "24 images" in lethe("upload", str(archive), "--role", "test", "--name", "cli-test").stdout
    model = answer("models", "register", str(world.directory), "--name", "cli", "--family", "image_classifier",
                   "--train", "cli-train", "--retain", "cli-train", "--test", "cli-test",
                   "--retention", "completed_days=30", "--process", "verification=none")  # fmt: skip
    assert (model["name"], model["head"]) == ("cli", 1)
    assert (model["retention"]["completed_days"], model["process"]["verification"]) == (30, "none")
    wrong = ("--name", "slow", "--family", "image_classifier", "--retention", "completed_days=a month")
    assert "retention" in lethe("models", "register", str(world.directory), *wrong, status=1).stderr
    assert "cli" in [each["name"] for each in answer("models", "list")]
    assert "cli" in lethe("models", "list").stdout
    made = answer("request", "cli", "--sample", "0/0", "--sample", "1/2", "--concept", "two", "--method", "salun", "--set", "mask_fraction=0.25",
                  "--set", "optimizer=adam", "--set", "soft=true", "--seed", "3", "--external-id", "case-1")  # fmt: skip
    assert (made["status"], made["forget_count"], made["seed"], made["external_id"]) == ("queued", 2, 3, "case-1")
    (recipe,) = (rung["recipe"] for rung in made["ladder"])
    assert (recipe["mask_fraction"], recipe["optimizer"], recipe["soft"]) == (
        0.25,
        "adam",
        True,
    )
    assert [each["id"] for each in answer("requests", "--model", "cli", "--status", "queued")] == [made["id"]]
    shown = lethe("requests", "--model", "cli").stdout
    assert made["id"] in shown and "queued" in shown
    assert answer("cancel", made["id"])["status"] == "cancelled"
    assert lethe("watch", made["id"], status=1).stdout.strip() == f"{made['id']} cancelled"


def test_a_concept_alone_selects_and_is_previewed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unjudged(monkeypatch)
    (tmp_path / "album.zip").write_bytes(captioned([("park", "Anna reads"), ("park", None)]))
    answer("upload", str(tmp_path / "album.zip"), "--role", "train", "--name", "album")
    directory = tiny.write("sd", tmp_path / "painter")
    easel = answer(
        "models", "register", str(directory), "--name", "easel", "--family", PAINTER, "--train", "album",
        "--evaluator", "context=digits", "--evaluation", 'contexts=["1","3"]', "--evaluation", "sampling_steps=7",
    )  # fmt: skip
    assert set(easel["evaluators"]) == {"context"}
    assert easel["evaluation"]["contexts"] == ["1", "3"] and easel["evaluation"]["sampling_steps"] == 7
    made = answer("request", "easel", "--concept", "anna")
    assert (made["forget_kind"], made["forget_count"], made["forget_source"]) == ("concept", 1, "registered")
    target = tmp_path / "preview.png"
    assert answer("preview", made["id"], str(target)) == {"path": str(target)}
    assert target.read_bytes().startswith(b"\x89PNG")
    generated = answer("request", "easel", "--concept", "zoe", "--generate-forget", "5", "--generate-retain", "6")
    assert (generated["forget_count"], generated["forget_source"]) == (5, "generated")
    assert "5 by concept, generated" in lethe("requests", "--model", "easel").stdout
    assert "preview" in lethe("preview", generated["id"], str(target), status=1).stderr
    assert "forget" in lethe("request", "easel", status=1).stderr


def test_watching_a_request_that_fails_exits_with_one(world: World) -> None:
    made = answer("request", "digits", "--class-label", "2", "--method", "salun")
    fail(world, made)
    watched = answer("watch", made["id"], status=1)
    assert (watched["status"], watched["reason"]) == ("failed", "out_of_memory")
    assert "no version yet" in lethe("report", made["id"], status=1).stderr


def test_the_rungs_of_a_ladder_are_shown(world: World, tmp_path: Path) -> None:
    made = answer("request", "digits", "--class-label", "3")
    with world.lethe.store.write() as session:
        jobs.of_request(session, made["id"])[-1].deadline = -1.0
    with world.lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.request_id == made["id"]
        jobs.write_as_holder(session, job.id, job.lease_token, unlearning_seconds=1.25)
        jobs.succeed(session, job.id, job.lease_token, "worker:test", False, {})
    earlier = {
        "method": "slug",
        "version": None,
        "verdict": None,
        "error": "out_of_memory",
        "unlearning_seconds": None,
        "seconds": 4.0,
    }
    document = reports.of_a_generator(ladder={"rung": 1, "rungs": 3, "method": "salun", "earlier": [earlier]})
    number, _ = add_version(world, tmp_path, report=document, request_id=made["id"], job_id=job.id)
    assert "auto: salun, rung 2 of 3" in lethe("requests", "--model", "digits").stdout
    shown = lethe("report", made["id"]).stdout
    for part in ("1 of 3", "slug", "passed", str(number), "1.25", "2 of 3", "rung 2 of 3 of the ladder: salun",
                 "before it slug: out_of_memory, 4.00 s in all"):  # fmt: skip
        assert part in shown, part
    assert answer("report", made["id"]) == document
    lethe("cancel", made["id"])


def test_pull_takes_the_head_or_a_version(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    pulled = answer("pull", "digits", str(tmp_path / "head"))
    assert pulled == {"path": str(tmp_path / "head"), "number": number, "status": "released"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "head").iterdir()} == {
        path.name: path.read_bytes() for path in directory.iterdir()
    }
    told = lethe("pull", f"digits:{number}", str(tmp_path / "numbered")).stdout
    assert f"digits version {number} (released, " in told
    lethe("pull", "digits:999", str(tmp_path / "absent"), status=1)


def test_a_damaged_partial_file_is_one_line_and_status_one(world: World, tmp_path: Path) -> None:
    (tmp_path / "config.json.part").write_bytes(b"?")
    result = lethe("pull", "digits:1", str(tmp_path), status=1)
    assert "SHA-256" in result.stderr and "Traceback" not in result.output
    lethe("pull", "digits:1", str(tmp_path))


def test_refusals_are_one_line_or_a_problem_document(world: World) -> None:
    result = lethe("request", "absent", "--class-label", "1", status=1)
    assert result.stderr.startswith("Not found: ") and result.stdout == ""
    document = json.loads(
        lethe("request", "digits", "--class-label", "1", "--method", "wishing", "--json", status=1).stderr
    )
    assert document["type"] == "urn:lethe:problem:unknown-method" and document["errors"][0]["field"] == "method"
    document = json.loads(lethe("models", "list", "--json").stdout)
    assert isinstance(document, list)


def test_a_server_that_is_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_URL", "http://127.0.0.1:9")
    result = lethe("requests", status=1)
    assert result.stderr.startswith("No server: ") and "Traceback" not in result.output
    assert json.loads(lethe("requests", "--json", status=1).stderr)["title"] == "No server"


def test_a_version_s_report_is_shown_and_saved_as_a_page(world: World, tmp_path: Path) -> None:
    number, _ = add_version(world, tmp_path, report=reports.of_a_generator(pictures=["grid.png"]))
    assert (
        answer("report", f"digits:{number}")
        == answer("report", "digits")
        == reports.of_a_generator(pictures=["grid.png"])
    )
    assert "97.50" in lethe("report", f"digits:{number}").stdout
    page = tmp_path / "report.html"
    assert answer("report", f"digits:{number}", "--html", str(page)) == {"path": str(page)}
    assert page.read_text().startswith("<!DOCTYPE html>") and "data:image/png;base64," in page.read_text()
    assert str(page) in lethe("report", "digits", "--html", str(page)).stdout
    assert lethe("report", "digits:1", "--html", str(tmp_path / "none"), status=1).stderr.startswith("Not found: ")
    assert not (tmp_path / "none").exists()


def test_two_versions_are_compared(world: World, tmp_path: Path) -> None:
    rule = {"rule": "at_least", "value": 95.0}
    promise = {"request": "req_1", "kind": "samples", "probe": None, "figures": []}
    unmade = {"value": None, "interval": None, "n": 0, "sides": {}, "budget": {}, "reason": "It reads no words."}
    stronger = reports.of_a_generator(
        attacks=[reports.attack("relearning", 30, 40), reports.attack("paraphrases", 0, 40, **unmade)],
        promises=[{**promise, "kept": None, "reason": "forget_set_purged"}],
    )
    weaker = reports.report(
        reports.figure("unlearning_accuracy", 90.0, 2.5, threshold=rule, passed=False, n_needed=73),
        verdict="failed",
        judge="sha256:other",
        attacks=[reports.attack("relearning", 2, 20, threshold={"rule": "at_most", "value": 20.0}, passed=True)],
        promises=[{**promise, "kept": False, "reason": None}],
    )
    (first, _), (second, _) = (add_version(world, tmp_path, report=each) for each in (stronger, weaker))
    found = answer("compare", f"digits:{first}", f"digits:{second}")
    assert found["versions"] == [f"digits:{first}", f"digits:{second}"] and found["verdicts"] == ["passed", "failed"]
    assert found["figures"][0]["difference"] == -7.5 and found["unlike"] == ["judge", "forgotten"]
    assert [side["rules"][0]["passed"] for side in found["figures"][0]["sides"]] == [True, False]
    assert found["attacks"][0]["difference"] == -65.0
    assert [side["kept"] for side in found["promises"][0]["sides"]] == ["unprobed", "broken"]
    shown = lethe("compare", f"digits:{first}", "digits").stdout
    for part in (
        f"digits:{first}",
        "digits:head",
        "97.50",
        "87.12 to 99.56",
        "≥ 95 yes",
        "≥ 95 NO",
        "-7.50",
        "relearning",
        "59.81 to 85.81",
        "≤ 20 yes",
        "-65.00",
        "not made",
        "unprobed: forget set purged",
        "BROKEN",
        "not measured alike (judge)",
        "not known to have forgotten the same",
    ):
        assert part in shown, part
    assert lethe("compare", "digits:1", "digits", status=1).stderr.startswith("Not found: ")


def test_a_report_is_shown_as_a_table(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"rule": "at_least", "value": 95.0}
    figure = {
        "name": "unlearning_accuracy",
        "title": "Unlearning accuracy",
        "before": 1.0,
        "value": 97.5,
        "target": None,
        "n": 40,
    }
    rows = [{**figure, "threshold": rule, "passed": True}, {**figure, "value": None, "threshold": rule, "passed": False},
            {**figure, "name": "fid[judge]", "threshold": None, "passed": None}]  # fmt: skip
    rows[0] |= {"n_needed": 73, "interval": {"level": 95, "low": 87.12, "high": 99.56, "by": "wilson"}}
    rows.append({**rows[2], "threshold": {"rule": "times_before_at_most", "value": 1.1}, "passed": None})
    made = reports.attack("relearning", 3, 8, threshold={"rule": "at_most", "value": 20.0}, passed=False)
    older = {**made, "sides": {"unlearned": {"before": None, "after": {"success": 3, "total": 8}}}}
    not_made = {"attack": "paraphrases", "reason": "It reads no words.", "n": 0, "threshold": None, "passed": None}
    cli.show_report(cli.Console(width=200), {"figures": rows, "verdict": "failed", "attacks": [made, not_made]})
    shown = capsys.readouterr().out
    for part in ("97.50", "87.12 to 99.56", "≥ 95", "40 (73 needed)", "NO", "fid[judge]", "≤ 1.1 × before", "not measured",
                 "37.50", "≤ 20", "It reads no words.", "0.00 to 32.44", "13.68 to 69.43", "67.56 to 100.00",
                 "verdict: failed"):  # fmt: skip
        assert part in shown, part
    cli.show_report(cli.Console(width=200), {"figures": rows, "verdict": "failed", "attacks": [older]})
    shown = capsys.readouterr().out
    assert "13.68 to 69.43" in shown and "67.56" not in shown
