"""`lethe override`: a person releases a version against its verdict."""

import json

import click

from app.client import Lethe
from app.display import json_option
from app.override import Code


@click.command()
@click.argument("version", metavar="MODEL:VERSION")
@click.option("--code", type=click.Choice([each.value for each in Code]), required=True, help="The kind of reason.")
@click.option("--reason", required=True, help="Why; kept in the audit for ever, in plain: name no person.")
@json_option
def override(version: str, code: str, reason: str, as_json: bool) -> None:
    """Release a quarantined VERSION against its verdict, with all that passing would have done. Its report keeps the
    verdict and shows the override. It needs a key with checkpoints:override."""
    model, _, number = version.partition(":")
    if not number.isdecimal():
        raise click.BadParameter("name one version by its number, such as faces:3")
    with Lethe() as lethe:
        made = lethe.override(model, int(number), code, reason)
    line = f"{model}:{made['number']} is released against its verdict, and {made['request']} completed"
    click.echo(json.dumps(made, indent=2) if as_json else line)
