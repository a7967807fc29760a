"""Keys and the sealing of personal data: whoever unlinks one key file has erased what it sealed.

A `Keyring` is a private folder outside the database and its backups: one master key, one wrapped key file per sealed
object, and named keys with a lifetime of their own (`hmac`, `fingerprint`, `duplicates`). Copies of ciphertext may stay anywhere.

Sealed form: magic (8 bytes), salt (16), then chunks of 1 MiB under AES-256-GCM with a key derived from the object's key
and the salt. Each chunk's nonce and associated data carry its number, whether it is the last, and the caller's context,
so a sealed form that was cut, reordered, spliced or moved to another context does not open.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

CHUNK = 1 << 20
MAGIC = b"LETHE-S1"
_TAG = 16
_SALT = 16
_KEY = 32
_WRAPPED = _KEY + 8
_LAST = 1


class KeyGone(LookupError):
    """The key was destroyed, or never was: what it sealed cannot be read again."""


class SealBroken(ValueError):
    """The sealed bytes were cut or changed, or belong to another key or context."""


class Keyring:
    """The key folder. Safe between processes; no key is cached, so a key destroyed by one is gone for all."""

    def __init__(self, folder: Path) -> None:
        self._data, self._named = folder / "data", folder / "named"
        for private in (folder, self._data, self._named):
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
            if private.stat().st_mode & 0o077:
                raise PermissionError(f"{private} can be opened by other users: chmod 700 it")
        master = folder / "master.key"
        if not master.exists():
            _create_once(master, secrets.token_bytes(_KEY))
        self._master = _read_private(master)
        if len(self._master) != _KEY:
            raise SealBroken(f"{master} is not a master key of {_KEY} bytes")

    def new_key(self, key_id: str) -> bytes:
        """A fresh 256-bit key for one object; FileExistsError when the id has one."""
        key = new_data_key()
        self._create(key_id, key)
        return key

    def keep(self, key_id: str, key: bytes) -> None:
        """Take over a key that was made elsewhere (`new_data_key`); another one of that id is destroyed."""
        with suppress(KeyGone):
            if self.key(key_id) == key:
                return
        self.destroy(key_id)
        with suppress(FileExistsError):  # another process was first: what this one sealed does not open
            self._create(key_id, key)

    def _create(self, key_id: str, key: bytes) -> None:
        path = self._data_path(key_id)
        wrapped = aes_key_wrap(self._wrapping_key(path), key)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                _write_durably(file, wrapped)
        except OSError:
            path.unlink()
            raise
        _sync_folder(path.parent)

    def key(self, key_id: str) -> bytes:
        return self._unwrapped(self._data_path(key_id))

    def exists(self, key_id: str) -> bool:
        return self._data_path(key_id).exists()

    def destroy(self, key_id: str) -> None:
        """Erase the key for ever. A key that is already gone is no error, so an interrupted purge can be repeated."""
        _erase(self._data_path(key_id))

    def named_key(self, name: str) -> bytes:
        """The key of a purpose, made at first use; a rotation is a new name (`fingerprint`, `fingerprint-2`)."""
        path = self._path(self._named, name)
        if not path.exists():
            _create_once(path, aes_key_wrap(self._wrapping_key(path), secrets.token_bytes(_KEY)))
        return self._unwrapped(path)

    def destroy_named(self, name: str) -> None:
        _erase(self._path(self._named, name))

    def fingerprint(self, digest: str) -> str:
        """`fingerprint` under the key of that name."""
        return fingerprint(self.named_key("fingerprint"), digest)

    def _data_path(self, key_id: str) -> Path:
        return self._path(self._data, key_id)

    def _path(self, folder: Path, key_id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", key_id):
            raise ValueError("a key id is 1 to 128 letters, digits, _ and -")
        return folder / f"{key_id}.key"

    def _wrapping_key(self, path: Path) -> bytes:
        return _derived(self._master, b"", f"lethe wrap {path.parent.name}/{path.name}".encode())

    def _unwrapped(self, path: Path) -> bytes:
        try:
            wrapped = _read_private(path)
        except FileNotFoundError:
            raise KeyGone("the key was destroyed or never made") from None
        try:
            return aes_key_unwrap(self._wrapping_key(path), wrapped)
        except InvalidUnwrap:
            raise KeyGone("the key file does not open under this master key") from None


def new_data_key() -> bytes:
    return secrets.token_bytes(_KEY)


def fingerprint(key: bytes, digest: str) -> str:
    """Keyed digest (BLAKE2b, 256 bits, hex) of a digest of decoded pixels; without the key nobody can test a guess. The
    process that decodes never has the key."""
    return hashlib.blake2b(bytes.fromhex(digest), key=key, digest_size=32, person=b"lethe-digest").hexdigest()


def request_fingerprint(key: bytes, model_id: str, kind: str, asked: list[str]) -> str:
    """Keyed digest (BLAKE2b, 256 bits, hex) of what a request asks: equal for equal ones, and telling nothing else."""
    text = json.dumps([model_id, kind, asked]).encode()
    return hashlib.blake2b(text, key=key, digest_size=32, person=b"lethe-request").hexdigest()


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


def _create_once(path: Path, content: bytes) -> None:
    """Publish a complete file under `path` unless another process was first; nobody ever sees half a file."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            _write_durably(file, content)
        with suppress(FileExistsError):  # the other's key is the key
            os.link(draft, path)
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def _erase(path: Path) -> None:
    """Overwrite and unlink a key file with every draft of it that a killed process left linked to the same bytes."""
    for file in (path, *path.parent.glob(f".{path.name}.*")):
        with suppress(FileNotFoundError), open(os.open(file, os.O_WRONLY | os.O_NOFOLLOW), "wb") as opened:
            _write_durably(opened, bytes(_WRAPPED))
            file.unlink()
    _sync_folder(path.parent)


def _write_durably(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _read_private(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise PermissionError(f"{path} can be read by other users: chmod 600 it")
        return file.read()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
