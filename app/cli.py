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
from rich.table import Table

from app import logs, migration
from app.alias_commands import alias, rollback
from app.attack_command import attack
from app.audit_commands import audit
from app.bulk_command import request_bulk
from app.catalog_view import catalogue
from app.client import DEFAULT_URL, Damaged, Lethe, Problem
from app.deployment import deploy
from app.display import Watcher, console, json_option, show_comparison, show_report, show_rungs
from app.embedded import run_embedded, wait_for_dependencies, worker_command
from app.errors import Refused
from app.keyring_commands import keyring
from app.lifecycle_commands import approve, deny, extend, verify
from app.model_commands import models
from app.override_command import override
from app.privacy.sealing import Keyring
from app.protocol_commands import protocol
from app.records import api_key as api_keys
from app.records.session import Store
from app.request_commands import cancel, list_requests, preview, request, retry, watch
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


OF_REQUESTS = (
    request,
    request_bulk,
    watch,
    list_requests,
    preview,
    cancel,
    retry,
    approve,
    deny,
    extend,
    verify,
    attack,
)
OF_VERSIONS = (models, alias, rollback, override, retire)
OF_RECORDS = (audit, hold, lift, purge_proof, keyring, protocol)
for command in (*OF_REQUESTS, *OF_VERSIONS, *OF_RECORDS):
    main.add_command(command)


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
    """Two versions' reports side by side: figures, attacks and promises, the difference, and which rule each met."""
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


if __name__ == "__main__":
    main()
