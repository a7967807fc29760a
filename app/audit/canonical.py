"""The one way to write a JSON value as bytes, so that its hash is the same wherever it is computed: RFC 8785.

Only values on which every JSON library agrees have a form here: member names are ASCII, numbers are whole and not beyond
2**53 - 1. For these RFC 8785 says: members sorted by name, no white space, UTF-8, and in texts nothing escaped but the
quotation mark, the backslash and control characters.
"""

import json
from typing import Any

LARGEST = 2**53 - 1


def encode(value: Any) -> bytes:
    """ValueError for what has no such form."""
    _check(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def decode(form: bytes) -> Any:
    """The value that was encoded. ValueError for every other spelling of it, too."""
    try:
        value = json.loads(form.decode())
        same = encode(value) == form
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not same:
        raise ValueError("not in canonical form")
    return value


def _check(value: Any) -> None:
    if isinstance(value, dict):
        for name, member in value.items():
            if not (isinstance(name, str) and name.isascii()):
                raise ValueError("a member's name must be ASCII text")
            _check(member)
    elif isinstance(value, list):
        for item in value:
            _check(item)
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError("a number must not be beyond 2**53 - 1")
    elif not (value is None or isinstance(value, str)):
        raise ValueError(f"{type(value).__name__} has no canonical form: use text, whole numbers, lists and objects")
