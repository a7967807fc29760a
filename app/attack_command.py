"""`lethe attack`: attacks on the version that a request made, after the fact."""

import json
import sys
from typing import Any

import click
from rich.console import Console

from app.client import Lethe
from app.display import Watcher, attack_table, console, json_option, value_of


@click.command()
@click.argument("request_id")
@click.option("--attack", "names", multiple=True, metavar="NAME", help="An attack of `lethe catalog`; repeat.")
@click.option(
    "--set", "settings", multiple=True, metavar="ATTACK.NAME=VALUE", help="A parameter, such as relearning.steps=50; repeat."
)  # fmt: skip
@click.option("--wait/--no-wait", default=False, help="Watch it to its end, and show what was found.")
@json_option
def attack(request_id: str, names: tuple[str, ...], settings: tuple[str, ...], wait: bool, as_json: bool) -> None:
    """Attack the newest version that REQUEST_ID made, without unlearning again. Without --attack: show what was found so far. The
    version, its report and its verdict stay as they are."""
    with Lethe() as lethe:
        if not names:
            if settings or wait:
                raise click.UsageError("name an attack with --attack")
            _show(list(lethe.attacks(request_id)), as_json)
            return
        job = lethe.attack(request_id, _asked(names, settings))
        if not wait:
            click.echo(json.dumps(job, indent=2) if as_json else f"{job['id']} {job['status']}")
            return
        with Watcher(Console(stderr=True)) as watcher:
            done = lethe.wait_for_job(job["id"], watcher.event)
        _show([each for each in lethe.attacks(request_id) if each["job"] == job["id"]], as_json)
    if done["status"] != "succeeded":
        sys.exit(1)


def _asked(names: tuple[str, ...], settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for pair in settings:
        place, _, text = pair.partition("=")
        name, _, parameter = place.partition(".")
        if name not in found or not parameter:
            raise click.BadParameter("--set must name one of the attacks, such as relearning.steps=50")
        found[name][parameter] = value_of(text)
    return found


def _show(made: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(made, indent=2))
        return
    for each in made:
        why = f": {each['error']}" if each["error"] else ""
        console.print(
            f"{each['job']} on version {each['version']}, asked {each['asked_at'][:19]}: {each['status']}{why}"
        )
        if each["attacks"]:
            console.print(attack_table(each["attacks"]))
