"""`lethe hold`, `lethe lift` and `lethe purge-proof`: what is kept of a request, and the proof that nothing is."""

import json

import click

from app.client import Lethe
from app.display import json_option
from app.records.legal_hold import Code


@click.command()
@click.argument("request_id")
@click.option("--code", type=click.Choice([each.value for each in Code]), required=True, help="Why it must be kept.")
@json_option
def hold(request_id: str, code: str, as_json: bool) -> None:
    """Keep what a request brought and named from being purged, until `lethe lift`. It needs a key with requests:hold."""
    with Lethe() as lethe:
        held = lethe.hold(request_id, code)
    click.echo(json.dumps(held, indent=2) if as_json else f"{request_id} is under a legal hold: {held['code']}")


@click.command()
@click.argument("request_id")
@json_option
def lift(request_id: str, as_json: bool) -> None:
    """Lift a legal hold. What is overdue is purged within seconds."""
    with Lethe() as lethe:
        lethe.lift(request_id)
    click.echo(json.dumps({"request": request_id, "hold": None}) if as_json else f"{request_id} is not held any more")


@click.command("purge-proof")
@click.argument("request_id")
@json_option
def purge_proof(request_id: str, as_json: bool) -> None:
    """What proves that a request's forget set was purged, and whether its keys and bytes are absent now. Exit status 1 when
    they are not."""
    with Lethe() as lethe:
        found = lethe.purge_proof(request_id)
    there = found["now"]["keys_present"] + found["now"]["objects_present"]
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"purged at {found['purged_at']}: {found['method'] or 'before purges kept a proof'}")
        for each in found["objects"]:
            click.echo(f"  sealed object of {each['bytes']} bytes, SHA-256 {each['sha256']}")
        if found["samples"]:
            samples = found["samples"]
            click.echo(f"  {samples['count']} samples, root {samples['root']} under the key {samples['key']}")
        click.echo("absent now" if not there else f"STILL THERE: {there} key files or sealed objects")
    if there:
        raise SystemExit(1)
