"""Commands on deletion requests: ask, follow, list, look at what is selected, cancel, retry."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from app.client import Lethe
from app.deadlines import Regime
from app.display import Watcher, console, json_option, show_report, show_rungs, value_of
from app.estimate_display import show_estimate


@click.command()
@click.argument("model")
@click.option(
    "--concept", help="What this is about; sealed. Alone, it selects the samples whose label or caption names it."
)
@click.option("--class-label", help="A label of the model.")
@click.option("--dataset", help="Id of an uploaded forget set.")
@click.option("--sample", "samples", multiple=True, help="Id of a sample of the train set; repeat.")
@click.option("--method", default="auto", show_default=True, help="auto climbs the model's ladder, cheapest first.")
@click.option(
    "--set", "settings_", multiple=True, metavar="NAME=VALUE", help="A hyper-parameter of a named method; repeat."
)
@click.option("--generate-forget", type=int, help="Images to make of the concept, when no registered set has any.")
@click.option("--generate-retain", type=int, help="Images to make of what to keep, when the model has no retain set.")
@click.option("--seed", default=0)
@click.option("--reference", help="Registered model, retrained without the forget set.")
@click.option("--external-id", help="Your own id for it, stored in plain.")
@click.option("--due", help="Until when it must be done, such as 2027-01-31T00:00:00Z.")
@click.option(
    "--regime",
    type=click.Choice([each.value for each in Regime]),
    default=None,
    help="Which law's periods hold (default other).",
)
@click.option("--wait/--no-wait", default=False, help="Watch it to its end.")
@click.option("--dry-run", is_flag=True, help="Say what it would select, change and cost, and ask for nothing.")
@json_option
def request(
    model: str,
    concept: str,
    class_label: str,
    dataset: str,
    samples: tuple[str, ...],
    method: str,
    settings_: tuple[str, ...],
    generate_forget: int | None,
    generate_retain: int | None,
    seed: int,
    reference: str,
    external_id: str,
    due: str,
    regime: str | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Ask that MODEL forget a class, samples, an uploaded forget set or, with --concept alone, all that it names."""
    forget = _given(class_label=class_label, dataset=dataset, samples=list(samples) or None)
    generate = _given(forget=generate_forget, retain=generate_retain)
    recipe = {name: value_of(text) for name, _, text in (pair.partition("=") for pair in settings_)}
    with Lethe() as lethe:
        posted = (lethe.estimate if dry_run else lethe.request)(
            model, forget or None, generate=generate or None,
            concept=concept, method=method, recipe=recipe, seed=seed, reference=reference,
            external_id=external_id, due_at=due, regime=regime,
        )  # fmt: skip
        if dry_run:
            show_estimate(posted, as_json)
        elif wait:
            _watch(lethe, posted["id"], as_json)
        else:
            click.echo(json.dumps(posted, indent=2) if as_json else f"{posted['id']} {posted['status']}")


@click.command()
@click.argument("request_id")
@json_option
def watch(request_id: str, as_json: bool) -> None:
    """Follow a request to its end. Exit status 0 only when it completed."""
    with Lethe() as lethe:
        _watch(lethe, request_id, as_json)


@click.command("requests")
@click.option("--status")
@click.option("--model")
@click.option(
    "--at-risk", type=int, metavar="DAYS", help="Only those due within DAYS, or overdue; the nearest deadline first."
)
@json_option
def list_requests(status: str | None, model: str | None, at_risk: int | None, as_json: bool) -> None:
    """Deletion requests, newest first."""
    with Lethe() as lethe:
        found = list(lethe.pages("/v1/requests", status=status, model=model, at_risk=at_risk))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table(
        Column("request", no_wrap=True),
        Column("status", no_wrap=True),
        "model",
        "method",
        "forgets",
        "version",
        "due",
        "days left",
    )
    for each in found:
        made = ", generated" if each["forget_source"] == "generated" else ""
        forgets = f"{each['forget_count']} by {each['forget_kind']}{made}"
        version = "" if each["checkpoint"] is None else str(each["checkpoint"])
        table.add_row(each["id"], each["status"], each["model"], _tried(each), forgets, version, *_due(each))
    console.print(table)


def _due(request: dict[str, Any]) -> tuple[str, str]:
    left = "" if request["days_left"] is None else str(request["days_left"])
    return request["due_at"][:10], f"{left} overdue".strip() if request["overdue"] else left


def _tried(request: dict[str, Any]) -> str:
    """The method; with auto also the rung that was reached."""
    if request["method"] != "auto" or not request["jobs"]:
        return str(request["method"])
    reached = request["jobs"][-1]
    return f"auto: {reached['method']}, rung {reached['rung'] + 1} of {len(request['ladder'])}"


@click.command()
@click.argument("request_id")
@click.argument("target", type=click.Path(path_type=Path))
@json_option
def preview(request_id: str, target: Path, as_json: bool) -> None:
    """Save a contact sheet of a few samples that a request selects as TARGET (PNG)."""
    with Lethe() as lethe:
        target.write_bytes(lethe.preview(request_id))
    click.echo(json.dumps({"path": str(target)}) if as_json else f"A preview of {request_id} is in {target}")


@click.command()
@click.argument("request_id")
@json_option
def cancel(request_id: str, as_json: bool) -> None:
    """Cancel a request that has not ended."""
    with Lethe() as lethe:
        asked = lethe.call("POST", f"/v1/requests/{request_id}/cancel")
    click.echo(json.dumps(asked, indent=2) if as_json else f"{asked['id']} {asked['status']}")


@click.command()
@click.argument("request_id")
@json_option
def retry(request_id: str, as_json: bool) -> None:
    """Queue a request that failed, or missed a threshold, again."""
    with Lethe() as lethe:
        asked = lethe.call("POST", f"/v1/requests/{request_id}/retry")
    click.echo(json.dumps(asked, indent=2) if as_json else f"{asked['id']} {asked['status']}")


def _watch(lethe: Lethe, request_id: str, as_json: bool) -> None:
    with Watcher(Console(stderr=True)) as watcher:
        done = lethe.wait(request_id, watcher.event)
    click.echo(
        json.dumps(done, indent=2) if as_json else f"{done['id']} {done['status']} {done['reason'] or ''}".strip()
    )
    if len(done["jobs"]) > 1 and not as_json:
        show_rungs(console, done)
    if done["status"] == "evaluation_failed" and not as_json:
        show_report(console, lethe.report(done["model"], done["checkpoint"]))
        why = {
            "broken_promise": "what an earlier request forgot has come back",
            "judge_unfit": "the judge or the detector is unfit, so that what it measured counts as not measured",
        }
        missed = why.get(done["reason"], "a threshold was missed or could not be measured")
        click.echo(f"version {done['checkpoint']} is in quarantine: {missed}")
    if done["status"] != "completed":
        sys.exit(1)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
