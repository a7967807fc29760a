"""The catalogue against the code it describes: names, defaults, bounds, classes and pages."""

import importlib
import inspect
import re
import typing
from pathlib import Path
from typing import Any, Literal

import pytest

from app.catalog import ATTACKS, AUTO, BACKBONES, EVALUATORS, FAMILIES, LADDERS, METHODS, METRICS, Parameter
from app.recipe import check_ladder
from app.settings import Settings

ROOT = Path(__file__).parents[1]
OF_THE_RUN = ("network", "family", "forget", "retain", "generator", "on_step", "resume")
OF_AN_ATTACK = ("network", "family", "forget", "retain", "unseen", "recognised", "generator", "progress")
REMEMBERS = (*OF_THE_RUN, "remember")
KINDS = {"integer": int, "number": float, "boolean": bool, "choice": str, "text": str, "texts": list, "prompts": list}
PARAMETERS = [
    pytest.param(parameter, id=f"{owner}-{name}")
    for owner, parameters in [(key, method.parameters) for key, method in METHODS.items()]
    + [(key, family.evaluation) for key, family in FAMILIES.items()]
    + [(key, attack.parameters) for key, attack in ATTACKS.items()]
    for name, parameter in parameters.items()
]


def modules(package: str) -> set[str]:
    return {path.stem for path in (ROOT / "worker" / package).glob("*.py")} - {"__init__"}


def test_every_file_is_an_entry_and_every_entry_a_file() -> None:
    assert modules("methods") == set(METHODS)
    assert modules("families") - {
        "attention",
        "denoising",
        "directory",
        "inputs",
        "lora",
        "mixtures",
        "pipelines",
        "prefix",
        "probing",
        "prompts",
    } == set(FAMILIES)
    assert modules("metrics") == set(METRICS)
    assert modules("attacks") == set(ATTACKS)
    assert modules("evaluators") == set(BACKBONES)
    assert modules("answers") == {family.answers for family in FAMILIES.values()}


@pytest.mark.parametrize("name", METHODS)
def test_the_signature_is_the_catalogues(name: str) -> None:
    function = importlib.import_module(f"worker.methods.{name}").unlearn
    signature = inspect.signature(function).parameters
    ours = {key: value for key, value in signature.items() if key not in REMEMBERS}
    of_the_run = tuple(key for key in signature if key in REMEMBERS)
    assert of_the_run == (REMEMBERS if METHODS[name].remembers else OF_THE_RUN)
    assert {key: value.default for key, value in ours.items()} == {
        key: parameter.default for key, parameter in METHODS[name].parameters.items()
    }
    for key, value in ours.items():
        parameter = METHODS[name].parameters[key]
        assert value.kind is inspect.Parameter.KEYWORD_ONLY
        if parameter.kind == "choice":
            assert typing.get_origin(value.annotation) is Literal
            assert typing.get_args(value.annotation) == parameter.choices
        else:
            assert value.annotation is KINDS[parameter.kind]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_s_signature_is_the_catalogues(name: str) -> None:
    module = importlib.import_module(f"worker.attacks.{name}")
    signature = inspect.signature(module.attack).parameters
    of_the_run = (*OF_AN_ATTACK[:6], "shadows", *OF_AN_ATTACK[6:]) if ATTACKS[name].shadows else OF_AN_ATTACK
    ours = {key: value for key, value in signature.items() if key not in of_the_run}
    assert tuple(key for key in signature if key in of_the_run) == of_the_run
    assert {key: (value.default, value.annotation) for key, value in ours.items()} == {
        key: (parameter.default, KINDS[parameter.kind])
        for key, parameter in ATTACKS[name].parameters.items()
        if key not in of_the_run
    }
    assert all(value.kind is inspect.Parameter.KEYWORD_ONLY for value in ours.values())


def test_the_table_of_figures_is_the_catalogue() -> None:
    page = (ROOT / "docs" / "reports.md").read_text()
    section = page.partition("\n## The figures\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| ([^|]+) \| (\S+) \| ([^|]+) \| ([^|]+) \|", section, re.MULTILINE)
    assert rows == [
        (
            name,
            "all" if metric.families == tuple(FAMILIES) else ", ".join(metric.families),
            metric.direction,
            metric.unit,
            metric.interval or "-",
        )
        for name, metric in METRICS.items()
    ]


