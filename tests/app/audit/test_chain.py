"""The format of the log, byte by byte: the canonical form against RFC 8785, leaves against RFC 9162, links by hand."""

import hashlib
import json
import math
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.audit import canonical, chain

NAMES = st.text(st.characters(max_codepoint=127), max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-canonical.LARGEST, canonical.LARGEST) | st.text(max_size=20)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4))
FIRST = chain.entry(
    seq=1, at=1700000000.5, actor="key:ab", action="job.queued", resource="job_1", request="req_1", details={}
)
FIRST_BYTES = (
    b'{"action":"job.queued","actor":"key:ab","at":"2023-11-14T22:13:20.500000Z","details":{},'
    b'"request":"req_1","resource":"job_1","seq":1,"v":1}'
)


class Status(StrEnum):
    DONE = "done"


def test_the_form_of_texts_and_literals_is_that_of_rfc_8785() -> None:
    text = "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/"  # the sample of section 3.2.2, with its output of 3.2.3
    assert canonical.encode({"string": text}) == '{"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'.encode()
    assert canonical.encode({"literals": [None, True, False]}) == b'{"literals":[null,true,false]}'
    assert canonical.encode("\b\t\n\f\r\x00\x1f\x7f\u2028") == b'"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f\xe2\x80\xa8"'
    names = {
        "peach": 1,
        "1": {"f": {"f": 1, "F": 5}, "\n": 5},
        "10": [],
        "": 0,
        "a": {},
        "111": [{"e": 1, "E": 2}],
        "A": 0,
    }
    told = b'{"":0,"1":{"\\n":5,"f":{"F":5,"f":1}},"10":[],"111":[{"E":2,"e":1}],"A":0,"a":{},"peach":1}'
    assert canonical.encode(names) == told
    assert canonical.encode({"status": Status.DONE}) == b'{"status":"done"}'


@pytest.mark.parametrize("value", [
    0.5, 1.0, math.nan, math.inf, 2**53, -(2**53), "\ud800", {"é": 1}, {1: 1}, {None: 1}, b"x", (1,), {1}, [{"a": [0.1]}],
], ids=str)  # fmt: skip
def test_what_languages_write_differently_has_no_form(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical.encode(value)


@given(VALUES)
def test_the_form_reads_back_and_is_the_only_one(value: Any) -> None:
    form = canonical.encode(value)
    assert canonical.decode(form) == value and json.loads(form) == value
    assert form == canonical.encode(json.loads(json.dumps(value, indent=1)))


@pytest.mark.parametrize("form", [
    b'{"b":1,"a":1}', b'{"a": 1}', b' {"a":1}', b'{"a":1}\n', b'{"a":1,"a":1}', b'{"a":1.0}', b'{"a":-0}', b'{"a":1e0}', b'"\\u0041"',
    b'"\\/"', b'"\\u001F"', b'\xef\xbb\xbf"a"', b'"\xff"', b"", b"NaN", b"[" * 100_000, b'{"a":9007199254740992}', b"\x00",
], ids=lambda form: str(form[:12]))  # fmt: skip
def test_another_spelling_is_refused(form: bytes) -> None:
    with pytest.raises(ValueError):
        canonical.decode(form)


def test_the_bytes_of_an_entry_are_those_that_the_docs_state() -> None:
    assert canonical.encode(FIRST) == FIRST_BYTES


def test_a_leaf_is_that_of_rfc_9162() -> None:
    assert chain.leaf_of(FIRST) == hashlib.sha256(b"\x00" + FIRST_BYTES).digest()
    assert chain.EMPTY.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_links_and_lines_are_as_stated() -> None:
    leaf = chain.leaf_of(FIRST)
    link = chain.link_of(chain.EMPTY, leaf)
    assert link == hashlib.sha256(b"\x02" + hashlib.sha256(b"").digest() + leaf).digest()
    assert chain.line(FIRST, leaf, link) == (
        b'{"entry":' + FIRST_BYTES + f',"leaf":"{leaf.hex()}","link":"{link.hex()}"}}\n'.encode()
    )
    assert chain.header(1, chain.EMPTY, chain.Head(1, link)) == (
        f'{{"before":"{chain.EMPTY.hex()}","format":"lethe-audit-1","from":1,"head":{{"link":"{link.hex()}","size":1}}}}\n'.encode()
    )


@given(st.floats(0, 4e9))
def test_a_time_has_six_decimals_always(at: float) -> None:
    document = chain.entry(seq=1, at=at, actor="", action="", resource="", request=None, details={})
    assert len(document["at"]) == len("2023-11-14T22:13:20.500000Z") and document["at"].endswith("Z")
