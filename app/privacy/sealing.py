"""Keys and the sealing of personal data: whoever unlinks one key file has erased what it sealed.

A `Keyring` is a private folder outside the database and its backups: one master key, one wrapped key file per sealed
object, and named keys with a lifetime of their own (`hmac`, `fingerprint`, `duplicates`). Copies of ciphertext may stay anywhere.
app/privacy/master_rotation.py wraps all of them under another master key.

Sealed form: magic (8 bytes), salt (16), then chunks of 1 MiB under AES-256-GCM with a key derived from the object's key
and the salt. Each chunk's nonce and associated data carry its number, whether it is the last, and the caller's context,
so a sealed form that was cut, reordered, spliced or moved to another context does not open.
"""

import base64
import binascii
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from app.privacy import key_files
from app.privacy.key_files import OTHERS, STRANGERS

CHUNK = 1 << 20
MAGIC = b"LETHE-S1"
_TAG = 16
_SALT = 16
_KEY = 32
_NEXT = b"lethe next master key"
_LAST = 1


class KeyGone(LookupError):
    """The key was destroyed, or never was: what it sealed cannot be read again."""


class KeyringUnusable(OSError):
    """The master key is missing, or is not the one that this folder's keys are wrapped under. Says the remedy."""


class SealBroken(ValueError):
    """The sealed bytes were cut or changed, or belong to another key or context."""


@dataclass(frozen=True)
class Masters:
    """`following` is the master key of a rotation that has begun: new keys are wrapped under it."""

    present: bytes
    following: bytes | None

    @property
    def newest(self) -> bytes:
        return self.following or self.present


