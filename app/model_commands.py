"""Commands on registered models."""

import json
from pathlib import Path

import click
from rich.table import Table

from app import prompts
from app.client import Lethe
from app.display import console, json_option, value_of


@click.group()
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
@click.option(
    "--retention",
    multiple=True,
    metavar="NAME=DAYS",
    help="Days that a sealed forget set is kept once its request ended: completed_days, failed_days. Repeatable.",
)
@click.option(
    "--process",
    multiple=True,
    metavar="STEP=none|required",
    help="What a request waits for before it is queued: verification, approval. Repeatable.",
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
    retention: tuple[str, ...],
    process: tuple[str, ...],
    as_json: bool,
) -> None:
    """Upload a Hugging Face directory (config and safetensors) and register it."""
    settings_ = {key: prompts.named(text) or value_of(text) for key, text in _pairs(evaluation).items()}
    with Lethe() as lethe:
        model = lethe.register_model(
            directory, name, family, train=train, retain=retain, test=test, judge=judge,
            evaluators=_pairs(evaluators) or None, evaluation=settings_ or None,
            retention={key: value_of(days) for key, days in _pairs(retention).items()} or None,
            process=_pairs(process) or None,
        )  # fmt: skip
    click.echo(json.dumps(model, indent=2) if as_json else f"{model['name']} is registered as version {model['head']}")
    for warned in model["warnings"] if not as_json else ():
        click.secho(f"{warned['field']}: {warned['rule']} {warned['remedy']}", fg="yellow", err=True)


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, each as it was typed."""
    return {name: value for name, _, value in (pair.partition("=") for pair in given)}


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
