"""The `lethe` command: run a deployment, or talk to one."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import click
import httpx
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table

from app import logs, migration, prompts
from app.alias_commands import alias, rollback
from app.attack_command import attack
from app.audit_commands import audit
from app.bulk_command import request_bulk
from app.catalog_view import catalogue
from app.client import DEFAULT_URL, Damaged, Lethe, Problem
from app.deadlines import Regime
from app.deployment import deploy
from app.display import Watcher, console, json_option, show_comparison, show_report, show_rungs, value_of
from app.embedded import run_embedded, wait_for_dependencies, worker_command
from app.errors import Refused
from app.estimate_display import show_estimate
from app.keyring_commands import keyring
from app.lifecycle_commands import approve, deny, extend, verify
from app.override_command import override
from app.privacy.sealing import Keyring
from app.protocol_commands import protocol
from app.records import api_key as api_keys
from app.records.session import Store
from app.retention_commands import hold, lift, purge_proof
from app.retire_command import retire
from app.settings import Settings, settings


class Commands(click.Group):
    """Turns refusals into one line on stderr (with --json: the problem document) and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except Problem as problem:
            _complain(problem.document, as_json)
        except Refused as refused:
            _complain(refused.marshal(), as_json)
        except httpx.TransportError as error:
            address = os.environ.get("LETHE_URL", DEFAULT_URL)
            detail = f"no server answers at {address} ({error}): start `lethe up`, or set LETHE_URL"
            _complain({"title": "No server", "detail": detail}, as_json)
        except ValidationError as error:
            wrong = error.errors()[0]
            _complain({"title": "Refused", "detail": f"LETHE_{str(wrong['loc'][0]).upper()}: {wrong['msg']}"}, as_json)
        except (Damaged, OSError, httpx.HTTPError) as error:
            _complain({"title": type(error).__name__, "detail": str(error) or "no answer"}, as_json)
        sys.exit(1)


