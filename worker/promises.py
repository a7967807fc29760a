"""Earlier promises: what earlier requests of the model asked is asked again, of the new network.

Each rule on forgetting that a request's own report met is held again: an absolute one as it was, one that compares with
the base against the `before` of that report, since the present base has forgotten already. What was forgotten and has come
back breaks the promise, whatever brought it back; what cannot be measured any more breaks none, and says why. Figures on
forgetting that were under no rule, or missed it, are measured as well, and break nothing.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from app.catalog import FAMILIES, METRICS, Threshold, held_to
from app.errors import JobError, Stopped
from worker import by_name, intervals
from worker.families import Samples
from worker.judge import Judge
from worker.load import Material, Probe
from worker.metrics import Answers, Evidence
from worker.rules import COMPARES, NEEDS


def promise(
    specification: Mapping[str, Any],
    material: Material,
    network: nn.Module,
    judge: Judge | None,
    probe: Probe,
    test: Samples | None,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """A row of the report: whether one earlier request's forgetting still holds. `kept` is None where nobody can say, or
    where the request promised nothing."""
    told = probe.told
    row = {"request": told["request"], "kind": told["kind"], "probe": told.get("probe"), "figures": [], "kept": None}
    if told["reason"] is not None:
        return {**row, "reason": told["reason"]}
    answers = None
    if any(rule["metric"] not in NEEDS for rule in told["rules"]):
        try:
            answers = ask(specification, material, network, judge, probe, test, progress)
        except Stopped:
            raise
        except JobError as error:  # such as judge_mismatch: the model has another judge by now
            return {**row, "reason": error.code}
    seed = int(specification["evaluation"].get("seed", 0))
    figures = [figure(answers, rule, told["kind"], seed) for rule in told["rules"]]
    bound = [each for each in figures if each["threshold"] is not None]
    held = {each["passed"] for each in bound}
    kept = False if False in held else (True if True in held else None)
    reason = bound[0]["reason"] or "not_measured" if bound else "nothing_promised"
    return {**row, "figures": figures, "kept": kept, "reason": None if kept is not None else reason}


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


def figure(answers: Answers | None, rule: Mapping[str, Any], kind: str, seed: int) -> dict[str, Any]:
    """What one metric says now, beside what it said in the request's own report, and whether the rule that it met there, if
    any, is met. `answers` None: nothing could be asked that tells."""
    name, module = rule["metric"], by_name.metric(rule["metric"])
    value, interval, n = None, None, 0
    if answers is not None and name not in NEEDS:
        evidence = Evidence(answers, answers, None, 0.0, 0, 1)
        measured, n = module.measure(answers, evidence)
        value = round(measured, 6) if n > 0 and math.isfinite(measured) else None
        interval = intervals.interval(module, name, answers, evidence, value, n, seed)
    threshold = rule["threshold"] and Threshold(name, **rule["threshold"])
    return {
        "metric": name,
        "title": METRICS[name].title,
        "unit": METRICS[name].unit,
        "value": value,
        "interval": interval,
        "then": rule["value"],
        "before": rule["before"],
        "n": n,
        "reason": None if value is not None else NEEDS.get(name, "not_measured"),
        **held_to(threshold, value, rule["before"], METRICS[name].ideal.get(kind)),
    }
