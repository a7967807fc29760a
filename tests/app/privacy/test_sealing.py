"""Keys and sealing: what a destroyed key, a changed byte or another process must do."""

import base64
import hashlib
import os
import stat
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.privacy.fingerprints import fingerprint
from app.privacy.sealing import (
    CHUNK,
    KeyGone,
    Keyring,
    SealBroken,
    opened_chunks,
    seal,
    seal_text,
    sealed_chunks,
    unseal,
    unseal_text,
)

KEY = bytes(range(32))
HEAD = 24
SEALED_CHUNK = CHUNK + 16


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_only_the_owner_can_open_anything_in_the_key_folder(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.new_key("ds_1")
    ring.named_key("hmac")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files_of(tmp_path)}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys", tmp_path / "keys/data")}
    assert (modes, folders, len(files_of(tmp_path))) == ({0o600}, {0o700}, 4)  # and the folder's lock


def test_a_folder_or_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    Keyring(tmp_path / "keys")
    (tmp_path / "keys/master.key").chmod(0o644)
    with pytest.raises(PermissionError):
        Keyring(tmp_path / "keys")
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(PermissionError):
        Keyring(tmp_path / "open")


def test_a_second_keyring_reads_the_same_keys(tmp_path: Path) -> None:
    first = Keyring(tmp_path / "keys")
    key = first.new_key("ds_1")
    again = Keyring(tmp_path / "keys")
    assert again.key("ds_1") == key
    assert again.named_key("hmac") == first.named_key("hmac") != first.named_key("fingerprint")


