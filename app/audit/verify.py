"""Whether an export is whole and unchanged, found offline from the file and heads that were kept: no server, no database.

Without a head from elsewhere it shows only that the file agrees with itself: whoever can rewrite the database can also
compute every hash anew. One line is in memory at a time.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.audit import canonical
from app.audit.chain import EMPTY, FORMAT, Head, leaf_of, link_of

LONGEST = 16 << 20  # bytes of a line


class Broken(Exception):
    """The first thing that is wrong; what comes after it was not looked at."""

    def __init__(self, line: int, seq: int | None, problem: str) -> None:
        super().__init__(f"line {line}" + (f" (seq {seq})" if seq is not None else "") + f": {problem}")
        self.line, self.seq, self.problem = line, seq, problem


@dataclass(frozen=True)
class Verified:
    """Entries `first` to `head.size` are whole, unchanged and in order."""

    first: int
    head: Head


def read_head(text: bytes) -> Head:
    """What `lethe audit head -o` wrote. ValueError for anything else."""
    try:
        document = canonical.decode(text.strip())
        if document["format"] != FORMAT:
            raise ValueError
        return _head(document)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"It is no head of the format {FORMAT}: make one with `lethe audit head -o`.") from None


def verify(export: BinaryIO, since: Sequence[Head] = (), against: Head | None = None) -> Verified:
    """Raises Broken at the first byte, entry or head that does not fit. `since`: heads that the log had earlier, which must
    be on its way; `against`: the head that the export must end with."""
    lines = _lines(export)
    first, link, promised = _header(next(lines, b""))
    kept = [*since, *([against] if against else [])]
    for head in kept:
        if head.size < first - 1:
            begin = f"the export begins after the head of size {head.size}"
            raise Broken(1, None, f"{begin}, which cannot be compared: export from {head.size + 1}, or all")
    number, seq = 1, first - 1
    _meet(kept, number, seq, link)
    for number, line in enumerate(lines, 2):
        seq += 1
        link = _follow(number, seq, link, line)
        _meet(kept, number, seq, link)
    for head in (promised, *kept):
        if head.size > seq:
            raise Broken(number, seq, f"truncated: it ends here, and the head's size is {head.size}")
    for head in (promised, *([against] if against else [])):
        if head.size < seq:
            raise Broken(number, seq, f"there are entries beyond the head's size of {head.size}")
    if promised.link != link:
        raise Broken(number, seq, "the export does not end with the head that its first line names")
    return Verified(first, promised)


def _lines(export: BinaryIO) -> Iterator[bytes]:
    """Without their line feeds."""
    number = 0
    while line := export.readline(LONGEST):
        number += 1
        if not line.endswith(b"\n"):
            why = "longer than any line of an export" if len(line) == LONGEST else "cut off: it has no line feed"
            raise Broken(number, None, f"the line is {why}")
        yield line[:-1]


def _header(line: bytes) -> tuple[int, bytes, Head]:
    try:
        header = canonical.decode(line)
    except ValueError:
        raise Broken(1, None, "it is not the header of an export, or a byte of it was changed") from None
    try:
        if header["format"] != FORMAT or header.keys() != {"before", "format", "from", "head"}:
            raise ValueError
        first, before, head = _whole(header["from"]), _digest(header["before"]), _head(header["head"])
        if header["head"].keys() != {"link", "size"} or first < 1 or (first == 1 and before != EMPTY):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Broken(1, None, f"it is not a header of the format {FORMAT}") from None
    return first, before, head


def _follow(number: int, seq: int, before: bytes, line: bytes) -> bytes:
    """The link of the entry that must be the next."""
    try:
        document = canonical.decode(line)
        entry, leaf, link = document["entry"], document["leaf"], document["link"]
        found = _whole(entry["seq"])
        if document.keys() != {"entry", "leaf", "link"}:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Broken(number, seq, "it is not an entry, or a byte of it was changed") from None
    computed = leaf_of(entry)
    if computed.hex() != leaf:
        raise Broken(number, seq, "changed: the entry does not have the hash that stands beside it")
    if found > seq:
        raise Broken(number, seq, f"removed: entries {seq} to {found - 1} are missing before entry {found}")
    if found < seq:
        raise Broken(number, seq, f"out of order: entry {found} stands where entry {seq} should")
    linked = link_of(before, computed)
    if linked.hex() != link:
        raise Broken(number, seq, "the link does not follow from the entries before: one of them is another now")
    return linked


def _meet(kept: Sequence[Head], number: int, seq: int, link: bytes) -> None:
    if any(head.size == seq and head.link != link for head in kept):
        raise Broken(number, seq, f"forked: up to here it is not the log that the head of size {seq} was taken from")


def _head(document: Any) -> Head:
    return Head(_whole(document["size"]), _digest(document["link"]))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError
    return value


def _digest(value: Any) -> bytes:
    if not (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)):
        raise ValueError
    return bytes.fromhex(value)
