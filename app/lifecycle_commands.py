"""`lethe verify`, `lethe approve`, `lethe deny` and `lethe extend`: what persons decide of a request."""

import json
from typing import Any

import click

from app.client import Lethe
from app.display import json_option
from app.extension import Code
from app.review import Denial, Means, Outcome


@click.command()
@click.argument("request_id")
@click.option(
    "--outcome", type=click.Choice([each.value for each in Outcome]), default=Outcome.VERIFIED.value, show_default=True
)
@click.option(
    "--method", type=click.Choice([each.value for each in Means]), required=True, help="How it was found out who asked."
)
@click.option("--reference", help="Id of the check where it was made; stored in plain: name no person.")
@json_option
def verify(request_id: str, outcome: str, method: str, reference: str | None, as_json: bool) -> None:
    """Say whether who made REQUEST_ID is who they say; rejected denies it. It needs a key with requests:verify, and not the
    one that made the request."""
    with Lethe() as lethe:
        said = lethe.verify(request_id, outcome, method, reference)
    click.echo(json.dumps(said, indent=2) if as_json else f"{said['request']} {said['outcome']}, now {said['status']}")


@click.command()
@click.argument("request_id")
@json_option
def approve(request_id: str, as_json: bool) -> None:
    """Let REQUEST_ID be queued. It needs a key with requests:approve, and not the one that made the request."""
    with Lethe() as lethe:
        _show(lethe.approve(request_id), as_json)


@click.command()
@click.argument("request_id")
@click.option("--code", type=click.Choice([each.value for each in Denial]), required=True, help="Why.")
@json_option
def deny(request_id: str, code: str, as_json: bool) -> None:
    """End REQUEST_ID, which waits for verification or approval, and purge its forget set. It needs a key with
    requests:approve, and not the one that made the request."""
    with Lethe() as lethe:
        _show(lethe.deny(request_id, code), as_json)


@click.command()
@click.argument("request_id")
@click.option("--code", type=click.Choice([each.value for each in Code]), required=True, help="Why it takes longer.")
@click.option("--notified", required=True, help="When the person was told, such as 2027-01-20T09:00:00Z.")
@click.option("--until", help="Due then (default: what the regime allows; needed for other).")
@json_option
def extend(request_id: str, code: str, notified: str, until: str | None, as_json: bool) -> None:
    """Take more time for REQUEST_ID, once. It needs a key with requests:approve."""
    with Lethe() as lethe:
        _show(lethe.extend(request_id, code, notified, until), as_json)


def _show(request: dict[str, Any], as_json: bool) -> None:
    line = f"{request['id']} {request['status']}, due {request['due_at'][:10]}"
    click.echo(json.dumps(request, indent=2) if as_json else line)
