"""`lethe alias` and `lethe rollback`: which version of a model serves."""

import json

import click
from rich.markup import escape
from rich.table import Table

from app.client import Lethe
from app.display import console, json_option

reason_option = click.option(
    "--reason", required=True, help="Why; kept in the audit for ever, in plain: name no person."
)


@click.group()
def alias() -> None:
    """Names such as production for one version of a model; MODEL:NAME stands wherever a version is read."""


@alias.command("ls")
@click.argument("model")
@json_option
def list_aliases(model: str, as_json: bool) -> None:
    """All aliases of MODEL, and where they point."""
    with Lethe() as lethe:
        found = lethe.aliases(model)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("alias", "version", "status", "since")
    for each in found:
        table.add_row(each["name"], str(each["version"]), each["status"], each["moved_at"])
    console.print(table)


@alias.command("set")
@click.argument("model")
@click.argument("name")
@click.argument("version")
@reason_option
@json_option
def set_alias(model: str, name: str, version: str, reason: str, as_json: bool) -> None:
    """Point NAME at a released VERSION of MODEL: a number, head or another alias."""
    with Lethe() as lethe:
        number = lethe.call("GET", f"/v1/models/{model}/checkpoints/{version}")["number"]
        made = lethe.set_alias(model, name, number, reason)
    click.echo(json.dumps(made, indent=2) if as_json else f"{model}:{name} is version {made['version']}")


@alias.command("rm")
@click.argument("model")
@click.argument("name")
@reason_option
@json_option
def remove_alias(model: str, name: str, reason: str, as_json: bool) -> None:
    """Take the alias NAME of MODEL away; its history stays."""
    with Lethe() as lethe:
        lethe.remove_alias(model, name, reason)
    click.echo(json.dumps({"removed": name}) if as_json else f"{model}:{name} is removed")


@alias.command("history")
@click.argument("model")
@click.argument("name")
@json_option
def list_moves(model: str, name: str, as_json: bool) -> None:
    """Every move of NAME: who, when, from where to where, and why."""
    with Lethe() as lethe:
        found = list(lethe.alias_history(model, name))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("at", "actor", "move", "from", "to", "reason", "reopened")
    for each in found:
        ends = ["" if version is None else str(version) for version in (each["from_version"], each["to_version"])]
        reopened = "\n".join(each["reopened"])
        table.add_row(each["at"], each["actor"], each["kind"], *ends, escape(each["reason"]), reopened)
    console.print(table)


@click.command()
@click.argument("model")
@click.argument("name", metavar="ALIAS")
@click.option("--to", "to_version", type=int, help="Version to go to (default: the one before the present).")
@reason_option
@json_option
def rollback(model: str, name: str, to_version: int | None, reason: str, as_json: bool) -> None:
    """Move ALIAS of MODEL back. Behind a completed request that un-forgets a person: it needs a key with
    requests:reopen, and reopens the request. The head stays."""
    with Lethe() as lethe:
        moved = lethe.roll_back(model, name, reason, to_version)
    if as_json:
        click.echo(json.dumps(moved, indent=2))
        return
    click.echo(f"{model}:{name} is version {moved['version']} ({moved['status']})")
    for request_id in moved["reopened"]:
        click.echo(f"{request_id} reopened: this version remembers what it forgot")