def _complain(document: dict[str, Any], as_json: bool) -> None:
    short = f"{document.get('title', 'Refused')}: {document.get('detail', '')}"
    click.echo(json.dumps(document) if as_json else click.style(short, fg="red"), err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make models forget, on request, with evidence. LETHE_URL and LETHE_KEY name the server and your key."""
    logs.configure()


for decision in (approve, deny, extend, verify):
    main.add_command(decision)
main.add_command(alias)
main.add_command(attack)
main.add_command(audit)
main.add_command(keyring)
main.add_command(rollback)
main.add_command(override)
for command in (hold, lift, purge_proof, retire):
    main.add_command(command)
main.add_command(protocol)
main.add_command(request_bulk)


@main.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder for everything Lethe keeps (default .lethe).")
@click.option("--port", type=int, help="Port to listen on (default 8765).")
def up(data: Path | None, port: int | None) -> None:
    """Server, worker and runner on this machine, with nothing else installed. Ctrl-C drains and ends them."""
    if data is not None:
        os.environ["LETHE_DATA"] = str(data)
    if port is not None:
        os.environ["LETHE_PORT"] = str(port)
    sys.exit(run_embedded(Settings()))


@main.command()
def serve() -> None:
    """The server alone. It waits for its database."""
    wait_for_dependencies(settings(), schema=True)
    uvicorn.run(
        "app.main:create_app",
        factory=True,
        host=settings().host,
        port=settings().port,
        log_level="info",
        access_log=False,
        timeout_graceful_shutdown=10,  # streams and waiting calls come again elsewhere
    )


@main.command()
@click.option("--name", default="", help="Celery node name, when one host runs several workers.")
def work(name: str) -> None:
    """One GPU worker with its warm runner. It waits for its database and broker."""
    wait_for_dependencies(settings(), schema=True)
    Keyring(settings().key_root, settings().master_key_file)  # says here, once, why a worker could not use it
    os.execv(sys.executable, worker_command(*(["-n", name] if name else [])))


@main.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database to the newest schema."""
    wait_for_dependencies(settings(), schema=False)
    store = Store(settings().database)
    schema = migration.upgrade(store)
    store.close()
    click.echo(json.dumps({"schema": schema}) if as_json else f"schema {schema}")


@main.command("key")
@click.option("--name", default="admin", help="A name to know it by.")
@click.option("--role", type=click.Choice(list(api_keys.ROLES)), default="admin", show_default=True)
@json_option
def make_key(name: str, role: str, as_json: bool) -> None:
    """Make an API key on the server's own machine and print it once."""
    from_disk = deploy(settings())
    with from_disk.store.write() as session:
        made, text = api_keys.issue(session, from_disk.pepper, name=name, role=role, actor="operator")
    from_disk.store.close()
    click.echo(json.dumps({"id": made.id, "key": text}) if as_json else text)


@main.command()
@json_option
def catalog(as_json: bool) -> None:
    """Installed methods, families, metrics and attacks; needs no server."""
    found = catalogue()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("method", "families", "source")
    for method in found["methods"]:
        table.add_row(method["name"], ", ".join(method["families"]), method["source"])
    console.print(table)
    console.print("metrics:", ", ".join(metric["name"] for metric in found["metrics"]))
    console.print("attacks:", ", ".join(attack["name"] for attack in found["attacks"]))


@main.group()
def models() -> None:
    """Registered models."""


@models.command("register")
@click.argument("directory", type=click.Path(exists=True, path_type=Path))
@click.option("--name", required=True)
@click.option("--family", required=True, help="See `lethe catalog`.")
@click.option("--train", help="Data set it was trained on.")
@click.option("--retain", help="Data set to keep.")
@click.option("--test", help="Data set it never saw.")
@click.option("--judge", help="Registered classifier that judges generated images.")
@click.option(
    "--evaluator",
    "evaluators",
    multiple=True,
    metavar="PART=MODEL",
    help="A further registered model that measures, such as clip=scorer. Repeatable.",
)
@click.option(
    "--evaluation",
    multiple=True,
    metavar="NAME=VALUE",
    help='A setting of how outputs are produced, such as contexts=["ink","oil"], or prompts=@FILE. Repeatable.',
)
@json_option
def register(
    directory: Path,
    name: str,
    family: str,
    train: str,
    retain: str,
    test: str,
    judge: str,
    evaluators: tuple[str, ...],
    evaluation: tuple[str, ...],
    as_json: bool,
) -> None:
    """Upload a Hugging Face directory (config and safetensors) and register it."""
    parts = {part: model for part, _, model in (pair.partition("=") for pair in evaluators)}
    settings_ = {
        key: prompts.named(text) or value_of(text) for key, _, text in (pair.partition("=") for pair in evaluation)
    }
    with Lethe() as lethe:
        model = lethe.register_model(
            directory, name, family, train=train, retain=retain, test=test, judge=judge,
            evaluators=parts or None, evaluation=settings_ or None,
        )  # fmt: skip
    click.echo(json.dumps(model, indent=2) if as_json else f"{model['name']} is registered as version {model['head']}")
    for warned in model["warnings"] if not as_json else ():
        click.secho(f"{warned['field']}: {warned['rule']} {warned['remedy']}", fg="yellow", err=True)


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """All models."""
    with Lethe() as lethe:
        found = list(lethe.pages("/v1/models"))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    table = Table("model", "family", "head", "labels")
    for model in found:
        table.add_row(model["name"], model["family"], str(model["head"]), str(len(model["labels"])))
    console.print(table)


@main.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--role", type=click.Choice(["forget", "retain", "train", "test"]), required=True)
@click.option("--name", help="Needed but for role forget, which has none.")
@json_option
def upload(source: Path, role: str, name: str | None, as_json: bool) -> None:
    """Upload an imagefolder (a folder or an archive) as a data set."""
    with Lethe() as lethe:
        dataset = lethe.upload_dataset(source, role, name)
    click.echo(json.dumps(dataset, indent=2) if as_json else f"{dataset['id']}: {dataset['count']} images")


@main.command()
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


@main.command()
@click.argument("request_id")
@json_option
def watch(request_id: str, as_json: bool) -> None:
    """Follow a request to its end. Exit status 0 only when it completed."""
    with Lethe() as lethe:
        _watch(lethe, request_id, as_json)


@main.command("requests")
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


@main.command()
@click.argument("version", metavar="REQUEST_ID|MODEL[:VERSION]")
@click.option(
    "--html", type=click.Path(path_type=Path), help="Save it as one page that needs nothing else, pictures within."
)
@json_option
def report(version: str, html: Path | None, as_json: bool) -> None:
    """What was measured: before, after, interval, target, threshold, n, verdict. Of a request, or of a version by its
    number, head (the default) or an alias."""
    with Lethe() as lethe:
        request = _request(lethe, version)
        model, number = _version(request, version)
        if html is not None:
            html.write_bytes(lethe.report_page(model, number))
            click.echo(json.dumps({"path": str(html)}) if as_json else f"The report is in {html}")
            return
        document = lethe.report(model, number)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    if request is not None and len(request["jobs"]) > 1:
        show_rungs(console, request)
    show_report(console, document)


@main.command()
@click.argument("one", metavar="MODEL[:VERSION]")
@click.argument("other", metavar="MODEL[:VERSION]")
@json_option
def compare(one: str, other: str, as_json: bool) -> None:
    """Two versions' reports side by side: values, intervals, the difference, and which rule each met."""
    with Lethe() as lethe:
        found = lethe.compare(*(_version(_request(lethe, each), each) for each in (one, other)))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        show_comparison(console, found)


def _request(lethe: Lethe, named: str) -> dict[str, Any] | None:
    """The request, where one is named."""
    if not re.fullmatch(r"req_[0-9a-f]{28}", named):
        return None
    found: dict[str, Any] = lethe.call("GET", f"/v1/requests/{named}")
    return found


def _version(request: dict[str, Any] | None, named: str) -> tuple[str, int | str]:
    """Model and version of a request's newest checkpoint, or of MODEL[:VERSION]."""
    if request is None:
        model, _, number = named.partition(":")
        return model, number or "head"
    if request["checkpoint"] is None:
        raise click.ClickException(f"The request is {request['status']} and has no version yet.")
    return request["model"], request["checkpoint"]


@main.command()
@click.argument("request_id")
@click.argument("target", type=click.Path(path_type=Path))
@json_option
def preview(request_id: str, target: Path, as_json: bool) -> None:
    """Save a contact sheet of a few samples that a request selects as TARGET (PNG)."""
    with Lethe() as lethe:
        target.write_bytes(lethe.preview(request_id))
    click.echo(json.dumps({"path": str(target)}) if as_json else f"A preview of {request_id} is in {target}")


@main.command()
@click.argument("request_id")
@json_option
def cancel(request_id: str, as_json: bool) -> None:
    """Cancel a request that has not ended."""
    with Lethe() as lethe:
        asked = lethe.call("POST", f"/v1/requests/{request_id}/cancel")
    click.echo(json.dumps(asked, indent=2) if as_json else f"{asked['id']} {asked['status']}")


@main.command()
@click.argument("request_id")
@json_option
def retry(request_id: str, as_json: bool) -> None:
    """Queue a request that failed, or missed a threshold, again."""
    with Lethe() as lethe:
        asked = lethe.call("POST", f"/v1/requests/{request_id}/retry")
    click.echo(json.dumps(asked, indent=2) if as_json else f"{asked['id']} {asked['status']}")


@main.command()
@click.argument("version", metavar="MODEL[:VERSION]")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--reason",
    help="Needed for superseded and quarantined versions; kept in the audit for ever, in plain: name no person.",
)
@json_option
def pull(version: str, target: Path, reason: str | None, as_json: bool) -> None:
    """Download a version (a number, an alias; default: head) into TARGET, checked by digest."""
    model, _, number = version.partition(":")
    with Lethe() as lethe, Watcher(Console(stderr=True)) as watcher:
        found = lethe.call("GET", f"/v1/models/{model}/checkpoints/{number or 'head'}")
        lethe.pull(model, found["number"], target, reason, on_bytes=watcher.bytes)
    origin = f"made for {found['request']}" if found["request"] else "the base as registered"
    line = f"{model} version {found['number']} ({found['status']}, {origin}) is in {target}"
    click.echo(
        json.dumps({"path": str(target), "number": found["number"], "status": found["status"]}) if as_json else line
    )


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
        why = {"broken_promise": "what an earlier request forgot has come back"}
        missed = why.get(done["reason"], "a threshold was missed or could not be measured")
        click.echo(f"version {done['checkpoint']} is in quarantine: {missed}")
    if done["status"] != "completed":
        sys.exit(1)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    main()
