"""The catalogue as JSON, for GET /v1/catalog and `lethe catalog --json` alike."""

from collections.abc import Mapping
from typing import Any

from app.catalog import (
    ATTACKS,
    BACKBONES,
    EVALUATORS,
    FAMILIES,
    LADDERS,
    METHODS,
    METRICS,
    Attack,
    Evaluator,
    Family,
    Method,
    Metric,
    Parameter,
)


def catalogue() -> dict[str, Any]:
    return {
        "methods": [_method(name, each) for name, each in METHODS.items()],
        "families": [_family(name, each) for name, each in FAMILIES.items()],
        "metrics": [_metric(name, each) for name, each in METRICS.items()],
        "evaluators": [_evaluator(name, each) for name, each in EVALUATORS.items()],
        "backbones": [
            {"name": name, "title": each.title, "families": list(each.families)} for name, each in BACKBONES.items()
        ],
        "attacks": [_attack(name, each) for name, each in ATTACKS.items()],
    }


def _method(name: str, method: Method) -> dict[str, Any]:
    return {
        "name": name,
        "title": method.title,
        "source": method.source,
        "families": list(method.families),
        "parameters": _parameters(method.parameters, method.families),
    }


def _family(name: str, family: Family) -> dict[str, Any]:
    return {
        "name": name,
        "title": family.title,
        "library": family.library,
        "classes": list(family.classes),
        "forget_kinds": list(family.forget_kinds),
        "labels_from": family.labels_from,
        "needs_judge": family.needs_judge,
        "texts": family.texts,
        "generates": family.generates,
        "evaluation": _parameters(family.evaluation, (name,)),
        "default_policy": {
            kind: [vars(each) for each in thresholds] for kind, thresholds in family.default_policy.items()
        },
        "default_ladder": {
            kind: [{"method": rung.method, "recipe": dict(rung.recipe)} for rung in rungs]
            for kind, rungs in LADDERS[name].items()
        },
    }


def _metric(name: str, metric: Metric) -> dict[str, Any]:
    return {
        "name": name,
        "title": metric.title,
        "families": list(metric.families),
        "direction": metric.direction,
        "unit": metric.unit,
        "definition": metric.definition,
        "interval": metric.interval,
        "n_from": metric.n_from,
        "evaluator": metric.evaluator,
        "optional": metric.optional,
        "needs": list(metric.needs),
        "ideal": dict(metric.ideal),
    }


def _evaluator(name: str, evaluator: Evaluator) -> dict[str, Any]:
    return {
        "name": name,
        "family": evaluator.family,
        "families": list(evaluator.families),
        "description": evaluator.description,
    }


def _attack(name: str, attack: Attack) -> dict[str, Any]:
    return {
        "name": name,
        "title": attack.title,
        "source": attack.source,
        "families": list(attack.families),
        "direction": attack.direction,
        "definition": attack.definition,
        "parameters": _parameters(attack.parameters, attack.families),
    }


def _parameters(parameters: Mapping[str, Parameter], families: tuple[str, ...]) -> dict[str, Any]:
    return {name: _parameter(parameter, families) for name, parameter in parameters.items()}


def _parameter(parameter: Parameter, families: tuple[str, ...]) -> dict[str, Any]:
    return {
        "kind": parameter.kind,
        "default": {family: parameter.default_for(family) for family in families},
        "minimum": parameter.minimum,
        "maximum": parameter.maximum,
        "exclusive_minimum": parameter.exclusive_minimum,
        "choices": list(parameter.choices),
        "description": parameter.description,
    }
