"""Lists of prompts: what a model's evaluation may hold, and reading one from a file.

A file is CSV with a header, or JSON lines. I2P's own columns are understood (`prompt`, `sd_seed`, `sd_guidance_scale`), those of
the lists that followed it (`evaluation_seed`, `evaluation_guidance`), and the setting's own names; other columns are left out.
No refusal repeats a prompt.
"""

import csv
import io
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

from app.catalog import Parameter
from app.errors import Refused

MOST = 10_000
SEEDS = 2**32
GUIDANCE = 50.0
SEE = "See docs/protocols.md."
COLUMNS = {
    "seed": ("seed", "sd_seed", "evaluation_seed"),
    "guidance": ("guidance", "sd_guidance_scale", "evaluation_guidance"),
}


def checked(value: Any, parameter: Parameter, field: str) -> list[dict[str, Any]]:
    """`value` if it is a list of prompts within bounds."""
    if not isinstance(value, list) or len(value) > MOST:
        rule = f"It must be a list of at most {MOST} prompts."
        raise Refused("wrong-type", field, rule, 'Such as [{"prompt": "a street at night", "seed": 7}].')
    return [_checked(each, parameter, f"{field}[{position}]") for position, each in enumerate(value)]


def _checked(each: Any, parameter: Parameter, field: str) -> dict[str, Any]:
    if not isinstance(each, dict) or "prompt" not in each or set(each) - {"prompt", *COLUMNS}:
        rule = "It must be an object of prompt and, where they are its own, seed and guidance."
        raise Refused("wrong-type", field, rule, SEE)
    text, seed, guidance = each["prompt"], each.get("seed"), each.get("guidance")
    if not isinstance(text, str) or not text.strip() or len(text) > (parameter.maximum or 0) or not _plain(text):
        rule = f"It must be printable text of 1 to {parameter.maximum:g} characters."
        raise Refused("wrong-type", f"{field}.prompt", rule, SEE)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS):
        rule = f"It must be a whole number from 0 to {SEEDS - 1}."
        raise Refused(
            "out-of-bounds", f"{field}.seed", rule, "Leave it out for one that follows from the evaluation's."
        )
    if guidance is not None and not _is_guidance(guidance):
        rule = f"It must be a number from 0 to {GUIDANCE:g}."
        raise Refused("out-of-bounds", f"{field}.guidance", rule, "Leave it out for the evaluation's guidance_scale.")
    own = {"seed": seed, "guidance": None if guidance is None else float(guidance)}
    return {"prompt": text} | {name: said for name, said in own.items() if said is not None}


def _plain(text: str) -> bool:
    """Without control characters and lone surrogates; joiners and marks of other scripts may stand in it."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text if letter not in "\n\t")


def _is_guidance(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= GUIDANCE


def named(text: str) -> list[dict[str, Any]] | None:
    """The prompts of the file that @FILE names; None where the text is none such."""
    return read(Path(text[1:])) if text.startswith("@") else None


def read(path: Path) -> list[dict[str, Any]]:
    """The prompts of a .csv or .jsonl file, as the setting takes them."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, "It is no text file that can be read.") from error
    if path.suffix.lower() == ".csv":
        rows = _table(text, path)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        rows = [_parsed(line, path, number) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    else:
        raise _unreadable(path, "Its name must end in .csv or .jsonl.")
    found = [_prompt(row, path, number) for number, row in enumerate(rows, 1)]
    if not found:
        raise _unreadable(path, "It holds no prompt.")
    return found


def _table(text: str, path: Path) -> list[Any]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise _unreadable(path, "It is no CSV.") from error


def _parsed(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _unreadable(path, f"Line {number} is not JSON.") from error


def _prompt(row: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise _unreadable(path, f"Row {number} has no prompt.")
    seed, guidance = (_number(row, names, path, number) for names in COLUMNS.values())
    if seed is not None and not seed.is_integer():
        raise _unreadable(path, f"The seed in row {number} is no whole number.")
    own = {"seed": None if seed is None else int(seed), "guidance": guidance}
    return {"prompt": " ".join(row["prompt"].split())} | {name: said for name, said in own.items() if said is not None}


def _number(row: dict[str, Any], names: tuple[str, ...], path: Path, number: int) -> float | None:
    """The first of these columns that says anything."""
    said = next((row[name] for name in names if row.get(name) not in (None, "")), None)
    try:
        value = None if said is None else float(said)
    except (TypeError, ValueError) as error:
        raise _unreadable(path, f"Row {number} holds no number where a seed or a guidance scale stands.") from error
    if value is not None and not math.isfinite(value):
        raise _unreadable(path, f"Row {number} holds no number where a seed or a guidance scale stands.")
    return value


def _unreadable(path: Path, rule: str) -> Refused:
    return Refused("bad-prompts", path.name, rule, SEE)