class Keyring:
    """The key folder. Safe between processes. Master keys are cached and read again when a key does not open under them,
    so that a rotation needs no restart; no other key is cached, so a key destroyed by one process is gone for all."""

    def __init__(self, folder: Path, master: Path | None = None) -> None:
        """`master`: the master key's file where it lies elsewhere; else one is made here with the first key of all."""
        self.folder, self.outside = folder, master is not None
        self.master_file = master or folder / "master.key"
        self.following_file = folder / "master.next"  # the next master key, wrapped under the present one
        self._data, self._named = folder / "data", folder / "named"
        for private in (folder, self._data, self._named):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (owner := private.stat().st_uid) != os.geteuid():
                raise PermissionError(f"{private} belongs to user {owner}: run this as that user (sudo -u '#{owner}')")
            if private.stat().st_mode & 0o077:
                raise PermissionError(f"{private} can be opened by other users: chmod 700 it")
        with self.lock():
            if not self.outside and not self.master_file.exists() and not self.files():
                key_files.create(self.master_file, secrets.token_bytes(_KEY))
        self.check()

    def check(self) -> None:
        """KeyringUnusable when there is no master key, or another one than the folder's keys are wrapped under."""
        with self.lock():
            self._masters = self.read_masters()
            probes = self._probes()
            opening = [path for path in probes if self._opens(path)]
        if probes and not opening:
            raise KeyringUnusable(
                f"{self.master_file} is another master key than the one that the keys in {self.folder} are wrapped under: "
                "put the right one back from its backup"
            )

    def _probes(self) -> list[Path]:
        """The named keys, or, before there are any, one data key: as few as tell which master key it is, however many there
        are."""
        named = sorted(self._named.glob("[!.]*.key"))
        with os.scandir(self._data) as entries:
            return named or [Path(each.path) for each in islice((e for e in entries if e.name[0] != "."), 1)]

    def new_key(self, key_id: str) -> bytes:
        """A fresh 256-bit key for one object; FileExistsError when the id has one."""
        key = new_data_key()
        self._create(self._data_path(key_id), key)
        return key

    def keep(self, key_id: str, key: bytes) -> None:
        """Take over a key that was made elsewhere (`new_data_key`); another one of that id is destroyed."""
        with suppress(KeyGone):
            if self.key(key_id) == key:
                return
        self.destroy(key_id)
        with suppress(FileExistsError):  # another process was first: what this one sealed does not open
            self._create(self._data_path(key_id), key)

    def key(self, key_id: str) -> bytes:
        return self._unwrapped(self._data_path(key_id))

    def exists(self, key_id: str) -> bool:
        return self._data_path(key_id).exists()

    def destroy(self, key_id: str) -> None:
        """Erase the key for ever. A key that is already gone is no error, so an interrupted purge can be repeated."""
        with self.lock():
            key_files.erase(self._data_path(key_id))

    def named_key(self, name: str, make: bool = True) -> bytes:
        """The key of a purpose, made at first use; a rotation is a new name (`fingerprint`, `fingerprint-2`)."""
        path = self._path(self._named, name)
        if make and not path.exists():
            with suppress(FileExistsError):  # the other's key is the key
                self._create(path, new_data_key())
        return self._unwrapped(path)

    def has_named(self, name: str) -> bool:
        return self._path(self._named, name).exists()

    def destroy_named(self, name: str) -> None:
        with self.lock():
            key_files.erase(self._path(self._named, name))

    def lock(self) -> AbstractContextManager[None]:
        """Whoever changes anything in the folder holds it, for moments."""
        return key_files.locked(self.folder / "lock")

    def files(self) -> list[Path]:
        """Every wrapped key."""
        return sorted(path for part in (self._named, self._data) for path in part.glob("[!.]*.key"))

    def counts(self) -> dict[str, int]:
        """How many data and named keys open, and how many files hold none that does. A key whose erasure was interrupted
        counts as gone."""
        counts = {"data": 0, "named": 0, "unreadable": 0}
        for path in self.files():
            try:
                self._unwrapped(path)
            except KeyGone:
                with suppress(FileNotFoundError):
                    counts["unreadable"] += any(key_files.read(path))
            else:
                counts["named" if path.parent == self._named else "data"] += 1
        return counts

    def _opens(self, path: Path) -> bool:
        """With the lock held."""
        try:
            self._opened(path)
        except (KeyGone, InvalidUnwrap):
            return False
        return True

    def read_masters(self) -> Masters:
        """From their files. The lock is held, or what is read may be of two moments."""
        try:
            present = key_files.read(self.master_file, STRANGERS if self.outside else OTHERS)
        except FileNotFoundError:
            raise KeyringUnusable(_no_master(self)) from None
        if len(present) != _KEY:
            raise KeyringUnusable(f"{self.master_file} is not a master key of {_KEY} bytes: restore it from its backup")
        try:
            following = aes_key_unwrap(_derived(present, b"", _NEXT), key_files.read(self.following_file))
        except (FileNotFoundError, InvalidUnwrap):  # no rotation, or one whose new master key is the present one by now
            following = None
        return Masters(present, following)

    def follow(self, new: bytes) -> None:
        """Begin a rotation: from now on `new` is the next master key. The lock is held."""
        key_files.create(self.following_file, aes_key_wrap(_derived(self.read_masters().present, b"", _NEXT), new))

    def rewrap(self, path: Path) -> bool:
        """Wrap one key under the newest master key. False when it was, is gone, or does not open. Other bytes of that key
        file are gone afterwards. Takes the lock."""
        with self.lock():
            self._masters = self.read_masters()
            try:
                return self._rewrap(path, self._masters)
            except (FileNotFoundError, InvalidUnwrap):
                return False

    def _rewrap(self, path: Path, masters: Masters) -> bool:
        wrapped = key_files.read(path)
        with suppress(InvalidUnwrap):
            aes_key_unwrap(_wrapping_key(masters.newest, path), wrapped)
            return False
        key = aes_key_unwrap(_wrapping_key(masters.present, path), wrapped)
        key_files.replace(path, aes_key_wrap(_wrapping_key(masters.newest, path), key))
        return True

    def _create(self, path: Path, key: bytes) -> None:
        with self.lock():
            self._masters = self.read_masters()
            key_files.create(path, aes_key_wrap(_wrapping_key(self._masters.newest, path), key))

    def _data_path(self, key_id: str) -> Path:
        return self._path(self._data, key_id)

    def _path(self, folder: Path, key_id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", key_id):
            raise ValueError("a key id is 1 to 128 letters, digits, _ and -")
        return folder / f"{key_id}.key"

    def _unwrapped(self, path: Path) -> bytes:
        with suppress(InvalidUnwrap):
            return self._opened(path)
        with self.lock():  # a rotation may have passed over the file, or over the master key
            self._masters = self.read_masters()
            try:
                return self._opened(path)
            except InvalidUnwrap:
                raise KeyGone("the key file does not open under this master key") from None

    def _opened(self, path: Path) -> bytes:
        masters = self._masters
        try:
            wrapped = key_files.read(path)
        except FileNotFoundError:
            raise KeyGone("the key was destroyed or never made") from None
        if masters.following is not None:
            with suppress(InvalidUnwrap):
                return aes_key_unwrap(_wrapping_key(masters.following, path), wrapped)
        return aes_key_unwrap(_wrapping_key(masters.present, path), wrapped)


def _wrapping_key(master: bytes, path: Path) -> bytes:
    return _derived(master, b"", f"lethe wrap {path.parent.name}/{path.name}".encode())


def _no_master(ring: Keyring) -> str:
    if ring.outside:
        return f"LETHE_MASTER_KEY_FILE names {ring.master_file}, which is not there: mount it, or make a key of {_KEY} bytes"
    return (
        f"{ring.master_file} is gone, and {len(ring.files())} keys are wrapped under it: put it back from its backup. Without "
        f"one they are lost: move {ring.folder} away to begin anew"
    )


def new_data_key() -> bytes:
    return secrets.token_bytes(_KEY)


def seal(key: bytes, plaintext: bytes, context: bytes) -> bytes:
    """`context` says what this is and whose (`b"dataset/ds_1"`); it is bound, not stored, and needed to open."""
    return b"".join(sealed_chunks(key, _pieces(BytesIO(plaintext)), context))


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    return b"".join(opened_chunks(key, BytesIO(sealed), context))


def seal_text(key: bytes, text: str, context: bytes) -> str:
    """A short secret for a database column, such as a concept's name."""
    return base64.urlsafe_b64encode(seal(key, text.encode(), context)).decode()


def unseal_text(key: bytes, sealed: str, context: bytes) -> str:
    try:
        raw = base64.b64decode(sealed, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise SealBroken("not a sealed text") from None
    return unseal(key, raw, context).decode()


def sealed_chunks(key: bytes, pieces: Iterable[bytes], context: bytes) -> Iterator[bytes]:
    """Seal a stream: pieces of any size in, the sealed form out in order, about 2 MiB held at a time."""
    salt = secrets.token_bytes(_SALT)
    cipher, held, number = AESGCM(_derived(key, salt, b"lethe seal")), bytearray(), 0
    yield MAGIC + salt
    for piece in pieces:
        held += piece
        while len(held) > CHUNK:
            yield cipher.encrypt(_nonce(number, 0), bytes(held[:CHUNK]), _bound(context, number, 0))
            del held[:CHUNK]
            number += 1
    yield cipher.encrypt(_nonce(number, _LAST), bytes(held), _bound(context, number, _LAST))


def opened_chunks(key: bytes, source: BinaryIO, context: bytes) -> Iterator[bytes]:
    """Open a stream; what was given out is whole only once the iterator ends without SealBroken."""
    head = source.read(len(MAGIC) + _SALT)
    if len(head) < len(MAGIC) + _SALT or not head.startswith(MAGIC):
        raise SealBroken("not a sealed form")
    cipher, number = AESGCM(_derived(key, head[len(MAGIC) :], b"lethe seal")), 0
    chunk = source.read(CHUNK + _TAG)
    while True:
        following = source.read(CHUNK + _TAG)
        last = 0 if following else _LAST
        try:
            yield cipher.decrypt(_nonce(number, last), chunk, _bound(context, number, last))
        except InvalidTag:
            raise SealBroken("the sealed bytes were cut or changed, or the key or context is another") from None
        if last:
            return
        chunk, number = following, number + 1


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while piece := source.read(CHUNK):
        yield piece


def _nonce(number: int, last: int) -> bytes:
    return struct.pack(">3xQB", number, last)  # unique under the salted key: 12 bytes


def _bound(context: bytes, number: int, last: int) -> bytes:
    return MAGIC + struct.pack(">QB", number, last) + context


def _derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY, salt=salt, info=purpose).derive(key)
