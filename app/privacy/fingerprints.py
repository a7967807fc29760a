"""Marks: keyed digests of decoded pixels that say which key they were made with.

A mark is `<name of the key>:<digest>`; of the first key, `fingerprint`, it is the digest alone, as in every index from before
keys had a lifetime. A sample has a mark for each key that was alive when it was indexed, the newest key's first, so two samples
are the same image if they share any.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

FIRST = "fingerprint"
_KNOWN = "00" * 32


def fingerprint(key: bytes, digest: str) -> str:
    """Keyed digest (BLAKE2b, 256 bits, hex) of a digest of decoded pixels; without the key nobody can test a guess. The
    process that decodes never has the key."""
    return hashlib.blake2b(bytes.fromhex(digest), key=key, digest_size=32, person=b"lethe-digest").hexdigest()


def request_fingerprint(key: bytes, model_id: str, kind: str, asked: list[str]) -> str:
    """Keyed digest (BLAKE2b, 256 bits, hex) of what a request asks: equal for equal ones, and telling nothing else."""
    text = json.dumps([model_id, kind, asked]).encode()
    return hashlib.blake2b(text, key=key, digest_size=32, person=b"lethe-request").hexdigest()


def mark(name: str, key: bytes, digest: str) -> str:
    return joined(name, fingerprint(key, digest))


def marks(keys: Mapping[str, bytes], digest: str) -> list[str]:
    """Of a plain digest of pixels, one for each key, in their order."""
    return [mark(name, key, digest) for name, key in keys.items()]


def joined(name: str, digest: str) -> str:
    return digest if name == FIRST else f"{name}:{digest}"


def parted(text: str) -> tuple[str, str]:
    """The key's name and the keyed digest."""
    name, _, digest = text.rpartition(":")
    return name or FIRST, digest


def in_order(sample: Mapping[str, Any]) -> list[str]:
    """The marks of a sample of an index, the newest key's first."""
    return [sample["fingerprint"], *sample.get("fingerprints", ())]


def marks_of(sample: Mapping[str, Any]) -> set[str]:
    return set(in_order(sample))


def newest(sample: Mapping[str, Any], names: list[str]) -> str:
    """The one to remember a sample by: under the first of `names` (live keys, the present one first) that it has one of.
    Every registered set has marks under all of them, so it is found again."""
    found = {parted(each)[0]: each for each in marks_of(sample)}
    return next((found[name] for name in names if name in found), sample["fingerprint"])


def with_marks(sample: Mapping[str, Any], found: list[str]) -> dict[str, Any]:
    """The sample with these marks and no others."""
    others = {"fingerprints": found[1:]} if found[1:] else {}
    return {
        **{name: value for name, value in sample.items() if name != "fingerprints"},
        "fingerprint": found[0],
        **others,
    }


def check_of(key: bytes) -> str:
    """What shows whether a key file holds the key that it once held, and nothing else of the key."""
    return hashlib.blake2b(bytes.fromhex(_KNOWN), key=key, digest_size=16, person=b"lethe-check").hexdigest()
