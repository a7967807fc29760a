"""Blobs: whole or not at all, within their folder, and honest about a full disk."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.storage import PARTIAL, BlobMissing, LocalBlobs, StorageFull

FILL_A_SMALL_DISK = """
import sys
from pathlib import Path
from app.storage import LocalBlobs, StorageFull
blobs = LocalBlobs(Path(sys.argv[1]))
blobs.put("packs/first", bytes(300_000))
try:
    blobs.put("packs/second", (bytes(100_000) for _ in range(50)))
except StorageFull as error:
    left = [path.name for path in Path(sys.argv[1]).rglob("*") if path.is_file()]
    print(left, blobs.size("packs/first"), error)
"""


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_bytes_files_and_streams_come_back_as_they_were(blobs: LocalBlobs, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    source = tmp_path / "source"
    source.write_bytes(content)
    pieces = iter([content[:7], b"", content[7:]])
    assert blobs.put("packs/1/a", content) == blobs.put("packs/1/b", source) == blobs.put("c", pieces) == len(content)
    for name in ("packs/1/a", "packs/1/b", "c"):
        with blobs.open(name) as stream:
            assert stream.read() == content
        assert blobs.size(name) == len(content)
    assert source.exists()


def test_a_range_is_exact_and_ends_with_the_blob(blobs: LocalBlobs) -> None:
    blobs.put("digits", b"0123456789")
    assert blobs.read_range("digits", 3, 4) == b"3456"
    assert blobs.read_range("digits", 8, 100) == b"89"
    assert blobs.read_range("digits", 10, 1) == b""
    with pytest.raises(ValueError, match="negative"):
        blobs.read_range("digits", -1, 2)


def test_put_replaces_a_blob_and_readers_of_the_old_one_keep_it(blobs: LocalBlobs) -> None:
    blobs.put("name", b"old")
    with blobs.open("name") as before:
        blobs.put("name", b"newer")
        assert before.read() == b"old"
    assert blobs.read_range("name", 0, 9) == b"newer"


def test_what_is_missing_is_said_so_and_deleting_it_is_no_error(blobs: LocalBlobs) -> None:
    blobs.put("packs/a", b"x")
    for name in ("packs/b", "packs", "packs/a/below"):
        assert not blobs.exists(name)
        with pytest.raises(BlobMissing, match=name):
            blobs.open(name)
        with pytest.raises(BlobMissing, match=name):
            blobs.size(name)
        blobs.delete(name)
    blobs.delete("packs/a")
    assert not blobs.exists("packs/a")
    assert files_under(blobs.root) == []


def test_list_gives_names_by_prefix_in_order(blobs: LocalBlobs) -> None:
    for name in ("packs/2/b", "packs/2/a", "packs/10/c", "sets/x"):
        blobs.put(name, b"")
    (blobs.root / "packs/2" / f"{PARTIAL}1234").write_bytes(b"unfinished")
    assert list(blobs.list()) == ["packs/10/c", "packs/2/a", "packs/2/b", "sets/x"]
    assert list(blobs.list("packs/2")) == ["packs/2/a", "packs/2/b"]
    assert list(blobs.list("packs/1")) == ["packs/10/c"]
    assert list(blobs.list("nothing/")) == []


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../up", "a/../b", "a/./b", "a//b", "a/", ".", "..", "a\\b", "a\0b", "a\nb", "x" * 300]
    + [f"a/{PARTIAL}1", "/".join(["deep"] * 400)],
)
def test_a_name_that_could_leave_its_folder_is_refused(blobs: LocalBlobs, name: str) -> None:
    with pytest.raises(ValueError):
        blobs.put(name, b"x")
    with pytest.raises(ValueError):
        blobs.open(name)
    assert not blobs.root.exists()


def test_a_source_that_fails_leaves_nothing_and_keeps_the_old_blob(blobs: LocalBlobs) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half of it"
        raise KeyboardInterrupt

    blobs.put("packs/a", b"old")
    with pytest.raises(KeyboardInterrupt):
        blobs.put("packs/a", broken())
    assert files_under(blobs.root) == ["packs/a"]
    assert blobs.read_range("packs/a", 0, 9) == b"old"


def test_no_space_is_storage_full_and_leaves_nothing(blobs: LocalBlobs) -> None:
    def onto_a_full_device() -> Iterator[bytes]:
        yield b"half of it"
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"the kernel's own ENOSPC")

    with pytest.raises(StorageFull, match="no room to store packs/a"):
        blobs.put("packs/a", onto_a_full_device())
    assert files_under(blobs.root) == []


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs a private mount namespace")
def test_a_really_full_disk_is_storage_full_and_keeps_what_was_there(tmp_path: Path) -> None:
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1" || exit 77; exec "$2" -c "$3" "$1"'
    arguments = ["sh", str(tmp_path), sys.executable, FILL_A_SMALL_DISK]
    root = Path(__file__).parents[2]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no private mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['first'] 300000 ") and "no room to store packs/second" in done.stdout


def test_the_sweep_takes_old_unfinished_writes_and_nothing_else(blobs: LocalBlobs) -> None:
    blobs.put("packs/a", b"x")
    old, young = blobs.root / f"packs/{PARTIAL}old", blobs.root / f"{PARTIAL}young"
    for path in (old, young):
        path.write_bytes(b"unfinished")
    for path in (old, blobs.root / "packs/a"):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert blobs.sweep_partial(timedelta(hours=1)) == 1
    assert files_under(blobs.root) == [young.name, "packs/a"]