def test_the_table_of_evaluators_is_the_catalogue() -> None:
    section = (ROOT / "docs" / "reports.md").read_text().partition("\n## Evaluators\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", section, re.MULTILINE)
    measured = {part: [name for name, metric in METRICS.items() if metric.evaluator == part] for part in EVALUATORS}
    assert rows == [
        (part, each.family, ", ".join(each.families), ", ".join(f"`{name}`" for name in measured[part]))
        for part, each in EVALUATORS.items()
    ]
    for name, backbone in BACKBONES.items():
        assert name in Settings.model_fields
        assert all(FAMILIES[family].evaluation[name].default is False for family in backbone.families)
        assert any(metric.evaluator == name and metric.families == backbone.families for metric in METRICS.values())
    for part, names in measured.items():
        assert names and all(set(METRICS[name].families) <= set(EVALUATORS[part].families) for name in names)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_says_its_source_and_has_a_section(name: str) -> None:
    attack, page = ATTACKS[name], (ROOT / "docs" / "attacks.md").read_text()
    docstring = importlib.import_module(f"worker.attacks.{name}").__doc__ or ""
    section = page.partition(f"\n## `{name}`")[2].partition("\n## ")[0]
    assert section
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (\S+) \| ([^|]+) \|", section, re.MULTILINE)
    assert rows == [
        (key, shown(parameter.default), "; ".join(by_family(parameter, attack.families)) or "-")
        for key, parameter in attack.parameters.items()
    ]
    assert all(paper in docstring and paper in section for paper in re.findall(r"\d{4}\.\d{5}", attack.source))
    everywhere = attack.families == tuple(FAMILIES)
    assert section.lstrip().startswith("Every family." if everywhere else ", ".join(attack.families))
    assert set(attack.families) <= set(FAMILIES) and name not in METRICS


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_every_default_is_within_its_own_bounds(parameter: Parameter) -> None:
    for value in (parameter.default, *parameter.by_family.values()):
        assert type(value) is KINDS[parameter.kind]
        assert allowed(parameter, value)
    assert set(parameter.by_family) <= set(FAMILIES)
    assert (parameter.kind == "choice") == bool(parameter.choices)
    assert (parameter.kind in ("integer", "number")) == (
        parameter.minimum is not None and parameter.maximum is not None
    )


def allowed(parameter: Parameter, value: Any) -> bool:
    if parameter.kind == "choice":
        return value in parameter.choices
    if parameter.kind == "boolean":
        return True
    if parameter.kind == "text":
        return parameter.maximum is not None and len(value) <= parameter.maximum
    if parameter.kind == "prompts":
        return parameter.maximum is not None and all(len(each["prompt"]) <= parameter.maximum for each in value)
    if parameter.kind == "texts":
        return parameter.maximum is not None and all(len(each) <= parameter.maximum for each in value)
    assert parameter.minimum is not None
    assert parameter.maximum is not None
    return parameter.minimum <= value <= parameter.maximum and not (
        parameter.exclusive_minimum and value == parameter.minimum
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_declares_the_classes_that_its_module_opens(name: str) -> None:
    family, module = FAMILIES[name], importlib.import_module(f"worker.families.{name}")
    assert family.classes == tuple(module.CLASSES)
    assert all(kind.__module__.startswith(f"{family.library}.") for kind in module.CLASSES.values())
    assert any(name in method.families for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_its_source_and_has_a_page(name: str) -> None:
    method = METHODS[name]
    assert set(method.families) <= set(FAMILIES)
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text()
    docstring = importlib.import_module(f"worker.methods.{name}").__doc__ or ""
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (\S+) \| ([^|]+) \|", page, re.MULTILINE)
    assert rows == [
        (key, shown(parameter.default), "; ".join(by_family(parameter, method.families)) or "-")
        for key, parameter in method.parameters.items()
    ]
    for paper in re.findall(r"\d{4}\.\d{5}", method.source):
        assert paper in docstring
        assert paper in page


def by_family(parameter: Parameter, families: tuple[str, ...]) -> list[str]:
    return [f"{family} {shown(value)}" for family, value in parameter.by_family.items() if family in families]


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() or "none"


def test_policies_name_metrics_of_their_family() -> None:
    for key, family in FAMILIES.items():
        assert set(family.default_policy) <= set(family.forget_kinds)
        thresholds = [threshold for rules in family.default_policy.values() for threshold in rules]
        assert thresholds
        for threshold in thresholds:
            assert key in METRICS[threshold.metric].families, threshold.metric


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_a_ladder_for_each_kind_and_each_rung_runs_on_it(name: str) -> None:
    """check_ladder refuses an unknown method, another family's, a value out of bounds and a rung that repeats."""
    assert set(LADDERS) == set(FAMILIES) and AUTO not in METHODS
    assert set(LADDERS[name]) == set(FAMILIES[name].default_policy)
    page = (ROOT / "docs" / "methods" / "README.md").read_text()
    for kind, rungs in LADDERS[name].items():
        assert 2 <= len(check_ladder(name, [vars(rung) for rung in rungs])) <= 8
        assert rungs[-1].method == rungs[-2].method  # at last a stronger setting of the one before
        shown_rungs = [
            f"{rung.method}" + "".join(f" `{key}: {shown(value)}`" for key, value in rung.recipe.items())
            for rung in rungs
        ]
        assert any(
            f"`{name}`" in line and kind in line and " -> ".join(shown_rungs) in line for line in page.splitlines()
        ), (name, kind, shown_rungs)
