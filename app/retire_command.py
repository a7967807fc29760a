"""`lethe retire`: erase what superseded and, if asked, quarantined versions hold."""

import json
from typing import Any

import click
from rich.box import SIMPLE
from rich.table import Table

from app.client import Lethe
from app.display import console, json_option
from app.retirement import Code

GONE = "This erases weights for ever; versions that stay keep every byte. Go on?"


@click.command()
@click.argument("version", metavar="MODEL[:VERSION]")
@click.option("--code", type=click.Choice([each.value for each in Code]), default="erasure", help="The kind of reason.")
@click.option("--quarantined", is_flag=True, help="Quarantined versions too, even if their request could be retried.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def retire(version: str, code: str, quarantined: bool, yes: bool, as_json: bool) -> None:
    """Erase what one VERSION, or every superseded version of MODEL, alone holds. Reports stay. It needs a key with
    checkpoints:retire."""
    model, _, number = version.partition(":")
    if number and not number.isdecimal():
        raise click.BadParameter("name one version by its number, such as faces:1, or the model alone")
    if not yes:
        click.confirm(GONE, abort=True, err=True)
    with Lethe(timeout=3600) as lethe:
        made = lethe.retire(model, int(number) if number else None, code, quarantined)
    if as_json:
        click.echo(json.dumps(made, indent=2))
    else:
        _show(made if not number else _as_whole(made))


def _as_whole(version: dict[str, Any]) -> dict[str, Any]:
    """A version as the answer for a model shows it."""
    return {"versions": [version | version["retired"]], "skipped": [], **version["retired"]}


def _show(made: dict[str, Any]) -> None:
    table = Table("version", "was", "tensors", "values erased of", "", box=SIMPLE)
    for each in made["versions"]:
        table.add_row(str(each["number"]), each["was"], str(each["tensors"]), str(each["tensors_erased"]), "retired")
    for each in made["skipped"]:
        table.add_row(str(each["number"]), "", "", "", f"stays: {each['code']}")
    if made["versions"] or made["skipped"]:
        console.print(table)
    click.echo(
        f"{made['bytes_erased']} bytes of packs {'deleted' if made['erased'] else 'about to be deleted'}, "
        f"{made['bytes_kept']} bytes of them kept in new packs for versions that stay"
        if made["versions"]
        else "nothing to retire"
    )
