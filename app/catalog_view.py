"""The catalogue as JSON, for GET /v1/catalog and `lethe catalog --json` alike."""

from typing import Any

from app.catalog import ATTACKS, BACKBONES, EVALUATORS, FAMILIES, LADDERS, METHODS, METRICS, Parameter


def catalogue() -> dict[str, Any]:
    return {
        "methods": [
            {
                "name": name,
                "title": method.title,
                "source": method.source,
                "families": list(method.families),
                "parameters": {
                    key: _parameter(parameter, method.families) for key, parameter in method.parameters.items()
                },
            }
            for name, method in METHODS.items()
        ],
        "families": [
            {
                "name": name,
                "title": family.title,
                "library": family.library,
                "classes": list(family.classes),
                "forget_kinds": list(family.forget_kinds),
                "labels_from": family.labels_from,
                "needs_judge": family.needs_judge,
                "texts": family.texts,
                "generates": family.generates,
                "evaluation": {key: _parameter(parameter, (name,)) for key, parameter in family.evaluation.items()},
                "default_policy": {
                    kind: [vars(each) for each in thresholds] for kind, thresholds in family.default_policy.items()
                },
                "default_ladder": {
                    kind: [{"method": rung.method, "recipe": dict(rung.recipe)} for rung in rungs]
                    for kind, rungs in LADDERS[name].items()
                },
            }
            for name, family in FAMILIES.items()
        ],
        "metrics": [
            {
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
            }
            for name, metric in METRICS.items()
        ],
        "evaluators": [
            {
                "name": name,
                "family": evaluator.family,
                "families": list(evaluator.families),
                "description": evaluator.description,
            }
            for name, evaluator in EVALUATORS.items()
        ],
        "backbones": [
            {"name": name, "title": backbone.title, "families": list(backbone.families)}
            for name, backbone in BACKBONES.items()
        ],
        "attacks": [
            {
                "name": name,
                "title": attack.title,
                "source": attack.source,
                "families": list(attack.families),
                "direction": attack.direction,
                "definition": attack.definition,
                "parameters": {
                    key: _parameter(parameter, attack.families) for key, parameter in attack.parameters.items()
                },
            }
            for name, attack in ATTACKS.items()
        ],
    }


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
