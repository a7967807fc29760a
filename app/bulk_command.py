"""`lethe request-bulk`: many deletion requests from a file of JSON lines."""

import json
import sys
from typing import Any, TextIO

import click
from rich.markup import escape
from rich.table import Column, Table

from app.client import Lethe
from app.display import console, json_option


@click.command("request-bulk")
@click.argument("file", type=click.File(encoding="utf-8"))
@click.option(
    "--idempotency-key",
    help="Your own name for this file's sending: after a failure, send it again under the same, and nothing is asked twice.",
)
@json_option
def request_bulk(file: TextIO, idempotency_key: str | None, as_json: bool) -> None:
    """Ask for every deletion in FILE: each line a JSON object as POST /v1/requests takes it, at most 100 (- reads standard
    input). A line that is refused keeps no other from being stored. Exit status 1 when any was refused."""
    bodies = [_body(number, line) for number, line in enumerate(file, 1) if line.strip()]
    with Lethe() as lethe:
        results = lethe.request_bulk(bodies, idempotency_key)
    if as_json:
        click.echo(json.dumps(results, indent=2))
    else:
        console.print(_table(bodies, results))
    if any(each["problem"] for each in results):
        sys.exit(1)


def _body(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # the line may name a person: it is not repeated
        raise click.BadParameter(f"line {number} is not JSON") from None


def _table(bodies: list[Any], results: list[dict[str, Any]]) -> Table:
    table = Table("item", "model", Column("status", no_wrap=True), "request, or why not")
    for body, each in zip(bodies, results, strict=True):
        model = str(body.get("model", "")) if isinstance(body, dict) else ""
        told = each["request"]["id"] if each["request"] else each["problem"]["detail"]
        again = " (stored before)" if each["replayed"] else ""
        table.add_row(str(each["index"]), escape(model), str(each["status"]), escape(f"{told}{again}"))
    return table
