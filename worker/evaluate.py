"""Evaluate: the same questions to the base, the unlearned and the retrained network, then figures and a verdict.

A network is asked once, and every metric reads its answers. Each figure of the report says what was measured, before
and after, at which n and seed and by which evaluators. `passed` refers to the model's policy and says no more than
that: nothing here claims that anything is gone.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from app import report as published
from app.catalog import ATTACKS, FAMILIES, METRICS, Metric, Threshold, n_needed
from worker import by_name, curves, intervals, picture, robustness
from worker.families import Trace
from worker.judge import Judge
from worker.load import Material
from worker.metrics import Answers, Evidence, GeneratorAnswers, ReconstructionAnswers, integrity, per_class_accuracy

JUDGED = GeneratorAnswers, ReconstructionAnswers
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
) -> Report:
    """Ask base, unlearned and reference network, measure, attack, and compare with the policy. `trace`: how the method
    chose."""
    judge = open_judge(material)
    sides = [material.base.network, network] + ([material.reference.network] if material.reference else [])
    named = specification["evaluation"].get("attacks", {})
    shares = [part(progress, index, len(sides) + len(named)) for index in range(len(sides) + len(named))]
    asked = [
        ask(specification, material, side, judge, share, base=material.base.network if side is network else None)
        for side, share in zip(sides, shares, strict=False)
    ]
    changed, total = count_changes(material.base.network, network)
    evidence = Evidence(asked[0], asked[1], asked[2] if len(asked) > 2 else None, seconds, changed, total)
    rules = [Threshold(**rule) for rule in specification["policy"].get(specification["kind"], [])]
    seed = int(specification["evaluation"].get("seed", 0))
    rows = figures(evidence, specification["base"]["family"], specification["kind"], rules, seed, judge)
    attacks = [
        robustness.attack(specification, material, network, judge, name, share)
        for name, share in zip(named, shares[len(sides) :], strict=True)
    ]
    attacked = under_rules(attacks, rules)
    document = {
        "verdict": verdict([*rows, *attacked]),
        "kind": specification["kind"],
        "figures": rows,
        "attacks": attacked,
        "settings": dict(specification["evaluation"]),
        "base": material.base.digest,
        "judge": judge.digest if judge else None,
        "reference": material.reference.digest if material.reference else None,
        "generated": {name: len(labels) for name, labels in (specification.get("generate") or {}).items() if labels},
        "trace": trace or {},
        "not_tested": not_tested(attacks, specification["base"]["family"]),
    }
    published.Report.model_validate_json(json.dumps(document))
    drawn = picture.pictures(asked[0], asked[1]) | curves.pictures(trace or {}) | curves.of_attacks(attacks)
    return Report(document, drawn)


def ask(
    specification: Mapping[str, Any],
    material: Material,
    network: nn.Module,
    judge: Judge | None,
    progress: Advance,
    base: nn.Module | None,
) -> Answers:
    answers: Answers = by_name.answers(FAMILIES[specification["base"]["family"]].answers).ask(
        material.base.family,
        network,
        {"forget": material.forget, "retain": material.retain, "test": material.test},
        specification["kind"],
        specification["evaluation"],
        judge,
        progress,
        base=base,
    )
    return answers


def open_judge(material: Material) -> Judge | None:
    if material.judge is None:
        return None
    opened, captions = material.judge, material.base.network.__dict__.get("captions")
    names = captions.names if captions is not None else ()
    return Judge(opened.network, opened.family, opened.directory, opened.digest, names)


def part(progress: Advance, index: int, parts: int) -> Advance:
    """The share of the whole progress that belongs to one of several equal parts."""
    return lambda done, total: progress(index * PART + math.ceil(PART * done / total), parts * PART)


@torch.no_grad()
def count_changes(base: nn.Module, network: nn.Module) -> tuple[int, int]:
    """Weights whose value differs from the base's (a nan always does), and all weights."""
    pairs = list(zip(base.parameters(), network.parameters(), strict=True))
    return sum(int((a != b).sum()) for a, b in pairs), sum(a.numel() for a, _ in pairs)


def figures(
    evidence: Evidence, family: str, kind: str, rules: Sequence[Threshold], seed: int, judge: Judge | None
) -> list[dict[str, Any]]:
    """One row per metric of the family, in the catalogue's order; one more for each further rule on it."""
    rows = []
    for name, metric in METRICS.items():
        if family not in metric.families:
            continue
        row, ideal = figure(evidence, name, kind, seed, judge)
        own: list[Threshold | None] = [rule for rule in rules if rule.metric == name]
        rows += [
            {**row, **held_to(rule, row["value"], row["before"], ideal or 0.0), "n_needed": needed(rule, metric)}
            for rule in own or [None]
        ]
    return rows


