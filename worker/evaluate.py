"""Evaluate: the same questions to the base, the unlearned and the retrained network, then figures and a verdict.

A network is asked once, and every metric reads its answers; what a generator answered in an earlier job is not asked
again (worker/answer_set.py). Each figure of the report says what was measured, before
and after, at which n and seed and by which evaluators. `passed` refers to the model's policy and says no more than
that: nothing here claims that anything is gone.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from app import report as published
from app.catalog import ATTACKS, FAMILIES, METRICS, Metric, Threshold, held_to, n_needed
from worker import by_name, curves, fitness, intervals, picture, promises, prompt_list, robustness
from worker.answer_set import AnswerSet
from worker.families import Samples, Trace
from worker.judge import Judge, as_pictures
from worker.kept import without
from worker.load import Material
from worker.losses import Curves
from worker.metrics import (
    Answers,
    Cost,
    Evidence,
    GeneratorAnswers,
    ReconstructionAnswers,
    integrity,
)
from worker.panel import ALONE, Panel, open_panel
from worker.rules import by_unfit, needed, why_failed, without_reference

JUDGED = GeneratorAnswers, ReconstructionAnswers
NOTHING_TOLD = Cost()
PARTS = ("by_label", "by_context", "n_real")  # what a figure is made of, where its metric tells
PART = 1000  # steps that progress counts for each network that is asked, and for each attack
Advance = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Report:
    document: dict[str, Any]  # figures, verdict and how they came about; JSON
    pictures: dict[str, bytes]  # file name -> PNG


def evaluate(
    specification: Mapping[str, Any],
    material: Material,
    network: nn.Module,
    trace: Trace | None,
    seconds: float,
    progress: Advance,
    kept: Mapping[str, AnswerSet] = MappingProxyType({}),
    cost: Cost = NOTHING_TOLD,
    losses: Curves = MappingProxyType({}),
) -> Report:
    """Ask base, unlearned and reference network, measure, attack, ask again what earlier requests asked, and compare with
    the policy. `trace`: how the method chose, `losses`: how it went, by step. `kept`: by side what a network answered
    before; what it lacks is added."""
    judge, panel = open_judge(material), open_panel(material, specification["evaluation"])
    sides = {"base": material.base.network, "unlearned": network}
    sides |= {"reference": material.reference.network} if material.reference else {}
    named = specification["evaluation"].get("attacks", {})
    shares = parts(
        progress, len(sides) + len(named) + len(material.probes) + (judge is not None) + (panel.detector is not None)
    )
    asked = {
        side: ask(specification, material, side, each, judge, next(shares), kept.get(side), panel)
        for side, each in sides.items()
    }
    attacks = [robustness.attack(specification, material, network, judge, name, next(shares)) for name in named]
    unseen = without(material.test, specification, None)
    promised = [
        promises.promise(specification, material, network, judge, probe, unseen, next(shares))
        for probe in material.probes
    ]
    evidence = Evidence(
        asked["base"],
        asked["unlearned"],
        asked.get("reference"),
        seconds,
        *count_changes(material.base.network, network),
        cost,
    )
    fit = (
        None if judge is None else fitness_of(specification, material, judge, asked["unlearned"], unseen, next(shares))
    )
    detects = (
        None
        if panel.detector is None
        else fitness_of_detector(specification, panel.detector, asked["unlearned"], next(shares))
    )
    document = {
        **held_to_policy(specification, evidence, attacks, promised, judge, panel, fit, detects),
        "resolution": list(asked["unlearned"].images.shape[2:4]) if isinstance(asked["unlearned"], JUDGED) else None,
        "base": material.base.digest,
        "judge": judge.digest if judge else None,
        "evaluators": panel.digests(),
        "reference": material.reference.digest if material.reference else None,
        "answers": {side: each.described() for side, each in kept.items()},
        "trace": trace or {},
        "losses": dict(losses),
    }
    published.Report.model_validate_json(json.dumps(document))
    drawn = picture.pictures(asked["base"], asked["unlearned"])
    return Report(document, drawn | curves.pictures(trace or {}, losses) | curves.of_attacks(attacks))


def held_to_policy(
    specification: Mapping[str, Any],
    evidence: Evidence,
    attacks: Sequence[dict[str, Any]],
    promised: Sequence[dict[str, Any]],
    judge: Judge | None,
    panel: Panel,
    fit: dict[str, Any] | None = None,
    detects: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The part of the report that follows from answers, attacks and promises: figures under the policy's rules, the verdict,
    and what was not tested."""
    kind = specification["kind"]
    rules = [Threshold(**rule) for rule in specification["policy"].get(kind, [])]
    seed = int(specification["evaluation"].get("seed", 0))
    rows = figures(evidence, specification["base"]["family"], kind, rules, seed, judge, panel)
    attacked = under_rules(attacks, rules)
    asked = ((judge, fit), (panel.detector, detects))
    unfit = {each.digest for each, found in asked if each and found and not found["fit"]}
    rows, attacked = by_unfit(unfit, rows), by_unfit(unfit, attacked)
    if judge and judge.digest in unfit:
        promised = [promises.by_unfit(each) for each in promised]
    reasons = why_failed([*rows, *attacked], promised, unfit)
    return {
        "verdict": "failed" if reasons else "passed",
        "reasons": reasons,
        "kind": kind,
        "figures": rows,
        "attacks": attacked,
        "promises": list(promised),
        "judge_fitness": fit,
        "detector_fitness": detects,
        "settings": prompt_list.told(specification["evaluation"]),
        "generated": {name: len(labels) for name, labels in (specification.get("generate") or {}).items() if labels},
        "not_tested": not_tested(attacks, specification["base"]["family"]),
    }