def test_no_key_lies_on_disk_in_the_clear(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    keys = [ring.new_key("ds_1"), ring.named_key("hmac")]
    stored = b"".join(path.read_bytes() for path in files_of(tmp_path))
    assert all(key not in stored for key in keys)


def test_destroying_a_key_erases_what_it_sealed_for_every_process(tmp_path: Path) -> None:
    ring, other = Keyring(tmp_path / "keys"), Keyring(tmp_path / "keys")
    sealed = seal(ring.new_key("ds_1"), b"a face", b"dataset/ds_1")
    assert unseal(other.key("ds_1"), sealed, b"dataset/ds_1") == b"a face"
    ring.destroy("ds_1")
    ring.destroy("ds_1")
    assert not other.exists("ds_1") and not list((tmp_path / "keys/data").iterdir())
    with pytest.raises(KeyGone):
        other.key("ds_1")


def test_destroying_a_named_key_takes_a_draft_of_a_killed_process_along(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.named_key("fingerprint")
    os.link(tmp_path / "keys/named/fingerprint.key", tmp_path / "keys/named/.fingerprint.key.new")
    ring.destroy_named("fingerprint")
    assert not list((tmp_path / "keys/named").iterdir())


def test_an_id_has_one_key_in_its_life(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.new_key("ds_1")
    with pytest.raises(FileExistsError):
        ring.new_key("ds_1")


@pytest.mark.parametrize("key_id", ["", "../master", "a/b", ".hidden", "a" * 129, "ä"])
def test_an_id_that_is_no_plain_name_never_reaches_the_disk(tmp_path: Path, key_id: str) -> None:
    with pytest.raises(ValueError, match="key id"):
        Keyring(tmp_path / "keys").new_key(key_id)


def test_a_key_file_renamed_to_another_id_does_not_open(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    ring.new_key("ds_1")
    (tmp_path / "keys/data/ds_1.key").rename(tmp_path / "keys/data/ds_2.key")
    with pytest.raises(KeyGone):
        ring.key("ds_2")


def test_processes_that_start_together_agree_on_master_and_named_keys(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from app.privacy.sealing import Keyring;"
        "print(Keyring(Path(sys.argv[1])).named_key('hmac').hex())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "keys")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    answers = [process.communicate()[0] for process in running]
    assert len(set(answers)) == 1 and len(answers[0].strip()) == 64
    assert [path.name for path in files_of(tmp_path)] == ["lock", "master.key", "hmac.key"]


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_what_is_sealed_opens_to_the_same_bytes(plaintext: bytes, context: bytes) -> None:
    assert unseal(KEY, seal(KEY, plaintext, context), context) == plaintext


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_blob_of_any_number_of_chunks_comes_back_whole(size: int) -> None:
    plaintext = os.urandom(size)
    sealed = seal(KEY, plaintext, b"x")
    chunks = max(1, -(-size // CHUNK))
    assert len(sealed) == HEAD + size + 16 * chunks
    assert unseal(KEY, sealed, b"x") == plaintext


def test_a_stream_seals_the_same_whatever_its_pieces() -> None:
    plaintext = os.urandom(CHUNK + 5)
    pieces = [plaintext[at : at + 70_001] for at in range(0, len(plaintext), 70_001)]
    sealed = b"".join(sealed_chunks(KEY, pieces, b"x"))
    assert b"".join(opened_chunks(KEY, BytesIO(sealed), b"x")) == plaintext


def test_sealing_twice_gives_unrelated_bytes() -> None:
    assert seal(KEY, b"same", b"x")[HEAD:] != seal(KEY, b"same", b"x")[HEAD:]


def body_of(sealed: bytes) -> list[bytes]:
    body = sealed[HEAD:]
    return [body[at : at + SEALED_CHUNK] for at in range(0, len(body), SEALED_CHUNK)]


def test_cut_reordered_doubled_or_spliced_chunks_do_not_open() -> None:
    plaintext = os.urandom(2 * CHUNK + 9)
    sealed, other = seal(KEY, plaintext, b"x"), seal(KEY, plaintext, b"x")
    head, (first, second, last) = sealed[:HEAD], body_of(sealed)
    broken = {
        "empty": b"",
        "only the head": head,
        "cut at a chunk": head + first + second,
        "cut in a chunk": sealed[:-1],
        "reordered": head + second + first + last,
        "doubled": head + first + first + second + last,
        "dropped first": head + second + last,
        "longer": sealed + b"\0",
        "spliced": head + first + body_of(other)[1] + last,
    }
    for name, form in broken.items():
        with pytest.raises(SealBroken):
            unseal(KEY, form, b"x")
            pytest.fail(name)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    sealed = bytearray(seal(KEY, b"the forget set", b"x"))
    sealed[at % len(sealed)] ^= change
    with pytest.raises(SealBroken):
        unseal(KEY, bytes(sealed), b"x")


def test_another_key_or_context_does_not_open() -> None:
    sealed = seal(KEY, b"secret", b"dataset/ds_1")
    with pytest.raises(SealBroken):
        unseal(KEY, sealed, b"dataset/ds_2")
    with pytest.raises(SealBroken):
        unseal(bytes(32), sealed, b"dataset/ds_1")


def test_a_concept_is_sealed_into_a_text_column() -> None:
    sealed = seal_text(KEY, "Zoë Müller", b"request/rq_1")
    assert sealed.isascii() and "Müller".encode() not in base64.urlsafe_b64decode(sealed)
    assert unseal_text(KEY, sealed, b"request/rq_1") == "Zoë Müller"
    for broken in ("not base64!", "ä", sealed[:-4], ""):
        with pytest.raises(SealBroken):
            unseal_text(KEY, broken, b"request/rq_1")


def marked(ring: Keyring, digest: str) -> str:
    return fingerprint(ring.named_key("fingerprint"), digest)


def test_a_fingerprint_depends_on_key_and_digest_and_is_no_plain_digest(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"pixels").hexdigest()
    ring = Keyring(tmp_path / "keys")
    same = marked(ring, digest)
    assert same == marked(ring, digest) == marked(Keyring(tmp_path / "keys"), digest)
    others = {
        marked(ring, digest[::-1]),
        marked(Keyring(tmp_path / "others"), digest),
        fingerprint(KEY, digest),
        hashlib.blake2b(bytes.fromhex(digest), digest_size=32).hexdigest(),
        digest,
    }
    assert len(same) == 64 and len(others) == 5 and same not in others


def test_a_new_fingerprint_key_makes_old_fingerprints_meaningless(tmp_path: Path) -> None:
    ring = Keyring(tmp_path / "keys")
    before = marked(ring, "00" * 32)
    ring.destroy_named("fingerprint")
    assert marked(ring, "00" * 32) != before
