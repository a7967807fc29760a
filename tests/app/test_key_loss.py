"""A lost key: what still works, how the service says so, and how to go on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from app import cli, keyring_status, migration, settings, sweeper
from app.deployment import deploy
from app.errors import JobError
from app.fingerprint_rotation import retire, rotate
from app.privacy.sealing import Keyring
from app.records import checkpoint as checkpoints
from app.records import model as models
from app.records.request import Request
from app.registration import scratch
from app.settings import Settings
from tests.app.api.deployed import World, asked, audited, build, forget_set, forgotten, upload_set
from tests.app.test_fingerprint_rotation import FIRST, forget, image, left_out, told
from tests.conftest import key_for


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """On SQLite: keys are files on both databases."""
    lethe = deploy(Settings(data=tmp_path / "lethe", model_roots=str(tmp_path)))
    migration.upgrade(lethe.store)
    yield build(lethe, tmp_path)
    lethe.store.close()


@pytest.fixture
def operator(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The commands work on this deployment."""
    monkeypatch.setenv("LETHE_DATA", str(world.lethe.settings.data))
    settings.settings.cache_clear()
    yield world
    settings.settings.cache_clear()


def lethe(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == status, result.output + result.stderr
    return result


def test_a_lost_fingerprint_key_stops_uploads_and_readiness_until_it_is_back_or_given_up(world: World) -> None:
    lethe, path = world.lethe, world.lethe.keyring.folder / "named/fingerprint.key"
    forget(world, samples=["0/0"])
    kept = path.read_bytes()
    path.unlink()
    answer = upload_set(world.admin, "retain", "refused")
    assert answer.status_code == 503 and answer.json()["type"].endswith("key-lost") and not path.exists()
    ready = world.admin.get("/readyz")
    assert (
        ready.status_code == 503
        and "lethe keyring status" in ready.json()["detail"]
        and "/" not in ready.json()["detail"]
    )
    path.write_bytes(kept)
    path.chmod(0o600)
    assert world.admin.get("/readyz").status_code == 200
    lethe.keyring.destroy_named(FIRST)
    lethe.keyring.named_key(FIRST)  # another key under its name
    assert upload_set(world.admin, "retain", "refused").status_code == 503
    (broken,) = keyring_status.broken(lethe)
    assert "another key" in broken and "--reason-code lost" in broken
    assert rotate(lethe).translated == 1  # an index tells old and new mark of a sample without the old key
    retire(lethe, FIRST, "lost", yes=True)
    assert world.admin.get("/readyz").status_code == 200 and left_out(world, "after", image(0, 0, seed=1)) == 1


def test_without_its_master_key_nothing_starts_and_each_command_says_the_remedy(operator: World) -> None:
    (operator.lethe.keyring.folder / "master.key").rename(operator.lethe.settings.data / "backup.key")
    for command in ("up", "serve", "keyring status"):
        assert "put it back from its backup" in lethe(*command.split(), status=1).stderr
    worker = [sys.executable, "-m", "app.cli", "work"]
    done = subprocess.run(worker, env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "put it back from its backup" in done.stderr and "Traceback" not in done.stderr
    ready = operator.admin.get("/readyz")
    assert ready.status_code == 503 and ready.json()["type"].endswith("keyring-broken")
    answer = upload_set(operator.admin, "forget")  # a key cannot be made
    assert answer.status_code == 503 and "master" not in answer.text
    (operator.lethe.settings.data / "backup.key").rename(operator.lethe.keyring.folder / "master.key")
    assert operator.admin.get("/readyz").status_code == 200 and upload_set(operator.admin, "forget").status_code == 201


def test_a_lost_data_key_ends_its_request_with_a_reason_and_is_counted(operator: World) -> None:
    set_id = forget_set(operator.requester)
    request = asked(operator.requester, forget={"dataset": set_id})
    operator.lethe.keyring.destroy(set_id)
    assert keyring_status.status(operator.lethe)["missing"] == 1
    with pytest.raises(JobError, match="The forget set is gone. Upload it again"):
        told(operator, request["id"])
    assert json.loads(lethe("keyring", "status", "--json").stdout)["missing"] == 1


def test_a_lost_key_of_api_keys_shows_and_a_new_one_ends_every_api_key(operator: World) -> None:
    keyring_status.note_first_use(operator.lethe)
    operator.lethe.keyring.destroy_named("hmac")
    assert operator.admin.get("/v1/models").status_code == 401  # which made another one
    assert operator.admin.get("/readyz").status_code == 503
    assert "renew-api-secret" in lethe("keyring", "status", status=1).stderr
    lethe("keyring", "renew-api-secret", status=1)
    assert operator.admin.get("/readyz").status_code == 503
    lethe("keyring", "renew-api-secret", "--yes")
    assert operator.admin.get("/readyz").status_code == 200 and operator.admin.get("/v1/models").status_code == 401
    operator.admin.headers["Authorization"] = f"Bearer {key_for(operator.lethe)}"
    assert [each["actor"] for each in audited(operator, action="keyring.api_secret_renewed")] == ["operator"]


def test_a_lost_key_of_duplicates_shows_and_keeps_nobody_from_asking_until_it_is_replaced(operator: World) -> None:
    first = asked(operator.admin)["id"]
    keyring_status.note_first_use(operator.lethe)
    assert operator.admin.get("/readyz").status_code == 200
    operator.lethe.keyring.destroy_named("duplicates")
    assert operator.admin.get("/readyz").status_code == 503
    status = lethe("keyring", "status", status=1)
    assert "named/duplicates.key is gone" in status.stderr.replace("\n", "") and "rotate-duplicates" in status.stderr
    unmarked = asked(operator.admin)
    assert unmarked["duplicates"] == [] and not operator.lethe.keyring.has_named("duplicates")
    replace = ("keyring", "rotate-duplicates", "--reason-code", "lost")
    assert "of 1 earlier requests nobody" in lethe(*replace, status=1).stdout
    assert operator.admin.get("/readyz").status_code == 503
    said = json.loads(lethe(*replace, "--yes", "--json").stdout)
    assert said == {"name": "duplicates-2", "dropped": 1, "done": True}
    assert operator.admin.get("/readyz").status_code == 200
    lethe("keyring", "status")
    after, again = asked(operator.admin), asked(operator.admin)
    assert after["duplicates"] == [] and again["duplicates"] == [after["id"]]
    assert operator.admin.get("/v1/requests", params={"duplicate_of": first}).json()["data"] == []


def test_a_key_past_its_lifetime_is_named_in_the_log_and_not_replaced(
    operator: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_last_watch", [-3600.0])
    monkeypatch.setenv("LETHE_FINGERPRINT_KEY_DAYS", "1e-9")
    settings.settings.cache_clear()
    overdue = deploy(settings.settings())
    with capture_logs() as logs:
        sweeper.watch_keys(overdue, "sweeper:test")
        sweeper.watch_keys(overdue, "sweeper:test")
    overdue.store.close()
    assert [each["event"] for each in logs] == ["fingerprint_key.overdue", "duplicates_key.overdue"]
    assert [each["remedy"].partition(" is past")[0] for each in logs] == ["fingerprint", "duplicates"]
    assert "fingerprint_key.overdue" in lethe("keyring", "status", status=1).stderr


def test_the_operator_rotates_and_retires_from_the_shell(operator: World) -> None:
    forget(operator, samples=["0/0"])
    assert "keys are wrapped under the new master key" in lethe("keyring", "rotate").stdout
    assert operator.admin.get("/v1/models").status_code == 200  # the server that ran meanwhile
    (rotated,) = audited(operator, action="keyring.rotated")
    assert rotated["actor"] == "operator" and set(rotated["details"]) == {"data", "named", "unreadable"}
    assert "1 translated to it, 0 still need an older key" in lethe("keyring", "rotate-fingerprints").stdout
    assert "fingerprint-2" in lethe("keyring", "status").stdout
    retired = ("keyring", "retire-fingerprints", FIRST, "--reason-code", "expired")
    assert "no duplicates of earlier ones" in lethe(*retired, status=1).stderr
    assert "0 tombstones of 0 models would protect no more" in lethe(*retired, status=1).stdout
    assert operator.lethe.keyring.has_named(FIRST)
    lethe(*retired, "--yes")
    assert not operator.lethe.keyring.has_named(FIRST)
    assert "New uploads are marked with it" in lethe("keyring", "retire-fingerprints", "fingerprint-2", "--reason-code", "other",
                                                     status=1).stderr  # fmt: skip


def test_the_operator_erases_what_a_completed_request_named(operator: World) -> None:
    request_id, running = (asked(operator.admin)["id"] for _ in range(2))
    erase = ("keyring", "erase-request", request_id, "--reason-code", "person_asked")
    assert "add --yes" in lethe(*erase, status=1).stderr and operator.lethe.keyring.exists(request_id)
    with operator.lethe.store.write() as session:
        request = session.get_one(Request, request_id)
        request.status, request.purged_at = "completed", 1.0
    assert "is erased" in lethe(*erase, "--yes").stdout and not operator.lethe.keyring.exists(request_id)
    assert json.loads(lethe(*erase, "--yes", "--json").stdout) == {"erased": False}
    assert "its purge" in lethe("keyring", "erase-request", running, "--reason-code", "other", "--yes", status=1).stderr


def test_a_key_that_a_restored_backup_brings_back_is_destroyed_again(
    operator: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "_last_watch", [-3600.0])
    purged, living = forget_set(operator.requester), forget_set(operator.requester)
    version, _ = forgotten(operator, "digits")
    forgotten(operator, "digits")
    with operator.lethe.store.read() as session:
        model = models.find(session, "digits")
        assert model is not None
        old, head = (checkpoints.find(session, model.id, version + each) for each in (0, 1))
        assert old is not None and head is not None
    folder, backup = operator.lethe.keyring.folder / "data", operator.lethe.settings.data / "backup"
    shutil.copytree(folder, backup)
    assert operator.requester.delete(f"/v1/datasets/{purged}", headers={"If-Match": "*"}).status_code == 204
    assert not operator.lethe.keyring.exists(purged)
    shutil.copytree(backup, folder, dirs_exist_ok=True)
    for answered in (old, head):
        operator.lethe.keyring.new_key(answered.id)
    assert operator.lethe.keyring.exists(purged)
    sweeper.watch_keys(operator.lethe, "sweeper:test")
    assert not operator.lethe.keyring.exists(purged) and operator.lethe.keyring.exists(living)
    assert not operator.lethe.keyring.exists(old.id) and operator.lethe.keyring.exists(head.id)
    (said,) = audited(operator, action="keyring.returned_destroyed")
    assert said["details"] == {"keys": 2}


def test_the_key_folder_of_another_user_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as root's, by sudo: files that it makes anew would be root's, and the service could read them no more."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(PermissionError, match="run this as that user"):
        Keyring(world.lethe.keyring.folder)


def test_what_a_killed_server_left_in_scratch_goes_after_a_day(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "_last_tidy", [-3600.0])
    old, working = (scratch(world.lethe) / name for name in ("tmpold", "tmpworking"))
    for folder in (old, working):
        folder.mkdir()
        (folder / "pack").write_bytes(b"weights")
        os.utime(folder, (0, 0))
    os.utime(old / "pack", (0, 0))
    sweeper.delete_old_scratch(world.lethe)
    assert not old.exists() and working.exists()
