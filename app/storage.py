"""Blobs: named, immutable runs of bytes, kept in a local folder.

A blob appears whole or not at all: bytes go to a temporary file beside the target, reach the disk, and only then take
the name. Nothing here knows what a blob means; weights, data sets and resume states are named by their owners. `Blobs`
is the whole interface, so an object store is one more class.
"""

import errno
import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Protocol

CHUNK = 1 << 20
PARTIAL = ".partial-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class StorageFull(OSError):
    """The disk, or the quota on it, has no room for the blob; nothing of it was kept."""


class BlobMissing(LookupError):
    """No blob has this name."""


class Blobs(Protocol):
    """What the rest of Lethe needs of a store. `put` replaces; `delete` of what is not there is no error."""

    def put(self, name: str, source: Path | bytes | Iterator[bytes]) -> int: ...
    def open(self, name: str) -> BinaryIO: ...
    def read_range(self, name: str, start: int, length: int) -> bytes: ...
    def size(self, name: str) -> int: ...
    def exists(self, name: str) -> bool: ...
    def delete(self, name: str) -> None: ...
    def list(self, prefix: str = "") -> Iterator[str]: ...


def checked_name(name: str) -> str:
    """Return `name` if it is a plain relative path in POSIX form that stays inside its folder; ValueError if not."""
    parts = name.split("/")
    if not name or len(name) > 1024 or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise ValueError(f"{name!r}: a name is a relative path without empty, '.', '..' or overlong parts")
    if "\\" in name or any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError(f"{name!r}: a name holds no backslash and no control character")
    return name


class LocalBlobs:
    """Blobs as files under `root`; parts of a name are folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, name: str, source: Path | bytes | Iterator[bytes]) -> int:
        """Store the bytes of `source` as `name`, durably, and return how many; StorageFull leaves nothing behind."""
        target = self._path(name)
        partial = target.parent / f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            self._make_folder(target.parent)
            written = _write_durably(partial, source)
            os.replace(partial, target)
            _sync_folder(target.parent)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in _NO_SPACE:
                raise StorageFull(error.errno, f"no room to store {name}") from error
            raise
        except BaseException:  # an interrupt or a failing source must not leave a partial file either
            partial.unlink(missing_ok=True)
            raise
        return written

    def open(self, name: str) -> BinaryIO:
        try:
            return self._path(name).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BlobMissing(name) from error

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length) of the blob; fewer where it ends sooner."""
        if start < 0 or length < 0:
            raise ValueError(f"{name}: range {start}+{length} is negative")
        with self.open(name) as stream:
            stream.seek(start)
            return stream.read(length)

    def size(self, name: str) -> int:
        path = self._path(name)
        if not path.is_file():
            raise BlobMissing(name)
        return path.stat().st_size

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def delete(self, name: str) -> None:
        path = self._path(name)
        if path.is_file():
            path.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Names that start with `prefix`, in order; unfinished writes are not blobs."""
        folder = self.root / checked_name(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(PARTIAL))
        names = sorted(path.relative_to(self.root).as_posix() for path in found)
        return (name for name in names if name.startswith(prefix))

    def sweep_partial(self, older_than: timedelta) -> int:
        """Delete what writers that died left behind, once it is older than any living writer; return how many."""
        dead = [p for p in self.root.rglob(f"{PARTIAL}*") if time.time() - _modified(p) > older_than.total_seconds()]
        for path in dead:
            path.unlink(missing_ok=True)
        return len(dead)

    def _path(self, name: str) -> Path:
        if checked_name(name).rpartition("/")[2].startswith(PARTIAL):
            raise ValueError(f"{name!r}: names that start with {PARTIAL} belong to unfinished writes")
        return self.root / name

    def _make_folder(self, folder: Path) -> None:
        """Create `folder` so that it survives a power cut: each new entry is synced in its parent."""
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _sync_folder(path.parent)


def _write_durably(path: Path, source: Path | bytes | Iterator[bytes]) -> int:
    with path.open("xb") as stream:
        for chunk in _chunks(source):
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell()


def _chunks(source: Path | bytes | Iterator[bytes]) -> Iterator[bytes]:
    if isinstance(source, Path):
        with source.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    elif isinstance(source, bytes):
        yield source
    else:
        yield from source


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified(path: Path) -> float:
    """When the file was last written; a file that has just gone counts as new, for there is nothing left to sweep."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
