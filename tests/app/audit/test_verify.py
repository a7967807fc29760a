"""The offline verifier against everything that can be done to an export, with and without a head that was kept."""

import io
import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.audit import canonical, chain
from app.audit.chain import EMPTY, Head
from app.audit.verify import Broken, Verified, read_head, verify
from tests.app.audit.logs import check, entries, export, head

LOG = entries(12)
WHOLE = export(LOG)
LINES = WHOLE.splitlines(keepends=True)


def broken(text: bytes, *since: Head, against: Head | None = None) -> Broken:
    found = check(text, *since, against=against)
    assert isinstance(found, Broken), found
    return found


def rewritten(documents: list[dict[str, Any]]) -> bytes:
    """By somebody who holds the database: entries numbered anew and every hash computed anew."""
    return export([{**document, "seq": seq} for seq, document in enumerate(documents, 1)])


def test_a_whole_export_is_whole_at_every_head_on_its_way() -> None:
    heads = [head(LOG[:size]) for size in range(len(LOG) + 1)]
    assert check(WHOLE, *heads, against=heads[-1]) == Verified(1, heads[-1])
    assert check(export([])) == Verified(1, Head(0, EMPTY))


@pytest.mark.parametrize("line", range(len(LINES)))
def test_every_single_byte_flip_is_found_in_its_line(line: int) -> None:
    """All 255 other values at each place of the first two lines, one at each place of the others; without any head."""
    start = sum(len(each) for each in LINES[:line])
    for place in range(start, start + len(LINES[line])):
        for flip in range(1, 256) if line < 2 else (random.Random(place).randrange(1, 256),):
            changed = bytearray(WHOLE)
            changed[place] ^= flip
            found = broken(bytes(changed))
            assert line == 0 or found.line == line + 1, (place, flip, found)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_change_of_any_bytes_is_found(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(WHOLE)))
    end = data.draw(st.integers(start, min(len(WHOLE), start + 300)))
    changed = WHOLE[:start] + data.draw(st.binary(max_size=20)) + WHOLE[end:]
    assert isinstance(check(changed), Broken) == (changed != WHOLE)


@pytest.mark.parametrize("line", range(1, len(LINES)))
def test_a_removed_line_is_found(line: int) -> None:
    found = broken(b"".join(LINES[:line] + LINES[line + 1 :]))
    last = line == len(LINES) - 1
    assert (found.line, found.seq) == ((line, line - 1) if last else (line + 1, line))
    assert found.problem.startswith("truncated" if last else "removed")


def test_every_truncation_is_found() -> None:
    assert [size for size in range(len(WHOLE)) if isinstance(check(WHOLE[:size]), Verified)] == []


@pytest.mark.parametrize("size", range(len(LOG)))
def test_a_truncation_with_a_new_header_is_found_by_a_head_that_was_kept(size: int) -> None:
    cut = export(LOG[:size])
    assert isinstance(check(cut), Verified)  # nothing in the file itself tells
    found = broken(cut, head(LOG))
    assert found.problem.startswith("truncated") and (found.line, found.seq) == (size + 1, size)
    assert broken(cut, against=head(LOG)).problem.startswith("truncated")


@pytest.mark.parametrize("place", range(len(LOG)))
def test_a_rewritten_log_is_found_by_a_head_that_was_kept(place: int) -> None:
    changed = {**LOG[place], "actor": "key:somebody-else"}
    for rewrite in (
        LOG[:place] + LOG[place + 1 :],
        LOG[:place] + [changed] + LOG[place + 1 :],
        LOG[:place] + [changed] + LOG[place:],
    ):
        grown = rewritten(rewrite + entries(3))
        assert isinstance(check(grown), Verified)
        for kept in range(len(LOG) + 1):
            found = check(grown, head(LOG[:kept]))
            if kept <= place:
                assert isinstance(found, Verified)  # that head was before the change: it is on the fork's way, too
            else:
                assert isinstance(found, Broken) and found.problem.startswith("forked") and found.seq == kept


