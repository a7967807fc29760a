"""`lethe protocol`: the protocols of the field, shown and run on a registered model."""

import json
import sys
from pathlib import Path
from typing import Any

import click
import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app import prompts
from app.client import Lethe
from app.display import Watcher, console, json_option
from app.errors import Refused
from app.figures import RULES, interval, number
from app.protocols import run as runner
from app.protocols.schema import path_of, read, shipped


@click.group()
def protocol() -> None:
    """Published protocols as files: whom to forget, what to measure, run on what is registered."""


@protocol.command("list")
@json_option
def list_protocols(as_json: bool) -> None:
    """Protocols that come with Lethe; needs no server."""
    found = {name: read(path_of(name)) for name in shipped()}
    if as_json:
        rows = [{"name": name, "title": each.title, "families": each.families} for name, each in found.items()]
        click.echo(json.dumps(rows, indent=2))
        return
    table = Table("protocol", "families", "does", box=SIMPLE)
    for name, each in found.items():
        table.add_row(name, ", ".join(each.families), each.title)
    console.print(table)


@protocol.command()
@click.argument("named", metavar="NAME_OR_PATH")
@json_option
def show(named: str, as_json: bool) -> None:
    """The file itself, once it was checked; needs no server."""
    path = path_of(named)
    found = read(path)
    click.echo(json.dumps(found.model_dump(), indent=2) if as_json else path.read_text().rstrip())


@protocol.command("run")
@click.argument("named", metavar="NAME_OR_PATH")
@click.option("--model", required=True, help="Registered model; it is copied, and stays as it is.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Replace a field, such as forget.draw=3; prompts may come from a file: evaluation.prompts=@FILE.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Run the first so many requests only.")
@click.option(
    "--images", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder that a protocol splits."
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Folder for the result (here)."
)
@json_option
def run_protocol(
    named: str, model: str, changes: tuple[str, ...], limit: int | None, images: Path | None, out: Path, as_json: bool
) -> None:
    """Run every request of a protocol on copies of MODEL. The result is one JSON file, written after each request; it
    names labels, so keep it as you keep the requests. Exit status 0 when every request gave a report."""
    path = path_of(named)
    found = read(path, dict(map(_change, changes)))
    out.mkdir(parents=True, exist_ok=True)

    def keep(result: dict[str, Any]) -> None:
        partial = _file(out, path, result).with_suffix(".part")
        partial.write_text(json.dumps(result, indent=2) + "\n")
        partial.replace(_file(out, path, result))

    with Lethe() as client, Watcher(Console(stderr=True)) as watcher:
        result = runner.run(client, found, model, images, limit, watcher.event, keep)
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        show_result(console, result)
        console.print(f"Everything is in {_file(out, path, result)}", soft_wrap=True)
    if any(request["report"] is None for request in result["requests"]):
        sys.exit(1)


def show_result(console: Console, result: dict[str, Any]) -> None:
    """A row for each figure: mean and spread over requests, and whether the protocol's thresholds are met."""
    titles = ("settings", "figure", "before", "mean", "spread", "lowest to highest", "95 % interval", "requests", "n",
              "threshold", "met")  # fmt: skip
    table = Table(*titles, box=SIMPLE, padding=(0, 1, 0, 0))
    for row in result["summary"]:
        span = "" if row["spread"] is None else f"{number(row['lowest'])} to {number(row['highest'])}"
        rules = row["thresholds"]
        table.add_row(
            escape(", ".join(f"{name} {value}" for name, value in row["settings"].items())),
            row["figure"] + (f" ({row['unit']})" if row["unit"] else ""),
            number(row["before"]),
            number(row["mean"]),
            number(row["spread"]),
            span,
            interval(row["interval"]),
            str(row["requests"]) if row["measured"] == row["requests"] else f"{row['measured']} of {row['requests']}",
            ", ".join(map(str, sorted(set(row["n"])))),
            "\n".join(RULES[rule["rule"]].format(rule["value"]) for rule in rules),
            "\n".join({True: "yes", False: "NO", None: "not measured"}[rule["met"]] for rule in rules),
        )
    console.print(table)
    for request in result["requests"]:
        if request["report"] is None:
            console.print(f"{request['request']} gave no report: {request['status']}, {request['reason']}")
    for note in result["notes"]:
        console.print(f"- {escape(note)}")
    if result["left_out"]:
        console.print(f"- {result['left_out']} more requests of the protocol were left out (--limit)")


def _change(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise Refused("bad-protocol", "--set", "It must be FIELD=VALUE.", "Such as --set forget.draw=3.")
    try:
        return name, prompts.named(value) or yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise Refused("bad-protocol", f"--set {name}", "The value is not YAML.", "Quote it.") from error


def _file(out: Path, path: Path, result: dict[str, Any]) -> Path:
    return out / f"{path.stem}-{result['model']['name']}-{result['run']}.json"
