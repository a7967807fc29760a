"""What `lethe request --dry-run` shows a person: what would be selected, and per rung what it may change and cost."""

import json
from typing import Any

import click
from rich.table import Table

from app.display import console


def show_estimate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    console.print(
        f"{found['model']}:{found['version']} would forget {found['forget_count']} by {found['forget_kind']} "
        f"({found['forget_source']}) and keep {found['retain_count']}. Nothing was asked."
    )
    table = Table("rung", "method", "seconds", "memory, at least", "may change", "changed earlier")
    for number, rung in enumerate(found["ladder"], 1):
        memory, touched = rung["memory_bytes"], rung["tensors_touched"]
        table.add_row(
            str(number),
            rung["method"],
            _seconds(rung["seconds"]),
            f"{memory['at_least'] / 1e6:,.1f} MB",
            f"{_of(touched)} ({touched['about']})",
            "; ".join(f"version {each['version']}: {_of(each)}" for each in rung["earlier_versions"][:3]),
        )
    console.print(table)


def _seconds(measured: dict[str, Any]) -> str:
    if measured["median"] is None:
        return "not known"
    return f"{measured['median']:.0f} ({measured['min']:.0f} to {measured['max']:.0f}) in {measured['about']}"


def _of(counted: dict[str, Any]) -> str:
    elements = f"{counted['elements']:,} of {counted['of_elements']:,} elements"
    return f"{counted['tensors']} of {counted['of_tensors']} tensors, {elements}"