@pytest.mark.parametrize(("lines", "problem", "line"), [
    ([*LINES[:4], LINES[5], LINES[4], *LINES[6:]], "removed: entries 4 to 4", 5),
    ([*LINES[:4], LINES[3], *LINES[4:]], "out of order: entry 3", 5),
    ([*LINES, LINES[-1]], "out of order: entry 12", 14),
    ([*LINES[:4], chain.line(LOG[3], chain.leaf_of(LOG[3]), EMPTY), *LINES[5:]], "the link does not follow", 5),
    ([*LINES[:4], b"\n", *LINES[4:]], "it is not an entry", 5),
    ([*LINES, b"\n"], "it is not an entry", 14),
    (LINES[1:], "it is not a header", 1),
    ([], "it is not the header", 1),
    ([LINES[0].replace(b"audit-1", b"audit-2"), *LINES[1:]], "it is not a header of the format", 1),
    ([b"[1]\n", *LINES[1:]], "it is not a header", 1), ([LINES[0], b"[1]\n"], "it is not an entry", 2),
    ([LINES[0], b"7\n"], "it is not an entry", 2), ([b"7\n"], "it is not a header", 1),
    ([LINES[0], b'{"entry":{"seq":true},"leaf":"","link":""}\n'], "it is not an entry", 2),
    ([*LINES[:-1], LINES[-1][:-1]], "the line is cut off", 13),
    ([LINES[0], b"x" * (16 << 20), b"\n"], "the line is longer", 2),
])  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(lines: list[bytes], problem: str, line: int) -> None:
    found = broken(b"".join(lines))
    assert found.problem.startswith(problem) and found.line == line, found


def test_an_export_that_goes_on_from_a_head_joins_it_or_is_refused() -> None:
    kept, other = head(LOG[:7]), head(entries(7, details={"method": "ssd"}))
    later = export(LOG[7:], first=8, before=kept.link)
    assert check(later, kept) == Verified(8, head(LOG))
    assert broken(later, other).problem.startswith("forked") and broken(later, other).line == 1
    assert "begins after the head of size 6" in broken(later, head(LOG[:6])).problem
    assert check(later) == Verified(8, head(LOG))  # the start alone is taken from the file
    assert check(export([], first=13, before=head(LOG).link), head(LOG)) == Verified(13, head(LOG))
    forged = chain.header(13, EMPTY, head(LOG))
    assert "its first line names" in broken(forged).problem


def test_an_export_must_end_with_the_head_that_it_is_held_against() -> None:
    assert "beyond the head" in broken(WHOLE, against=head(LOG[:5])).problem
    assert broken(WHOLE, against=head(entries(12, details={}))).problem.startswith("forked")
    assert "beyond the head" in broken(chain.header(1, EMPTY, head(LOG[:5])) + b"".join(LINES[1:])).problem


def test_a_head_is_read_whatever_members_are_added_to_it() -> None:
    document = {"format": chain.FORMAT, "size": 12, "link": head(LOG).link.hex(), "time": "2026-01-01T00:00:00Z"}
    assert read_head(canonical.encode(document) + b"\n") == head(LOG)
    assert read_head(canonical.encode({**document, "root": "00", "signature": "x"})) == head(LOG)
    for wrong in (
        {"format": "lethe-audit-2"},
        {"size": -1},
        {"size": "12"},
        {"size": True},
        {"link": "0"},
        {"link": None},
    ):
        with pytest.raises(ValueError, match="no head"):
            read_head(canonical.encode({**document, **wrong}))
    for text in (b"", b"[]", b"1", b"\xff", WHOLE, LINES[0]):
        with pytest.raises(ValueError, match="no head"):
            read_head(text)


class Endless(io.RawIOBase):
    """Lines of a long export, made as they are read."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines

    def readline(self, size: int | None = -1) -> bytes:
        return next(self._lines, b"")


def test_memory_does_not_grow_with_the_log() -> None:
    count, link = 4_000, EMPTY
    (document,) = entries(1)
    for seq in range(1, count + 1):
        link = chain.link_of(link, chain.leaf_of({**document, "seq": seq}))

    def lines() -> Iterator[bytes]:
        yield chain.header(1, EMPTY, Head(count, link))
        walked = EMPTY
        for seq in range(1, count + 1):
            leaf = chain.leaf_of({**document, "seq": seq})
            walked = chain.link_of(walked, leaf)
            yield chain.line({**document, "seq": seq}, leaf, walked)

    tracemalloc.start()
    assert verify(Endless(lines())).head == Head(count, link)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18  # the export has 1.6 MB
