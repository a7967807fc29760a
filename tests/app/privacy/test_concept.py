"""When a text names a concept: by whole words in order, whatever the case, the form and the marks between them."""

import pytest

from app.privacy.concept import naming, words


@pytest.mark.parametrize(
    ("concept", "text"),
    [
        ("Anna", "a photo of anna"),
        ("anna", "ANNA"),
        ("Anna", "Anna's bicycle, left"),
        ("van Gogh", "after Van  Gogh, 1889"),
        ("van Gogh", "van_gogh"),
        ("van gogh", "theo-van-gogh"),
        ("José", "portrait of JOSE\u0301"),
        ("Straße 7", "the STRASSE 7 sign"),
        ("\uff21\uff4e\uff4e\uff41", "anna"),
        ("अनु", "यह अनु है"),
        ("Лена", "(лена)"),
        ("7", "number 7"),
    ],
)
def test_whole_words_name(concept: str, text: str) -> None:
    assert naming(concept)(text)


@pytest.mark.parametrize(
    ("concept", "text"),
    [
        ("Anna", "Annabel"),
        ("Anna", "Joanna"),
        ("van Gogh", "Vangogh"),
        ("van Gogh", "Gogh, van"),
        ("van Gogh", "a van, and then Gogh"),
        ("अन", "अनु"),
        ("7", "17"),
        ("Anna", ""),
        ("...", "... and so on"),
        ("", "anything"),
    ],
)
def test_parts_of_words_and_other_orders_do_not(concept: str, text: str) -> None:
    assert not naming(concept)(text)


def test_a_concept_of_marks_alone_has_no_word() -> None:
    assert words("?! _ -") == [] and words("van_Gogh (7)") == ["van", "gogh", "7"]
