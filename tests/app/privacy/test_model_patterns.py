"""Which regular expressions a tokenizer may carry: those of published ones, and none that may never end."""

import pytest

from app.errors import Refused
from app.privacy.model_patterns import LENGTH, check_patterns

CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check(pattern: str) -> None:
    check_patterns({"pre_tokenizer": {"pretokenizers": [{"pattern": {"Regex": pattern}}]}}, "tokenizer.json")


@pytest.mark.parametrize(
    "pattern", [CLIP, LLAMA, r"(a+)?b", r"\(a+\)+", r"[(a+)]+", r"(ab)+c+", r"(a|b)*", " {2,}", ")+"]
)
def test_patterns_of_published_tokenizers_pass(pattern: str) -> None:
    check(pattern)


@pytest.mark.parametrize(
    "pattern", [r"(a+)+", r"(a*)*b", r"((a+)b)+", r"(?:x|\s+)*$", r"([a-z]+){9}", "a" * (LENGTH + 1)]
)
def test_a_pattern_that_may_never_end_is_refused(pattern: str) -> None:
    with pytest.raises(Refused) as caught:
        check(pattern)
    assert (caught.value.code, caught.value.field) == ("pattern-refused", "tokenizer.json: Regex")
