"""Earlier promises: what earlier requests of the model asked is asked again, of the new network.

Each rule on forgetting that a request's own report met is held again: an absolute one as it was, one that compares with
the base against the `before` of that report, since the present base has forgotten already. What was forgotten and has come
back breaks the promise, whatever brought it back; what cannot be measured any more breaks none, and says why.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from app.catalog import FAMILIES, METRICS, Threshold
from app.errors import JobError, Stopped
from worker import by_name, intervals
from worker.families import Samples
from worker.judge import Judge
from worker.load import Material, Probe
from worker.metrics import Answers, Evidence
from worker.rules import held_to

UNMEASURABLE = {  # without the network that a figure compares with, and earlier bases remember someone
    "gap_to_retrain": "needs_reference",
    "mutual_information_to_noise": "needs_base",
}
COMPARES = ("mia_auc",)  # with the test set


def promise(
    specification: Mapping[str, Any],
    material: Material,
    network: nn.Module,
    judge: Judge | None,
    probe: Probe,
    test: Samples | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """A row of the report: whether one earlier request's forgetting still holds. `kept` is None where nobody can say."""
    told = probe.told
    row = {"request": told["request"], "kind": told["kind"], "probe": told.get("probe"), "figures": []}
    rules = [rule for rule in told["rules"] if rule["metric"] not in UNMEASURABLE]
    if told["reason"] is not None or not rules:
        reason = told["reason"] or UNMEASURABLE[told["rules"][0]["metric"]]
        return {**row, "kept": None, "reason": reason}
    try:
        answers = ask(specification, material, network, judge, probe, test, progress)
    except Stopped:
        raise
    except JobError as error:  # such as judge_mismatch: the model has another judge by now
        return {**row, "kept": None, "reason": error.code}
    seed = int(specification["evaluation"].get("seed", 0))
    figures = [figure(answers, rule, told["kind"], seed) for rule in rules]
    held = {each["passed"] for each in figures}
    kept = False if False in held else (True if True in held else None)
    return {**row, "figures": figures, "kept": kept, "reason": None if kept is not None else "not_measured"}


def by_unfit(row: dict[str, Any]) -> dict[str, Any]:
    """The row, where the judge is unfit: it cannot say that a promise holds. One that it finds broken stays so."""
    if not row["kept"]:
        return row
    figures = [{**each, "passed": None} for each in row["figures"]]
    return {**row, "figures": figures, "kept": None, "reason": "judge_unfit"}


def ask(
    specification: Mapping[str, Any],
    material: Material,
    network: nn.Module,
    judge: Judge | None,
    probe: Probe,
    test: Samples | None,
    progress: Callable[[int, int], None],
) -> Answers:
    """The earlier forget set's answers, by the family's own way of asking; of other labels no image is drawn or shown."""
    family, samples = FAMILIES[specification["base"]["family"]], probe.samples
    assert samples is not None
    if family.texts:
        network = copy.copy(network)  # the same weights, told the earlier request's labels
        material.base.family.caption(network, probe.captions)
        judge = judge and replace(judge, names=probe.captions.names)
    compares = any(rule["metric"] in COMPARES for rule in probe.told["rules"])
    answers: Answers = by_name.answers(family.answers).ask(
        material.base.family,
        network,
        {"forget": samples, "retain": Samples(samples.x[:1], samples.y[:1]), "test": test if compares else None},
        probe.told["kind"],
        {**specification["evaluation"], "samples_per_label": 0},
        judge,
        progress,
    )
    return answers


def figure(answers: Answers, rule: Mapping[str, Any], kind: str, seed: int) -> dict[str, Any]:
    """What one rule's metric says now, beside what it said in the request's own report."""
    name, module = rule["metric"], by_name.metric(rule["metric"])
    evidence = Evidence(answers, answers, None, 0.0, 0, 1)
    measured, n = module.measure(answers, evidence)
    value = round(measured, 6) if n > 0 and math.isfinite(measured) else None
    ideal = getattr(module, "IDEAL", {}).get(kind) or 0.0
    return {
        "metric": name,
        "title": METRICS[name].title,
        "unit": METRICS[name].unit,
        "value": value,
        "interval": intervals.interval(module, name, answers, evidence, value, n, seed),
        "then": rule["value"],
        "before": rule["before"],
        "n": n,
        **held_to(Threshold(name, **rule["threshold"]), value, rule["before"], ideal),
    }