def figure(
    evidence: Evidence, name: str, kind: str, seed: int, judge: Judge | None
) -> tuple[dict[str, Any], float | None]:
    """One metric's row without a rule, and what perfect forgetting would give, where that is known."""
    metric, module = METRICS[name], by_name.metric(name)
    sides = {"value": evidence.after, "before": evidence.before, "target": evidence.reference}
    measured = {side: measure(module, name, answers, evidence) for side, answers in sides.items()}
    value, before, target = (measured[side][0] for side in sides)
    ideal = getattr(module, "IDEAL", {}).get(kind)
    row = {
        "metric": name,
        "name": f"{name}[judge]" if metric.unit == "judge" else name,
        "title": metric.title,
        "value": value,
        "interval": intervals.interval(module, name, evidence.after, evidence, *measured["value"], seed),
        "before": before,
        "before_interval": intervals.interval(module, name, evidence.before, evidence, *measured["before"], seed),
        "target": ideal if target is None else target,
        "target_is": "retrained" if target is not None else ("ideal" if ideal is not None else None),
        "n": measured["value"][1],
        "seed": seed,
        "unit": metric.unit,
        "direction": metric.direction,
        "evaluators": [judge.digest] if judge and metric.judged and isinstance(evidence.after, JUDGED) else [],
    }
    if name == "per_class_accuracy" and isinstance(evidence.after, GeneratorAnswers):
        row["by_label"] = per_class_accuracy.by_label(evidence.after)
    if name == "integrity" and (rings := integrity.rings(evidence.after, evidence.before)):
        row["rings"] = rings
    return row, ideal


def measure(module: ModuleType, name: str, side: Answers | None, evidence: Evidence) -> tuple[float | None, int]:
    """The value (None where it could not be measured) and n; kept in `measured` for the metrics that follow."""
    if side is None:
        return None, 0
    value, n = module.measure(side, evidence)
    side.measured[name] = value
    return (round(value, 6), n) if n > 0 and math.isfinite(value) else (None, n)


def needed(rule: Threshold | None, metric: Metric) -> int | None:
    """The smallest n at which a share can be shown to meet the rule; None where no such n is known."""
    return n_needed(rule) if rule and metric.interval == "wilson" else None


def held_to(rule: Threshold | None, value: float | None, before: float | None, ideal: float = 0.0) -> dict[str, Any]:
    """The rule and whether it was met; None where there is no rule, or nothing to hold it against."""
    if rule is None:
        return {"threshold": None, "passed": None}
    shown = {"rule": rule.rule, "value": rule.value}
    relative = rule.rule not in ("at_least", "at_most")
    if value is None or (relative and before is None):
        return {"threshold": shown, "passed": None}
    base = before if before is not None else 0.0
    met = {
        "at_least": value >= rule.value,
        "at_most": value <= rule.value,
        "drop_at_most": base - value <= rule.value,
        "share_of_before": abs(value - ideal) <= rule.value * abs(base - ideal),
        "times_before_at_least": value >= rule.value * base > 0,
        "times_before_at_most": value <= rule.value * base,
    }
    return {"threshold": shown, "passed": met[rule.rule]}


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Passed when every rule was met. What could not be measured is missed, unless another figure shows forgetting.

    A gap to Retrain without a retrained reference is the case in point: it is left out where the policy holds
    another forgetting figure to a rule; where it is the only one, nothing was shown.
    """
    ruled = [row for row in rows if row["threshold"] is not None]
    shown = any(row["passed"] for row in ruled if shows_forgetting(row))
    met = all(row["passed"] or (shown and row["passed"] is None and shows_forgetting(row)) for row in ruled)
    return "passed" if met else "failed"


def shows_forgetting(row: Mapping[str, Any]) -> bool:
    """Whether an untouched network must miss a rule on this figure; what an attack achieves shows none."""
    return "metric" in row and METRICS[row["metric"]].shows_forgetting


def under_rules(attacks: Sequence[dict[str, Any]], rules: Sequence[Threshold]) -> list[dict[str, Any]]:
    """A row per attack, one more for each further rule on it, and one for a rule on an attack that was not made."""
    rows = []
    for name in ATTACKS:
        own: list[Threshold | None] = [rule for rule in rules if rule.metric == name]
        made = [row for row in attacks if row["attack"] == name]
        if own and not made:
            made = [{**robustness.described(name), "reason": "The model's evaluation does not name it."}]
        rows += [{**row, **held_to(rule, row["value"], None)} for row in made for rule in own or [None]]
    return rows


def not_tested(attacks: Sequence[Mapping[str, Any]], family: str) -> list[str]:
    """The attacks on the family that were not made; what is no attack here was not tested either, and has no name."""
    made = {row["attack"] for row in attacks if row["value"] is not None}
    return [
        name.replace("_", " ") for name, attack in ATTACKS.items() if family in attack.families and name not in made
    ]