def ask(
    specification: Mapping[str, Any],
    material: Material,
    side: str,
    network: nn.Module,
    judge: Judge | None,
    progress: Advance,
    answered: AnswerSet | None,
    panel: Panel = ALONE,
) -> Answers:
    answers: Answers = by_name.answers(FAMILIES[specification["base"]["family"]].answers).ask(
        material.base.family,
        network,
        {
            "forget": material.forget,
            "retain": without(material.retain, specification, network),
            "test": without(material.test, specification, None),
        },
        specification["kind"],
        specification["evaluation"],
        judge,
        progress,
        base=material.base.network if side == "unlearned" else None,
        answered=answered,
        panel=panel,
    )
    if isinstance(answers, GeneratorAnswers):
        return replace(answers, forgotten_before=tuple(specification.get("forgotten_before", ())), measured={})
    return answers


def open_judge(material: Material) -> Judge | None:
    if material.judge is None:
        return None
    opened, captions = material.judge, material.base.network.__dict__.get("captions")
    names = captions.names if captions is not None else ()
    return Judge(opened.network, opened.family, opened.directory, opened.digest, names)


def fitness_of(
    specification: Mapping[str, Any],
    material: Material,
    judge: Judge,
    answers: Answers,
    unseen: Samples | None,
    progress: Advance,
) -> dict[str, Any] | None:
    """Of a judge of generated or restored images. A restorer's judge knows those labels that it names alike."""
    if not isinstance(answers, JUDGED):
        progress(1, 1)
        return None
    seed, family = int(specification["evaluation"].get("seed", 0)), material.base.family
    restores = isinstance(answers, ReconstructionAnswers)
    asked = replace(judge, names=tuple(specification.get("names", ()))) if restores else judge
    shape = answers.images.shape[-3:]
    labels = np.zeros(0, dtype=np.int64) if unseen is None else unseen.y.cpu().numpy()
    known = fitness.knows(asked, labels) & (len(asked.names) > 0 or not restores)
    rows = fitness.chosen(known, seed)
    images = np.zeros((0, *shape), np.uint8)
    if unseen is not None and len(rows):
        x = unseen.x[torch.from_numpy(rows).to(unseen.x.device)]
        images = as_pictures(family.pixels(material.base.network, x) if restores else x)
    return fitness.fitness(asked, shape, (images, labels[rows]), seed, progress)


def fitness_of_detector(
    specification: Mapping[str, Any], detector: Judge, answers: Answers, progress: Advance
) -> dict[str, Any] | None:
    """By noise alone: nobody registers images whose detection is known."""
    if not isinstance(answers, GeneratorAnswers):
        progress(1, 1)
        return None
    seed = int(specification["evaluation"].get("seed", 0))
    return fitness.fitness(detector, answers.images.shape[-3:], None, seed, progress)


def parts(progress: Advance, count: int) -> Iterator[Advance]:
    """The share of the whole progress that belongs to each of so many equal parts."""
    for index in range(count):
        yield partial(_advance, progress, index, count)


def _advance(progress: Advance, index: int, count: int, done: int, total: int) -> None:
    progress(index * PART + math.ceil(PART * done / total), count * PART)


