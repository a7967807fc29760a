"""When a text names a concept: the rule by which a concept alone selects samples of a captioned or labelled set.

Both are read as words: brought to one form and one case (Unicode NFKC, case folding), and cut wherever a character is
neither letter nor digit nor a mark upon one. A text names a concept when the concept's words stand in it side by side
and in order: "van Gogh" is named by "A portrait, by Van Gogh's pupil" and by the label "van_gogh", not by "Vangogh".
"""

import unicodedata
from collections.abc import Callable

WORD = "LMN"  # the first letters of Unicode's categories of letters, marks and numbers


def words(text: str) -> list[str]:
    return "".join(each if unicodedata.category(each)[0] in WORD else " " for each in folded(text)).split()


def naming(concept: str) -> Callable[[str], bool]:
    """Whether a text names `concept`. A concept without a word is named by nothing."""
    wanted = words(concept)
    phrase = f" {' '.join(wanted)} "

    def names(text: str) -> bool:
        if not wanted or wanted[0] not in folded(text):  # most texts end here, and cheaply
            return False
        return phrase in f" {' '.join(words(text))} "

    return names


def folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
