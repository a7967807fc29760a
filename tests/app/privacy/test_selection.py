"""D_f and D_r never meet: by pixels, by tombstone, by label and by concept, whatever the sets call their labels."""

from typing import Any

import pytest

from app.errors import Refused
from app.privacy.selection import about, by_caption, check, concept_number, job_labels, label_map, rule_of, select
from app.records.model import Model
from tests.app.captioned import READER

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
    chosen = select(SOURCE, RETAIN, {"labels": [name]}, set(), MODEL)
    assert chosen.forget == [0, 2]
    assert chosen.retain == [2, 3]


def test_without_ids_or_label_the_whole_source_is_forgotten() -> None:
    assert select(SOURCE, RETAIN, {}, set(), MODEL).forget == [0, 1, 2]


def test_a_tombstoned_image_never_comes_back_into_the_retain_set() -> None:
    chosen = select(SOURCE, RETAIN, {"ids": ["c"]}, {"8", "9"}, MODEL)
    assert (chosen.retain, chosen.left_out) == ([0, 2], 2)


def test_what_this_request_forgets_is_not_counted_as_an_earlier_ones() -> None:
    chosen = select(SOURCE, RETAIN, {"labels": ["ann"]}, {"1", "9", "2", "gone"}, MODEL)
    assert (chosen.retain, chosen.left_out) == ([3], 1)


@pytest.mark.parametrize(
    ("what", "marks", "code"),
    [
        ({"ids": ["nobody"]}, set(), "unknown-samples"),
        ({"labels": ["eve"]}, set(), "unknown-label"),
        ({"labels": ["cat"]}, set(), "empty-forget-set"),
        ({"ids": ["a"]}, {"2", "8", "9"}, "nothing-retained"),
    ],
)
def test_refusals_name_the_rule_and_not_the_person(what: dict[str, Any], marks: set[str], code: str) -> None:
    with pytest.raises(Refused) as refused:
        check(select(SOURCE, RETAIN, what, marks, MODEL))
    assert refused.value.code == code
    assert "nobody" not in str(refused.value) and "eve" not in str(refused.value)


def test_what_the_retain_set_has_of_a_forgotten_label_stays_out_of_later_ones() -> None:
    assert select(SOURCE, RETAIN, {"labels": ["ann"]}, set(), MODEL).fingerprints == {"1", "3", "9"}


def captioned(labels: list[str], *samples: tuple[int, str, str | None]) -> dict[str, Any]:
    """Samples are (label number in the set, fingerprint, caption)."""
    made = index(labels, *((f"s{at}", label, mark) for at, (label, mark, _) in enumerate(samples)))
    for sample, (_, _, text) in zip(made["samples"], samples, strict=True):
        sample |= {} if text is None else {"text": text}
    return made


PHOTOS = captioned(
    ["anna", "park"], (0, "1", None), (1, "2", "a bench"), (1, "3", "Anna on a bench"), (1, "4", "Annabel runs")
)
KEEP = captioned(["park", "anna b"], (0, "3", None), (0, "5", "with anna"), (0, "6", "Annabel"), (1, "7", None))
ANNA = {"kind": "concept", "concept": "Anna", "named": "Anna", "called": "Anna", "ids": None, "labels": []}


def test_a_concept_selects_by_label_and_by_caption_and_is_not_kept() -> None:
    chosen = select(PHOTOS, KEEP, ANNA, set(), ["anna", "park", "anna b"])
    assert chosen.forget == [0, 2] and chosen.retain == [2]
    assert chosen.fingerprints == {"1", "3", "5", "7"}
    assert about(PHOTOS, "park") == [1, 2, 3] and by_caption(PHOTOS, ANNA) == [2]


def test_what_names_the_concept_is_not_kept_when_an_uploaded_set_is_forgotten() -> None:
    what = {"kind": "dataset", "concept": "Anna", "named": "Anna", "ids": None, "labels": []}
    upload = captioned(["anna"], (0, "9", None))
    assert select(upload, KEEP, what, set(), ["park", "anna b", "anna"]).retain == [0, 2]
    assert select(upload, KEEP, {**what, "named": None}, set(), ["park", "anna b", "anna"]).retain == [0, 1, 2, 3]


def test_sets_that_are_generated_have_no_positions() -> None:
    assert select(None, KEEP, ANNA, set(), ["park", "anna b"]).forget is None
    chosen = select(PHOTOS, None, ANNA, set(), ["anna", "park"])
    assert (chosen.forget, chosen.retain, chosen.fingerprints) == ([0, 2], None, {"1", "3"})
    check(chosen)


def test_the_concept_is_a_label_of_the_job_when_captions_alone_or_nothing_speak_of_it() -> None:
    model = Model(family=READER, labels=["park", "Anna B"])
    for source, concept, names, number in (
        (PHOTOS, "Anna", ["park", "Anna B", "anna"], 2),  # a label of the set is called so
        (captioned(["park"], (0, "1", "Anna!")), "Anna", ["park", "Anna B", "Anna"], 2),
        (None, "Anna", ["park", "Anna B", "Anna"], 2),
        (None, "anna-b", ["park", "Anna B"], 1),
        (
            captioned(["Anna B"], (0, "1", None)),
            "Anna",
            ["park", "Anna B"],
            None,
        ),  # a label that names it, and no other
    ):
        what = {**ANNA, "named": concept, "called": concept}
        assert job_labels(model, source, what) == names
        assert concept_number(names, what) == number
    assert job_labels(model, PHOTOS, {"kind": "dataset", "named": "Zoe"}) == ["park", "Anna B", "anna"]
    assert job_labels(Model(family="image_classifier", labels=MODEL), PHOTOS, {}) == MODEL


def test_a_concept_is_a_note_where_samples_are_named_or_the_family_reads_no_words() -> None:
    assert [rule_of(READER, kind, "x") for kind in ("concept", "dataset", "samples")] == ["x", "x", None]
    assert rule_of("image_classifier", "dataset", "x") is None


def test_a_set_with_a_label_that_the_model_lacks_is_refused() -> None:
    assert label_map(["2", "ann"], MODEL, "train") == [2, 0]
    with pytest.raises(Refused, match="'dog'"):
        label_map(["dog"], MODEL, "train")
    with pytest.raises(Refused, match="label 0"):
        label_map(["dog"], MODEL, "forget", secret=True)


def test_several_labels_are_forgotten_whole_and_none_of_them_is_kept() -> None:
    chosen = select(SOURCE, RETAIN, {"labels": ["ann", "1"]}, set(), MODEL)
    assert chosen.forget == [0, 1, 2]
    assert chosen.retain == [3]
