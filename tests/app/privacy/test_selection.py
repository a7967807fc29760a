"""D_f and D_r never meet: by pixels, by tombstone and by label, whatever the sets call their labels."""

from typing import Any

import pytest

from app.errors import Refused
from app.privacy.selection import check, label_map, select

MODEL = ["ann", "bob", "cat"]


def index(labels: list[str], *samples: tuple[str, int, str]) -> dict[str, Any]:
    """Samples are (id, label number in the set, fingerprint)."""
    return {"labels": labels, "samples": [{"id": i, "label": label, "fingerprint": mark} for i, label, mark in samples]}


SOURCE = index(["ann", "bob"], ("a", 0, "1"), ("b", 1, "2"), ("c", 0, "3"))
RETAIN = index(["0", "1", "2"], ("x", 0, "1"), ("y", 0, "9"), ("z", 1, "2"), ("w", 2, "8"))


def test_ids_are_forgotten_and_equal_pixels_leave_the_retain_set() -> None:
    chosen = select(SOURCE, RETAIN, {"ids": ["c", "a"]}, set(), MODEL)
    assert chosen.forget == [0, 2] and chosen.fingerprints == {"1", "3"}
    assert chosen.retain == [1, 2, 3]


@pytest.mark.parametrize("name", ["ann", "0"])
def test_a_label_is_the_same_by_name_and_by_number(name: str) -> None:
    chosen = select(SOURCE, RETAIN, {"label": name}, set(), MODEL)
    assert chosen.forget == [0, 2]
    assert chosen.retain == [2, 3]


def test_without_ids_or_label_the_whole_source_is_forgotten() -> None:
    assert select(SOURCE, RETAIN, {}, set(), MODEL).forget == [0, 1, 2]


def test_a_tombstoned_image_never_comes_back_into_the_retain_set() -> None:
    assert select(SOURCE, RETAIN, {"ids": ["c"]}, {"8", "9"}, MODEL).retain == [0, 2]


@pytest.mark.parametrize(
    ("what", "marks", "code"),
    [
        ({"ids": ["nobody"]}, set(), "unknown-samples"),
        ({"label": "eve"}, set(), "unknown-label"),
        ({"label": "cat"}, set(), "empty-forget-set"),
        ({"ids": ["a"]}, {"2", "8", "9"}, "nothing-retained"),
    ],
)
def test_refusals_name_the_rule_and_not_the_person(what: dict[str, Any], marks: set[str], code: str) -> None:
    with pytest.raises(Refused) as refused:
        check(select(SOURCE, RETAIN, what, marks, MODEL))
    assert refused.value.code == code
    assert "nobody" not in str(refused.value) and "eve" not in str(refused.value)


def test_a_set_with_a_label_that_the_model_lacks_is_refused() -> None:
    assert label_map(["2", "ann"], MODEL, "train") == [2, 0]
    with pytest.raises(Refused, match="'dog'"):
        label_map(["dog"], MODEL, "train")
    with pytest.raises(Refused, match="label 0"):
        label_map(["dog"], MODEL, "forget", secret=True)
