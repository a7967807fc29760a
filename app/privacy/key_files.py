"""Files that hold keys: made whole or not at all, replaced and erased without leaving the old bytes under any name.

Whoever makes, replaces or erases one holds the folder's lock (`locked`), so that no replacement brings back a key that was
erased meanwhile, and a file has one draft at most. Readers hold nothing: what does not open may have been replaced as they
read, and is read again under it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

OTHERS = 0o077  # nobody but the owner
STRANGERS = 0o007  # the group may read, as with a mounted secret


class Held(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock file: alone among threads and processes of all hosts. The kernel lets go of it when the holder dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError:
        raise Held from None
    finally:
        os.close(handle)


def create(path: Path, content: bytes) -> None:
    """FileExistsError when the name is taken. Nobody ever sees half a file."""
    draft = _draft(path, content)
    try:
        os.link(draft, path)
    finally:
        draft.unlink()
    sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Another content under the same name. A crash leaves one or the other, and perhaps a draft for `tidy`."""
    old = _old(path)
    _drop(old, path)
    os.link(path, old)
    take_place(path, content)
    _overwrite(old)
    sync_folder(path.parent)


def take_place(path: Path, content: bytes) -> None:
    """Another content under the same name; the old bytes stay under any other name that they have."""
    os.rename(_draft(path, content), path)
    sync_folder(path.parent)


def erase(path: Path) -> None:
    """Overwrite and unlink a key file with every draft of it that a killed process left. What is gone is no error."""
    for file in (path, _new(path), _old(path)):
        _overwrite(file)
    sync_folder(path.parent)


def tidy(folder: Path) -> None:
    """Erase what killed processes left in a folder: drafts, and old contents that were to be overwritten."""
    for left in folder.glob(".*.*.*"):
        _drop(left, folder / left.name[1:].rpartition(".")[0])
    sync_folder(folder)


def read(path: Path, forbidden: int = OTHERS) -> bytes:
    """PermissionError when users in `forbidden` could read it, too. A link is followed where a group may read: secrets are
    mounted so."""
    flags = os.O_RDONLY | (os.O_NOFOLLOW if forbidden == OTHERS else 0)
    with open(os.open(path, flags), "rb") as file:
        if os.fstat(file.fileno()).st_mode & forbidden:
            raise PermissionError(
                f"{path} can be read by other users: chmod {'600' if forbidden == OTHERS else '640'} it"
            )
        return file.read()


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _drop(left: Path, path: Path) -> None:
    """Erase what a killed process left beside `path`; where that is another name of the living file, only the name."""
    if left.exists() and path.exists() and path.samefile(left):
        left.unlink()
    else:
        _overwrite(left)


def _draft(path: Path, content: bytes) -> Path:
    draft = _new(path)
    _drop(draft, path)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            _write_durably(file, content)
    except OSError:
        draft.unlink()
        raise
    return draft


def _overwrite(file: Path) -> None:
    """Zeros over its bytes, then unlink."""
    with suppress(FileNotFoundError), open(os.open(file, os.O_WRONLY | os.O_NOFOLLOW), "wb") as opened:
        _write_durably(opened, bytes(os.fstat(opened.fileno()).st_size))
        file.unlink()


def _write_durably(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