@torch.no_grad()
def count_changes(base: nn.Module, network: nn.Module) -> tuple[int, int]:
    """Weights whose value differs from the base's (a nan always does), and all weights."""
    pairs = list(zip(base.parameters(), network.parameters(), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)


def figures(
    evidence: Evidence,
    family: str,
    kind: str,
    rules: Sequence[Threshold],
    seed: int,
    judge: Judge | None,
    panel: Panel = ALONE,
) -> list[dict[str, Any]]:
    """One row per metric of the family, in the catalogue's order; one more for each further rule on it. An optional
    metric without a value stands there only under a rule."""
    rows = []
    for name, metric in METRICS.items():
        if family not in metric.families:
            continue
        row, ideal = figure(evidence, name, kind, seed, judge, panel), metric.ideal.get(kind)
        own: list[Threshold | None] = [rule for rule in rules if rule.metric == name]
        if metric.optional and row["value"] is None and not own:
            continue
        rows += [
            {
                **row,
                **held_to(rule, row["value"], row["before"], ideal, row["before_interval"]),
                "n_needed": needed(rule, metric),
            }
            for rule in own or [None]
        ]
    return without_reference(rows, kind) if evidence.reference is None else rows


def figure(
    evidence: Evidence, name: str, kind: str, seed: int, judge: Judge | None, panel: Panel = ALONE
) -> dict[str, Any]:
    """One metric's row without a rule."""
    metric, module = METRICS[name], by_name.metric(name)
    sides = {"value": evidence.after, "before": evidence.before, "target": evidence.reference}
    measured = {side: measure(module, name, answers, evidence) for side, answers in sides.items()}
    value, before, target = (measured[side][0] for side in sides)
    ideal = metric.ideal.get(kind)
    row = {
        "metric": name,
        "name": called(name, panel),
        "title": metric.title,
        "value": value,
        "interval": intervals.interval(module, name, evidence.after, evidence, *measured["value"], seed),
        "before": before,
        "before_interval": intervals.interval(module, name, evidence.before, evidence, *measured["before"], seed),
        "target": ideal if target is None else target,
        "target_interval": intervals.interval(module, name, evidence.reference, evidence, *measured["target"], seed),
        "target_is": "retrained" if target is not None else ("ideal" if ideal is not None else None),
        "n": measured["value"][1],
        "seed": seed,
        "unit": metric.unit,
        "direction": metric.direction,
        "evaluators": digests(metric, evidence.after, judge, panel),
    }
    if value is not None:
        row |= {part: getattr(module, part)(evidence.after) for part in PARTS if hasattr(module, part)}
    if name == "integrity" and (rings := integrity.rings(evidence.after, evidence.before)):
        row["rings"] = rings
    return row


def called(name: str, panel: Panel) -> str:
    """A figure in somebody's own terms says whose: the judge's, or by digest which evaluator's."""
    metric = METRICS[name]
    if metric.unit != metric.evaluator:
        return name
    digest = panel.digests().get(metric.evaluator, "")
    return f"{name}[{metric.evaluator if metric.evaluator == 'judge' else digest.removeprefix('sha256:')[:12]}]"


def digests(metric: Metric, side: Answers, judge: Judge | None, panel: Panel) -> list[str]:
    """Of those that had a part in it."""
    if metric.evaluator == "judge":
        return [judge.digest] if judge and isinstance(side, JUDGED) else []
    return [digest for part, digest in panel.digests().items() if part == metric.evaluator]


def measure(module: ModuleType, name: str, side: Answers | None, evidence: Evidence) -> tuple[float | None, int]:
    """The value (None where it could not be measured) and n; kept in `measured` for the metrics that follow."""
    if side is None:
        return None, 0
    value, n = module.measure(side, evidence)
    side.measured[name] = value
    return (round(value, 6), n) if n > 0 and math.isfinite(value) else (None, n)


def under_rules(attacks: Sequence[dict[str, Any]], rules: Sequence[Threshold]) -> list[dict[str, Any]]:
    """A row per attack, one more for each further rule on it, and one for a rule on an attack that was not made."""
    rows = []
    for name, attack in ATTACKS.items():
        own: list[Threshold | None] = [rule for rule in rules if rule.metric == name]
        made = [row for row in attacks if row["attack"] == name]
        if own and not made:
            made = [{**robustness.described(name), "reason": "The model's evaluation does not name it."}]
        rows += [
            {**row, **held_to(rule, row["value"], None), "n_needed": n_needed(rule) if rule and attack.counts else None}
            for row in made
            for rule in own or [None]
        ]
    return rows


def not_tested(attacks: Sequence[Mapping[str, Any]], family: str) -> list[str]:
    """The attacks on the family that were not made; what is no attack here was not tested either, and has no name."""
    made = {row["attack"] for row in attacks if row["value"] is not None}
    return [
        name.replace("_", " ") for name, attack in ATTACKS.items() if family in attack.families and name not in made
    ]
