"""A report as one HTML page that needs nothing else: no script, no link, pictures within. For people, print and archives.

It is given what the reader may know and shows no more: the document without figures by label, pictures only where the reader
may see them, and never a concept. Everything is escaped, since names of layers come from files that strangers uploaded.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app import figures
from app.catalog import METHODS, METRICS, shows_forgetting
from app.report import Attacked, Count, Figure, Promise, Report

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # what a browser may do with the page
CAPTIONS = {
    "grid.png": "The same seeds before and after: what differs was changed by the unlearning alone.",
    "prompts.png": "The first prompts of the list, from the same seeds before and after.",
    "front.png": "The layers that were weighed: importance for what is forgotten against alignment with what is kept.",
    "search.png": "The search of the step size: what is still recognised at each.",
    "cosines.png": "How alike the gradients of the forgotten labels are.",
    "losses.png": "The method's own losses while it trained, each point the mean of as many steps.",
    "relearning.png": "Relearning: what is recognised again after a few steps on a few forgotten images, dashed what is kept. "
    "Shaded: 95 % intervals.",
}
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Version:
    """What the page is about. Moments are RFC 3339."""

    model: str
    family: str
    number: int
    parent: int | None
    status: str
    created_at: str
    digest: str
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """The request behind the version, without what names the person."""

    id: str
    method: str
    recipe: Mapping[str, Any]
    seed: int
    kind: str
    count: int
    requested_at: str


def render(
    version: Version,
    document: Mapping[str, Any],
    asked: Asked | None,
    pictures: Mapping[str, bytes] | None,
    erased: bool = False,
) -> str:
    """`asked` None: the reader may not see the request. `pictures` None: the reader may not see any. `erased`: some are gone."""
    report = Report.model_validate(document)
    return _templates.get_template("report.html").render(
        policy=POLICY,
        version=version,
        report=report,
        asked=asked,
        recipe=_shown_recipe(asked) if asked else {},
        fitness=[
            (who, found.fit, figures.fitness(found.model_dump()))
            for who, found in (("judge", report.judge_fitness), ("detector", report.detector_fitness))
            if found
        ],
        left_out=list(dict.fromkeys(each.title for each in report.figures if each.left_out)),
        ruled=any(each.threshold for each in report.figures) or any(each.threshold for each in report.attacks),
        shows_forgetting=any(shows_forgetting(each.model_dump(), report.kind) for each in report.figures),
        rows=[_row(each, report.judge) for each in report.figures],
        attacks=[_attack(each) for each in report.attacks],
        promises=[row for each in report.promises for row in _promise(each)],
        definitions={METRICS[each.metric].title: METRICS[each.metric].definition for each in report.figures if each.metric in METRICS},
        pictures=None if pictures is None else [_picture(name, png) for name, png in pictures.items()],
        erased=erased,
        patches=[patch for patch in report.trace.get("patches") or [] if isinstance(patch, dict)],
        others=_others(report),
        number=figures.number,
        rung=lambda each: figures.rung(each.model_dump()),
    )  # fmt: skip


def _others(report: Report) -> dict[str, str]:
    """Digests of all that measured beside the judge, and the part that each played where the report says it."""
    named = {digest: part for part, digest in report.evaluators.items()}
    every = {digest for each in report.figures for digest in each.evaluators} | set(named)
    return {digest: named.get(digest, "") for digest in sorted(every - {report.judge})}


def _row(figure: Figure, judge: str | None) -> dict[str, Any]:
    """A figure in words."""
    said = figure.model_dump()
    return {
        "figure": figure,
        "value": figures.number(figure.value) or "not measured",
        "interval": figures.interval(said["interval"]),
        "before": figures.number(figure.before),
        "before_interval": figures.interval(said["before_interval"]),
        "target": figures.number(figure.target),
        "target_interval": figures.interval(said["target_interval"]),
        "rule": figures.rule(said["threshold"]),
        "met": _met(figure) if figure.threshold else "",
        "few": figure.n_needed is not None and figure.n_needed > figure.n,
        "judges": ["the judge" if digest == judge else _short(digest) for digest in figure.evaluators],
    }


def _met(figure: Figure) -> str:
    if figure.left_out:
        return "left out"
    return {True: "met", False: "missed", None: figures.unheld(figure.model_dump())}[figure.passed]


def _attack(attack: Attacked) -> dict[str, Any]:
    """What an attack found, in words."""
    said, sides = attack.model_dump(), attack.sides
    own = sides.get("unlearned")
    return {
        "attack": attack,
        "before": _share(own.before if own else None),
        "value": figures.number(attack.value) or "not made",
        "interval": figures.interval(said["interval"]),
        "others": [_share(sides[side].after if side in sides else None) for side in ("base", "reference")],
        "rule": figures.rule(said["threshold"]),
        "met": {True: "met", False: "missed", None: "not measured"}[attack.passed] if attack.threshold else "",
        "few": attack.n_needed is not None and attack.n_needed > attack.n,
    }


def _promise(promise: Promise) -> list[dict[str, Any]]:
    """An earlier request in words, a row for each figure that is measured again."""
    said = promise.model_dump()
    empty = dict.fromkeys(("title", "before", "then", "value", "interval", "rule", "n"), "")
    held = {**empty, "promise": promise, "holds": promise.kept, "kept": figures.kept(said)}
    return [
        {
            **held,
            "title": figure["title"],
            "before": figures.number(figure["before"]),
            "then": figures.number(figure["then"]),
            "value": figures.number(figure["value"]) or "not measured",
            "interval": figures.interval(figure["interval"]),
            "rule": figures.rule(figure["threshold"]),
            "n": f"{figure['n']:,}",
            "holds": figure["passed"],
            "kept": figures.kept(said, figure),
        }
        for figure in said["figures"]
    ] or [held]


def _share(count: Count | None) -> tuple[str, str]:
    """In percent, and its interval."""
    return figures.share(None if count is None else count.model_dump())


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _shown_recipe(asked: Asked) -> dict[str, Any]:
    """Hyper-parameters but for free text, which may name somebody."""
    known = METHODS[asked.method].parameters if asked.method in METHODS else {}
    return {name: value for name, value in asked.recipe.items() if name in known and known[name].kind != "text"}


def _picture(name: str, png: bytes) -> dict[str, str]:
    return {
        "caption": CAPTIONS.get(name, name.removesuffix(".png")),
        "source": f"data:image/png;base64,{base64.b64encode(png).decode()}",
    }
