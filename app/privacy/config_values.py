"""Numbers read out of a network's config by the guard: natural, bounded, and refused by the name of their key."""

from collections.abc import Mapping
from typing import Any

from app.errors import Refused

Shape = tuple[int, ...]
MOST = 1 << 20  # of any width in a config
MOST_BLOCKS = 1024


def number(config: Mapping[str, Any], key: str, default: int, most: int = MOST) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 <= value <= most:
        raise refused(key, f"must be a natural number of at most {most}")
    return value


def numbers(config: Mapping[str, Any], key: str, default: list[int], most: int = MOST) -> list[int]:
    values = config.get(key, default)
    if (
        not isinstance(values, list)
        or not 0 < len(values) <= 64
        or any(type(v) is not int or not 0 < v <= most for v in values)
    ):
        raise refused(key, f"must be a list of 1 to 64 natural numbers of at most {most}")
    return values


def size_of(config: Mapping[str, Any], key: str, default: int = 0) -> tuple[int, int]:
    """Height and width, written as one number or two."""
    value = config.get(key) or default
    height, width = value if isinstance(value, list) and len(value) == 2 else (value, value)
    if any(type(side) is not int or not 0 < side <= 1 << 14 for side in (height, width)):
        raise refused(key, "must be the height and width of an image, or one number for both")
    return height, width


def refused(key: str, rule: str) -> Refused:
    return Refused(
        "config-value", f"config.json: {key}", f"`{key}` {rule}.", "Register the config that belongs to the weights."
    )
