"""Another master key: killed anywhere it loses no key, beside a running service it brings none back, and it ends the old one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.errors import Refused
from app.privacy import key_files, master_rotation
from app.privacy.sealing import KeyGone, Keyring, KeyringUnusable

CHANGES = ("fsync", "link", "rename", "unlink")  # every system call by which the folder moves on


def rotate(ring: Keyring, new: Path | None = None) -> bool:
    with master_rotation.alone(ring):
        master_rotation.begin(ring, new)
        master_rotation.rewrap(ring)
        done = master_rotation.promote(ring)
        if done:
            master_rotation.finish(ring)
    return done


def rotate_in(folder: Path) -> None:
    rotate(Keyring(folder))


def filled(folder: Path, master: Path | None = None) -> dict[str, bytes]:
    """A folder with keys, by name."""
    ring = Keyring(folder, master)
    return {name: ring.new_key(name) for name in ("ds_1", "ds_2", "req_1")} | {"hmac": ring.named_key("hmac")}


def opened(ring: Keyring) -> dict[str, bytes]:
    return {name: ring.key(name) for name in ("ds_1", "ds_2", "req_1")} | {"hmac": ring.named_key("hmac", make=False)}


def key_file(path: Path, seed: str) -> Path:
    path.write_bytes(seed.encode() * 32)
    path.chmod(0o600)
    return path


def killed_at(count: int, work: Callable[[], Any]) -> bool:
    """Do the work in a child that is killed before its change number `count`. Whether it got that far."""
    child = os.fork()
    if child == 0:
        left = [count]

        def dying(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        for name in CHANGES:
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        except BaseException:  # noqa: BLE001  (the child must end here whatever happened)
            os._exit(7)
        os._exit(0)
    _, ended = os.waitpid(child, 0)
    assert os.WIFSIGNALED(ended) or os.WEXITSTATUS(ended) == 0
    return os.WIFSIGNALED(ended)


def test_every_key_opens_under_the_new_master_key_and_none_under_the_old(tmp_path: Path) -> None:
    keys = filled(tmp_path / "keys")
    shutil.copytree(tmp_path / "keys", tmp_path / "backup")
    old = (tmp_path / "keys/master.key").read_bytes()
    assert rotate(Keyring(tmp_path / "keys"))
    new = (tmp_path / "keys/master.key").read_bytes()
    assert new != old and opened(Keyring(tmp_path / "keys")) == keys
    assert sorted(each.name for each in (tmp_path / "keys").iterdir() if each.is_file()) == [
        "lock", "master.key", "rotation.lock"
    ]  # fmt: skip
    (tmp_path / "keys/master.key").write_bytes(old)
    with pytest.raises(KeyringUnusable, match="another master key"):
        Keyring(tmp_path / "keys")
    assert opened(Keyring(tmp_path / "backup")) == keys  # the old backup is whole with the old master key, and with
    (tmp_path / "backup/master.key").write_bytes(new)
    with pytest.raises(KeyringUnusable, match="another master key"):
        Keyring(tmp_path / "backup")


def test_a_process_that_runs_meanwhile_goes_on_with_every_key(tmp_path: Path) -> None:
    keys = filled(tmp_path / "keys")
    running = Keyring(tmp_path / "keys")
    assert rotate(Keyring(tmp_path / "keys")) and opened(running) == keys
    assert rotate(Keyring(tmp_path / "keys")) and rotate(Keyring(tmp_path / "keys"))
    made = running.new_key("ds_3")
    assert Keyring(tmp_path / "keys").key("ds_3") == made and opened(running) == keys


def test_killed_before_any_change_a_rotation_loses_no_key_and_the_next_one_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # it matters when the power fails, and takes long here
    keys = filled(tmp_path / "first")
    count, died = 0, True
    while died:
        folder = tmp_path / f"keys-{count}"
        shutil.copytree(tmp_path / "first", folder)
        running, old = Keyring(folder), (folder / "master.key").read_bytes()
        died = killed_at(count, partial(rotate_in, folder))
        assert opened(running) == keys == opened(Keyring(folder)), f"killed at {count}"
        made = running.new_key("ds_9")
        running.destroy("ds_2")
        rotate(Keyring(folder))
        assert running.key("ds_9") == made == Keyring(folder).key("ds_9")
        assert (folder / "master.key").read_bytes() != old and not running.exists("ds_2")
        left = {each.name for each in folder.rglob("*") if each.is_file()}
        assert left == {"lock", "rotation.lock", "master.key", "hmac.key", "ds_1.key", "req_1.key", "ds_9.key"}
        count += 1
    assert count > 20


def test_killed_before_any_change_the_making_of_a_key_can_be_repeated_and_the_key_destroyed(tmp_path: Path) -> None:
    count, died = 0, True
    while died:
        ring = Keyring(tmp_path / f"keys-{count}")
        died = killed_at(count, partial(ring.new_key, "ds_1"))
        with suppress(FileExistsError):
            ring.new_key("ds_1")
        assert ring.key("ds_1") == ring.key("ds_1"), f"killed at {count}"
        ring.destroy("ds_1")
        assert list((ring.folder / "data").iterdir()) == []
        count += 1
    assert count > 3


def test_a_key_destroyed_while_a_rotation_passes_over_it_never_comes_back(tmp_path: Path) -> None:
    """Keys are made, read and destroyed by threads here while another process rotates again and again."""
    folder, stop, broken = tmp_path / "keys", threading.Event(), []
    Keyring(folder).named_key("hmac")
    program = (
        "import sys, time; from pathlib import Path; from app.privacy.sealing import Keyring;"
        "from tests.app.privacy.test_master_rotation import rotate; until = time.monotonic() + 1.5\n"
        "while time.monotonic() < until: rotate(Keyring(Path(sys.argv[1])))"
    )

    def churn(number: int) -> None:
        ring, chance = Keyring(folder), random.Random(number)
        alive: dict[str, bytes] = {}
        turn = 0
        while not stop.is_set() or turn < 5:
            turn += 1
            name = f"ds_{number}_{turn}"
            alive[name] = ring.new_key(name)
            chosen = chance.choice(list(alive))
            if ring.key(chosen) != alive[chosen]:
                broken.append(f"{chosen} is another key")
            if len(alive) > 4:
                ring.destroy(chosen)
                del alive[chosen]
        if {each.stem for each in (folder / "data").glob(f"ds_{number}_*.key")} != set(alive):
            broken.append("a key came back, or was lost")
        if any(ring.key(name) != key for name, key in alive.items()):
            broken.append("a key does not open")

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(3)]
    for each in threads:
        each.start()
    rotating = subprocess.run([sys.executable, "-c", program, str(folder)], check=False)
    stop.set()
    for each in threads:
        each.join()
    assert rotating.returncode == 0 and broken == [] and list((folder / "data").glob(".*")) == []


def test_a_rotation_waits_for_whoever_destroys_a_key_and_then_makes_none(tmp_path: Path) -> None:
    filled(tmp_path / "keys")
    ring, path, answers = Keyring(tmp_path / "keys"), tmp_path / "keys/data/ds_1.key", []
    with ring.lock():
        ring.follow(bytes(range(32)))
        wrapping = threading.Thread(target=lambda: answers.append(ring.rewrap(path)))
        wrapping.start()
        wrapping.join(timeout=0.2)
        assert wrapping.is_alive() and list((tmp_path / "keys/data").glob(".*")) == []
        key_files.erase(path)
    wrapping.join(timeout=10)
    assert answers == [False] and not path.exists()


def test_a_second_rotation_at_the_same_time_is_refused(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    with master_rotation.alone(ring), pytest.raises(Refused, match="Another rotation runs"):
        rotate(Keyring(tmp_path / "keys"))


def test_a_replaced_key_file_s_old_bytes_are_overwritten(tmp_path: Path) -> None:
    filled(tmp_path / "keys")
    with (tmp_path / "keys/data/ds_1.key").open("rb") as before, (tmp_path / "keys/master.key").open("rb") as master:
        rotate(Keyring(tmp_path / "keys"))
        assert before.read() == bytes(40) and master.read() == bytes(32)


def test_a_master_key_from_outside_is_followed_by_another_file(tmp_path: Path) -> None:
    present, following = key_file(tmp_path / "mounted", "a"), key_file(tmp_path / "next", "b")
    keys = filled(tmp_path / "keys", present)
    running = Keyring(tmp_path / "keys", present)
    assert not (tmp_path / "keys/master.key").exists()
    with pytest.raises(Refused, match="--new"):
        rotate(running)
    with pytest.raises(Refused, match="another master key"):
        rotate(running, present)
    assert not rotate(Keyring(tmp_path / "keys", present), following)
    assert opened(running) == keys == opened(Keyring(tmp_path / "keys", present))
    with pytest.raises(Refused, match="not finished"):
        rotate(running, key_file(tmp_path / "third", "c"))
    following.replace(present)
    assert opened(running) == keys and rotate(Keyring(tmp_path / "keys", present)) and opened(running) == keys
    made = running.new_key("ds_3")
    assert Keyring(tmp_path / "keys", present).key("ds_3") == made and not master_rotation.unfinished(running)


def test_without_its_master_key_a_folder_with_keys_is_not_used_and_the_remedy_said(tmp_path: Path) -> None:
    filled(tmp_path / "keys")
    (tmp_path / "keys/master.key").unlink()
    with pytest.raises(KeyringUnusable, match="put it back from its backup"):
        Keyring(tmp_path / "keys")
    assert not (tmp_path / "keys/master.key").exists()
    with pytest.raises(KeyringUnusable, match="LETHE_MASTER_KEY_FILE"):
        Keyring(tmp_path / "keys", tmp_path / "not-mounted")
    with pytest.raises(KeyringUnusable, match="another master key"):
        Keyring(tmp_path / "keys", key_file(tmp_path / "wrong", "x"))
    with pytest.raises(KeyringUnusable, match="32 bytes"):
        (tmp_path / "short").write_bytes(b"x")
        (tmp_path / "short").chmod(0o600)
        Keyring(tmp_path / "keys", tmp_path / "short")


def test_a_mounted_master_key_may_be_read_by_its_group_and_by_no_stranger(tmp_path: Path) -> None:
    secret = key_file(tmp_path / "secret", "a")
    (tmp_path / "mounted").symlink_to(secret)
    secret.chmod(0o440)
    Keyring(tmp_path / "keys", tmp_path / "mounted").named_key("hmac")
    secret.chmod(0o444)
    with pytest.raises(PermissionError):
        Keyring(tmp_path / "keys", tmp_path / "mounted")


def test_a_lost_data_key_is_gone_and_nothing_else(tmp_path: Path) -> None:
    keys = filled(tmp_path / "keys")
    (tmp_path / "keys/data/ds_1.key").unlink()
    (tmp_path / "keys/data/ds_2.key").write_bytes(b"\x01" * 40)
    ring = Keyring(tmp_path / "keys")
    for lost in ("ds_1", "ds_2"):
        with pytest.raises(KeyGone):
            ring.key(lost)
    assert ring.key("req_1") == keys["req_1"] and ring.counts() == {"data": 1, "named": 1, "unreadable": 1}
