"""The regular expressions of a tokenizer.json: the tokenizer runs them over every prompt, on whoever opens the model.

A repetition within a repetition, such as `(a+)+`, can take for ever on a short text, and no published tokenizer has one.
"""

from typing import Any

from app.errors import Refused
from app.privacy.model_files import entries

LENGTH = 4000


def check_patterns(content: dict[str, Any], where: str) -> None:
    for settings, _, _ in entries(content):
        pattern = settings.get("Regex")
        if isinstance(pattern, str) and (len(pattern) > LENGTH or _repeats_a_repetition(pattern)):
            raise Refused(
                "pattern-refused",
                f"{where}: Regex",
                f"A pattern has at most {LENGTH} characters, and no repetition within a repetition.",
                "Use the tokenizer as it was published.",
            )


def _repeats_a_repetition(pattern: str) -> bool:
    """Whether a group that holds `+` or `*` is itself repeated, at any depth; classes and escapes count as one letter."""
    open_groups, escaped, in_class, closed = [False], False, False, False
    for letter in pattern:
        if escaped:
            escaped, closed = False, False
        elif letter == "\\":
            escaped = True
        elif in_class:
            in_class, closed = letter != "]", False
        elif letter == "[":
            in_class = True
        elif letter == "(":
            open_groups.append(False)
            closed = False
        elif letter == ")" and len(open_groups) > 1:
            closed = open_groups.pop()
            open_groups[-1] |= closed
        else:
            if closed and letter in "+*{":
                return True
            open_groups[-1] |= letter in "+*"
            closed = False
    return False
