"""`lethe keyring`: the keys that seal personal data, on the server's own machine. API keys are `lethe key`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from app import fingerprint_rotation, key_rotation, keyring_status
from app.deployment import Deployment, deploy
from app.display import console, json_option
from app.embedded import wait_for_dependencies
from app.named_erasure import erase_named
from app.settings import settings

PARTED = (
    "If it is the oldest living key, requests for samples or sets from now on are no duplicates of earlier ones: their "
    "duplicates are told by that key."
)
CODES = ("expired", "compromised", "lost", "other")
ERASURES = ("person_asked", "authority_order", "other")
yes_option = click.option("--yes", is_flag=True, help="Do it: it cannot be undone.")


@click.group()
def keyring() -> None:
    """The keys that seal personal data: how they are, and their rotation. On the server's own machine."""


@keyring.command("status")
@json_option
def show_status(as_json: bool) -> None:
    """Which keys there are, what is lost, and what should be done. Exit status 1 when something should."""
    with _here() as lethe:
        found = keyring_status.status(lethe)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show(found)
    if found["warnings"]:
        sys.exit(1)


@keyring.command("rotate")
@click.option(
    "--new",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the next master key; needed with LETHE_MASTER_KEY_FILE.",
)
@json_option
def rotate(new: Path | None, as_json: bool) -> None:
    """Wrap every key under a new master key; servers and workers go on. Run it again after a crash."""
    with _here() as lethe:
        done = key_rotation.rotate_master(lethe, new)
        place = lethe.keyring.master_file
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return
    click.echo(f"{done.data} data keys and {done.named} named keys are wrapped under the new master key")
    if done.unreadable:
        click.secho(
            f"{done.unreadable} key files open under no master key and were left as they are", fg="yellow", err=True
        )
    if not done.done:
        click.echo(
            f"Now put the new file in the place of {place} on every host, then run `lethe keyring rotate` again."
        )


@keyring.command("rotate-fingerprints")
@json_option
def rotate_fingerprints(as_json: bool) -> None:
    """Make a new fingerprint key: registered sets are marked with it, and tombstones translated. Run it again after a crash."""
    with _here() as lethe:
        done = fingerprint_rotation.rotate(lethe)
    if as_json:
        click.echo(json.dumps(asdict(done)))
        return
    click.echo(f"{done.name} is the fingerprint key now: {done.sets} sets, {done.samples} images marked")
    click.echo(f"tombstones: {done.translated} translated to it, {done.kept} still need an older key")


@keyring.command("retire-fingerprints")
@click.argument("name")
@click.option("--reason-code", "code", type=click.Choice(CODES), required=True)
@yes_option
@json_option
def retire_fingerprints(name: str, code: str, yes: bool, as_json: bool) -> None:
    """Destroy an old fingerprint key, with the tombstones that only it can match, and, of the oldest one, what tells duplicates
    of earlier requests for samples or sets. Run it again after a crash."""
    with _here() as lethe:
        found = fingerprint_rotation.retire(lethe, name, code, yes)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        verb = "protect no more" if yes else "would protect no more"
        click.echo(f"{name}: {found.dropped} tombstones of {found.models} models {verb}")
    if not yes:
        click.echo(PARTED, err=True)
        _ask_for_yes()


@keyring.command("rotate-duplicates")
@click.option("--reason-code", "code", type=click.Choice(CODES), required=True)
@yes_option
@json_option
def rotate_duplicates(code: str, yes: bool, as_json: bool) -> None:
    """Make a new key that tells duplicates, and destroy the present one: requests from then on are no duplicates of earlier
    ones."""
    with _here() as lethe:
        found = key_rotation.rotate_duplicates(lethe, code, yes)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        verb = "is" if yes else "would be"
        click.echo(
            f"{found.name} {verb} the key that tells duplicates: of {found.dropped} earlier requests nobody is told"
        )
    if not yes:
        _ask_for_yes()


@keyring.command("erase-request")
@click.argument("request_id")
@click.option("--reason-code", "code", type=click.Choice(ERASURES), required=True)
@yes_option
@json_option
def erase_request(request_id: str, code: str, yes: bool, as_json: bool) -> None:
    """Erase for ever what a purged request named, its external id and the reference of its check. Of a completed one, later
    versions are not asked about it, and later requests for the same are no duplicates of it."""
    if not yes:
        _ask_for_yes()
    with _here() as lethe:
        erased = erase_named(lethe, request_id, code)
    said = "is erased" if erased else "was erased before"
    click.echo(json.dumps({"erased": erased}) if as_json else f"What {request_id} named {said}.")


@keyring.command("renew-api-secret")
@yes_option
@json_option
def renew_api_secret(yes: bool, as_json: bool) -> None:
    """Destroy the key of the API keys' digests: every API key so far ends. For when it was lost, or may be known to others."""
    if not yes:
        _ask_for_yes()
    with _here() as lethe:
        key_rotation.renew_api_secret(lethe)
    click.echo(
        json.dumps({"renewed": True}) if as_json else "No API key so far is known any more: `lethe key` makes one."
    )


@contextmanager
def _here() -> Iterator[Deployment]:
    wait_for_dependencies(settings(), schema=True, seconds=5)
    lethe = deploy(settings())
    try:
        yield lethe
    finally:
        lethe.store.close()


def _ask_for_yes() -> None:
    click.secho("Nothing was done: add --yes.", fg="yellow", err=True)
    sys.exit(1)


def _show(found: dict[str, Any]) -> None:
    counts = found["keys"]
    click.echo(f"master key  {found['master_key']}")
    click.echo(f"data keys   {counts['data']}, named keys {counts['named']}, unreadable files {counts['unreadable']}")
    click.echo(f"missing     {found['missing']} keys of forget sets and of requests that have not ended")
    table = Table("named key", "use", "key", "days", "tombstones")
    for each in found["named"]:
        table.add_row(each["name"], each["use"], each["key"], str(each["days"]), str(each["tombstones"]))
    console.print(table)
    for warned in found["warnings"]:
        click.secho(f"{warned['event']}: {warned['remedy']}", fg="yellow", err=True)
