"""A log as an export has it, made without a database: entries by hand, lines by app.audit.chain."""

import io
from typing import Any

from app.audit import chain
from app.audit.chain import EMPTY, Head
from app.audit.verify import Broken, Verified, verify


def entries(count: int, **changed: Any) -> list[dict[str, Any]]:
    """Entries 1 to `count`."""
    return [
        chain.entry(
            seq=seq, at=1_700_000_000.25 + seq, actor="key:ab", action="request.received", resource=f"req_{seq}",
            request=None if seq % 2 else f"req_{seq}", **{"details": {"method": "salun", "forget_count": seq}, **changed},
        )
        for seq in range(1, count + 1)
    ]  # fmt: skip


def export(documents: list[dict[str, Any]], first: int = 1, before: bytes = EMPTY) -> bytes:
    """As /v1/audit/export writes these entries, with every hash computed."""
    lines, link = [], before
    for document in documents:
        leaf = chain.leaf_of(document)
        link = chain.link_of(link, leaf)
        lines.append(chain.line(document, leaf, link))
    return b"".join([chain.header(first, before, Head(first - 1 + len(documents), link)), *lines])


def head(documents: list[dict[str, Any]]) -> Head:
    link = EMPTY
    for document in documents:
        link = chain.link_of(link, chain.leaf_of(document))
    return Head(len(documents), link)


def check(text: bytes, *since: Head, against: Head | None = None) -> Verified | Broken:
    """What is found: the export's range, or the first thing that is wrong."""
    try:
        return verify(io.BytesIO(text), since, against)
    except Broken as broken:
        return broken
