"""Wrap every key under another master key, while servers and workers go on, so that a kill at any moment loses none.

    1. the next master key is published, wrapped under the present one: whoever makes a key wraps it under the next
    2. key by key, under the folder's lock, the file is replaced by one that opens under the next
    3. the next takes the place of the present one
    4. the old master key and what wrapped the next are overwritten and unlinked

Until 4 both master keys open what they wrapped; a process that meets a key which does not open reads the master keys again.
A rotation that was interrupted is finished by the next call. Where the master key lies outside the folder
(LETHE_MASTER_KEY_FILE), step 3 is the operator's, and the call after it does step 4.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import Refused
from app.privacy import key_files
from app.privacy.key_files import STRANGERS
from app.privacy.sealing import Keyring


def unfinished(ring: Keyring) -> bool:
    return ring.following_file.exists() or _old(ring).exists()


@contextmanager
def alone(ring: Keyring) -> Iterator[None]:
    """One rotation at a time. Refused while another one runs."""
    try:
        with key_files.locked(ring.folder / "rotation.lock", wait=False):
            yield
    except key_files.Held:
        raise Refused("rotation-runs", "keyring", "Another rotation runs.", "Wait for its end.", 409) from None


def begin(ring: Keyring, new: Path | None) -> None:
    """Step 1, but where an interrupted rotation is to be finished first. `new`: a file with the next master key, needed
    where the present one lies outside the folder."""
    with ring.lock():
        for folder in (ring.folder, ring.folder / "named", ring.folder / "data"):
            key_files.tidy(folder)
        named = key_files.read(new, STRANGERS) if new else None
        masters = ring.read_masters()
        if unfinished(ring):
            if named not in (None, masters.present, masters.following):
                raise _refused("A rotation to another master key is not finished.", "Leave --new out to finish it.")
            return
        if ring.outside and named is None:
            raise _refused(
                "The master key lies outside the key folder, so the next one must, too.", "Name its file with --new."
            )
        if named is not None and (len(named) != len(masters.present) or named == masters.present):
            raise _refused(
                f"It must hold another master key, of {len(masters.present)} bytes.",
                f"Make one: (umask 077; head -c {len(masters.present)} /dev/urandom > FILE)",
            )
        ring.follow(named or secrets.token_bytes(len(masters.present)))


def rewrap(ring: Keyring) -> int:
    """Step 2. How many keys were wrapped anew; those that are made meanwhile need not be."""
    return sum(ring.rewrap(path) for path in ring.files())


def promote(ring: Keyring) -> bool:
    """Step 3; the old master key keeps a name until `finish`. False where the next one is not in its place yet, and only
    the operator can put it there."""
    with ring.lock():
        following = ring.read_masters().following
        if ring.outside:
            return following is None
        if following is None:
            return True
        if not _old(ring).exists():
            os.link(ring.master_file, _old(ring))
        key_files.take_place(ring.master_file, following)
        return True


def finish(ring: Keyring) -> None:
    """Step 4."""
    with ring.lock():
        if not ring.outside and _old(ring).exists() and not _old(ring).samefile(ring.master_file):
            key_files.erase(_old(ring))
        key_files.erase(ring.following_file)


def _old(ring: Keyring) -> Path:
    return ring.folder / "master.old"


def _refused(rule: str, remedy: str) -> Refused:
    return Refused("rotation-refused", "new", rule, remedy)
