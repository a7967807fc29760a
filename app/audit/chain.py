"""The format of the log, version 1: the bytes of an entry, its hashes, and the lines of an export.

    entry n   {"action", "actor", "at", "details", "request", "resource", "seq": n, "v": 1}, as app.audit.canonical writes it
    leaf n    SHA-256(0x00 || entry n), the leaf hash of RFC 9162, section 2.1.1
    link n    SHA-256(0x02 || link n-1 || leaf n);  link 0 = SHA-256("")
    head      {"size": n, "link": link n}: whoever kept it can tell whether the first n entries are still the same

An export has a header line, then one line per entry; each line is in canonical form and ends with a line feed:

    {"before": link from-1, "format": "lethe-audit-1", "from": seq of the first entry, "head": {"link", "size"}}
    {"entry": {...}, "leaf": leaf n, "link": link n}

Room for later: the leaves are those of an RFC 9162 tree in the order of seq, whose head, inclusion and consistency proofs
can be computed over what is stored today (0x01 is left to its nodes); `v` and `format` count up when bytes change; the
document of a head may gain members, such as the tree's root and a signature.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any, NamedTuple

from app.audit import canonical

FORMAT = "lethe-audit-1"
EMPTY = hashlib.sha256(b"").digest()


class Head(NamedTuple):
    size: int
    link: bytes


def entry(
    *, seq: int, at: float, actor: str, action: str, resource: str, request: str | None, details: dict[str, Any]
) -> dict[str, Any]:
    """`at` in seconds since 1970, which the entry has as RFC 3339 in UTC with six decimals."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    said = {"actor": actor, "action": action, "resource": resource, "request": request, "details": details}
    return {"v": 1, "seq": seq, "at": moment, **said}


def leaf_of(document: dict[str, Any]) -> bytes:
    return hashlib.sha256(b"\x00" + canonical.encode(document)).digest()


def link_of(before: bytes, leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x02" + before + leaf).digest()


def header(first: int, before: bytes, head: Head) -> bytes:
    """The first line of an export of the entries from `first` to the head's size."""
    shown = {"size": head.size, "link": head.link.hex()}
    return canonical.encode({"format": FORMAT, "from": first, "before": before.hex(), "head": shown}) + b"\n"


def line(document: dict[str, Any], leaf: bytes, link: bytes) -> bytes:
    return canonical.encode({"entry": document, "leaf": leaf.hex(), "link": link.hex()}) + b"\n"
