"""What was asked for, against the catalogue: recipes, ladders, evaluation settings and policies, resolved or refused."""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, get_args

from app import catalog, prompts
from app.catalog import Attack, Metric, Parameter
from app.catalog.types import Rule
from app.errors import Refused

MOST_TEXTS = 1000  # in one setting
Ladder = list[dict[str, Any]]  # rungs: method and recipe
_UNFIT: Mapping[Rule, str] = {  # why a metric takes no such rule
    "share_of_before": "What perfect forgetting would give is not known of {} by {}: there is no distance to take a share of.",
    "drop_at_most": "It bounds the loss of what is kept, where higher is better: {} by {} is no such figure.",
    "times_before_at_least": "Lower is better of {} by {}: a worse version would meet it.",
    "times_before_at_most": "Higher is better of {} by {}: a worse version would meet it.",
}


def resolve_ladder(
    family: str, own: Ladder | None, kind: str, method: str, recipe: dict[str, Any] | None = None
) -> Ladder:
    """What a request runs, rung by rung: a named method is the only one; auto climbs the model's `own` ladder, else the
    family's default. Every recipe is resolved."""
    if kind not in catalog.FAMILIES[family].forget_kinds:
        kinds = ", ".join(catalog.FAMILIES[family].forget_kinds)
        raise Refused(
            "impossible-combination", "forget", f"{family} cannot forget by {kind}.", f"Possible here: {kinds}."
        )
    if method != catalog.AUTO:
        return [{"method": method, "recipe": resolve_recipe(family, method, recipe or {})}]
    if recipe:
        rule, remedy = "auto takes its recipes from a ladder.", "Name a method, or PATCH the model's ladder."
        raise Refused("impossible-combination", "recipe", rule, remedy)
    default = catalog.LADDERS[family][catalog.FAMILIES[family].policy_kind(kind)]
    return own or check_ladder(family, [vars(rung) for rung in default])


def check_ladder(family: str, ladder: Sequence[Mapping[str, Any]]) -> Ladder:
    """A model's rungs, each with its resolved recipe. One that repeats another would only miss again: equal seeds give
    equal weights."""
    rungs: Ladder = []
    for position, each in enumerate(ladder):
        field = f"ladder[{position}]"
        rung = {"method": each["method"], "recipe": resolve_recipe(family, each["method"], each["recipe"], f"{field}.")}
        if rung in rungs:
            remedy = "Change a hyper-parameter, or leave it out."
            raise Refused("repeated-rung", field, "An earlier rung is the same: this one would miss, too.", remedy)
        rungs.append(rung)
    return rungs


def resolve_recipe(family: str, method: str, recipe: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The resolved recipe: what was asked, checked against the bounds, and the family's defaults for the rest. `within`:
    where method and recipe stand in the body."""
    known = catalog.METHODS.get(method)
    if known is None:
        possible = [*catalog.METHODS] if within else [catalog.AUTO, *catalog.METHODS]
        raise Refused(
            "unknown-method", f"{within}method", "There is no such method.", f"Choose one of {', '.join(possible)}."
        )
    if family not in known.families:
        possible = [name for name, other in catalog.METHODS.items() if family in other.families]
        raise Refused(
            "impossible-combination",
            f"{within}method",
            f"{method} does not run on {family}.",
            f"Possible here: {', '.join(possible)}.",
        )
    unknown = sorted(set(recipe) - set(known.parameters))
    if unknown:
        raise Refused(
            "unknown-parameter",
            _named(f"{within}recipe", unknown[0]),
            f"{method} has no such parameter.",
            f"It has {', '.join(known.parameters)}.",
        )
    return {
        name: checked(parameter, recipe[name], f"{within}recipe.{name}")
        if name in recipe
        else parameter.default_for(family)
        for name, parameter in known.parameters.items()
    }


def check_policy(family: str, policy: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Thresholds by kind of forgetting: the family's defaults, and what was posted instead."""
    defaults = catalog.FAMILIES[family].default_policy
    kinds = {kind: [vars(threshold) for threshold in thresholds] for kind, thresholds in defaults.items()}
    for kind, thresholds in policy.items():
        if kind not in defaults:
            raise Refused(
                "unknown-kind",
                _named("policy", kind),
                f"{family} has no such kind of forgetting.",
                f"It has {', '.join(defaults)}.",
            )
        for position, threshold in enumerate(thresholds):
            figure = catalog.METRICS.get(threshold["metric"]) or catalog.ATTACKS.get(threshold["metric"])
            if figure is None or family not in figure.families:
                every: dict[str, Metric | Attack] = {**catalog.METRICS, **catalog.ATTACKS}
                possible = ", ".join(name for name, other in every.items() if family in other.families)
                raise Refused(
                    "unknown-metric",
                    f"policy.{kind}[{position}].metric",
                    f"{family} has no such metric.",
                    f"It has {possible}.",
                )
            if threshold["metric"] in catalog.ATTACKS and threshold["rule"] not in ("at_least", "at_most"):
                raise Refused(
                    "impossible-combination",
                    f"policy.{kind}[{position}].rule",
                    "What an attack achieves is held to a value of its own, not to the base's.",
                    "Use at_most or at_least.",
                )
            if isinstance(figure, Metric) and not figure.takes(threshold["rule"], kind):
                fitting = ", ".join(rule for rule in get_args(Rule) if figure.takes(rule, kind))
                raise Refused(
                    "impossible-combination",
                    f"policy.{kind}[{position}].rule",
                    _UNFIT[threshold["rule"]].format(threshold["metric"], kind),
                    f"Possible here: {fitting}.",
                )
        kinds[kind] = thresholds
    return kinds


def policy_warnings(
    family: str,
    policy: dict[str, Any],
    evaluation: dict[str, Any],
    sets: Mapping[str, int | None] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """What is wrong with rules beforehand: a kind of forgetting that has none which a version that forgot nothing must miss;
    a figure or an attack that will not be measured; a share of too few images to show the rule, however well a version answers.

    n is known of what a generator is asked to draw, and at most of what an attack asks about and of registered sets: `sets`
    holds the sizes of test and retain set, None where there is none. A warning refuses nothing.
    """
    found = []
    for kind, rules in policy.items():
        if all(_met_by_all(family, kind, catalog.Threshold(**each)) for each in rules):
            found.append(_shows_nothing(family, kind))
        for position, each in enumerate(rules):
            found += _rule_warnings(f"policy.{kind}[{position}]", catalog.Threshold(**each), evaluation, sets)
    return found


def _rule_warnings(
    field: str, rule: catalog.Threshold, evaluation: dict[str, Any], sets: Mapping[str, int | None]
) -> list[dict[str, Any]]:
    metric, attack, named = catalog.METRICS.get(rule.metric), catalog.ATTACKS.get(rule.metric), _attacks(evaluation)
    if attack is not None and rule.metric not in named:
        return [
            _unmeasured(field, rule, "evaluation.attacks does not name it", "Name it there, or leave the rule out.")
        ]
    if metric is not None and "test" in metric.needs and sets.get("test", 1) is None:
        return [_unmeasured(field, rule, "the model has no test set", "Name one, or leave the rule out.")]
    said = _measured(rule.metric, evaluation, sets)
    if said is None or rule.rule not in ("at_least", "at_most"):
        return []
    source, n, remedy = said
    needed = catalog.n_needed(rule)
    return [_too_few(field, rule, source, n, needed, remedy)] if needed is None or needed > n else []


def _measured(name: str, evaluation: dict[str, Any], sets: Mapping[str, int | None]) -> tuple[str, int, str] | None:
    """Where the n of a share comes from, that n, or the most it can be, and what to do for a larger one; None where
    nobody knows."""
    metric, attack = catalog.METRICS.get(name), catalog.ATTACKS.get(name)
    if attack is not None:
        setting = f"attacks.{name}.measured"
        n = _attacks(evaluation)[name]["measured"] if attack.counts else None
        return None if n is None else (setting, n, f"Set evaluation.{setting} to at least {{}}.")
    source = metric.n_from if metric else None
    if source == "retain" or source == "test":
        n = sets.get(source)
        return None if n is None else (f"the {source} set's images", n, f"Name a {source} set of at least {{}} images.")
    n = _count(evaluation, source)
    remedy = (
        f"Name at least {{}} in evaluation.{source}."
        if source == "prompts"
        else f"Set evaluation.{source} to at least {{}}."
    )
    return None if n is None or source is None else (source, n, remedy)


def _attacks(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    named: dict[str, Any] = evaluation.get("attacks", {})
    return named


def _unmeasured(field: str, rule: catalog.Threshold, why: str, remedy: str) -> dict[str, Any]:
    return {
        "field": field,
        "rule": f"{rule.metric} will not be measured, so the rule will be missed: {why}.",
        "remedy": remedy,
        "n": 0,
        "n_needed": None,
    }


def _showing(family: str) -> list[str]:
    return [name for name, each in catalog.METRICS.items() if each.shows_forgetting and family in each.families]


def _met_by_all(family: str, kind: str, rule: catalog.Threshold) -> bool:
    return rule.metric not in _showing(family) or catalog.met_by_all(rule, kind)


def _shows_nothing(family: str, kind: str) -> dict[str, Any]:
    return {
        "field": f"policy.{kind}",
        "rule": "None of its rules shows forgetting by itself: a version that forgot nothing may meet all of them, and be released.",
        "remedy": f"Hold one of these to a rule that such a version misses: {', '.join(_showing(family))}.",
        "n": None,
        "n_needed": None,
    }


def _count(evaluation: dict[str, Any], setting: str | None) -> int | None:
    """The n that a setting says, or lists; None where nothing is listed, and so nothing measured."""
    said = evaluation.get(setting or "")
    return (len(said) or None) if isinstance(said, list) else said


def _too_few(
    field: str, rule: catalog.Threshold, source: str, n: int, needed: int | None, remedy: str
) -> dict[str, Any]:
    best, end, within = (n, 0, "begins at") if rule.rule == "at_least" else (0, 1, "ends at")
    bound = catalog.wilson(best, n)[end]
    opened = "below 100" if rule.rule == "at_least" else "above 0"
    return {
        "field": field,
        "rule": f"{rule.metric} {rule.rule} {rule.value:g} cannot be shown with {source} = {n}: even of the best "
        f"possible answer the {catalog.LEVEL} % interval {within} {bound:.1f}.",
        "remedy": f"No n is enough: set a threshold {opened}." if needed is None else remedy.format(needed),
        "n": n,
        "n_needed": needed,
    }


def check_evaluation(family: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Every setting of the family, and under `attacks` those that were named, each with all of its parameters."""
    known = catalog.FAMILIES[family].evaluation
    settings = {name: value for name, value in evaluation.items() if name != "attacks"}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise Refused(
            "unknown-parameter",
            _named("evaluation", unknown[0]),
            f"{family} has no such setting.",
            f"It has {', '.join(known) or 'none'}, and attacks.",
        )
    resolved = {
        name: checked(parameter, settings.get(name, parameter.default_for(family)), f"evaluation.{name}")
        for name, parameter in known.items()
    }
    if resolved.get("contexts") and not {"{}", "{context}"} <= set(re.findall(r"{\w*}", resolved["context_prompt"])):
        rule = "It must hold {} for a label's name and {context} for the context."
        remedy = "Such as: a photo of {} in the style of {context}."
        raise Refused("placeholder-missing", "evaluation.context_prompt", rule, remedy)
    named = check_attacks(family, evaluation.get("attacks", {}))
    return resolved | ({"attacks": named} if named else {})


def check_attacks(family: str, attacks: Any, where: str = "evaluation.attacks") -> dict[str, dict[str, Any]]:
    """Attacks by name, in the catalogue's order, each with all of its parameters. `where` they were given, for refusals."""
    if not isinstance(attacks, dict) or not all(isinstance(given, dict) for given in attacks.values()):
        rule = "It must be an object: an attack's name, and an object of its parameters."
        raise Refused("wrong-type", where, rule, 'Such as {"relearning": {"steps": 20}}.')
    possible = {name: attack for name, attack in catalog.ATTACKS.items() if family in attack.families}
    for name, given in attacks.items():
        field = _named(where, name)
        if name not in possible:
            remedy = f"It can be attacked by {', '.join(possible) or 'none'}."
            raise Refused("unknown-attack", field, f"{family} has no such attack.", remedy)
        if unknown := sorted(set(given) - set(possible[name].parameters)):
            remedy = f"It has {', '.join(possible[name].parameters) or 'none'}."
            raise Refused("unknown-parameter", _named(field, unknown[0]), f"{name} has no such parameter.", remedy)
    return {
        name: {
            key: checked(parameter, attacks[name].get(key, parameter.default_for(family)), f"{where}.{name}.{key}")
            for key, parameter in attack.parameters.items()
        }
        for name, attack in possible.items()
        if name in attacks
    }


def checked(parameter: Parameter, value: Any, field: str) -> Any:
    """`value` if it has the parameter's kind and lies within its bounds."""
    if parameter.kind == "choice":
        if value not in parameter.choices:
            raise Refused(
                "out-of-bounds", field, f"It must be one of {', '.join(parameter.choices)}.", "See GET /v1/catalog."
            )
        return value
    if parameter.kind == "boolean":
        if not isinstance(value, bool):
            raise Refused("wrong-type", field, "It must be true or false.", "See GET /v1/catalog.")
        return value
    if parameter.kind == "text":
        if not _is_text(value, parameter):
            rule = f"It must be printable text of at most {parameter.maximum:g} characters."
            raise Refused("wrong-type", field, rule, "See GET /v1/catalog.")
        return value
    if parameter.kind == "texts":
        return _texts(value, parameter, field)
    if parameter.kind == "prompts":
        return prompts.checked(value, parameter, field)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (parameter.kind == "number" and isinstance(value, float) and math.isfinite(value)):
        raise Refused("wrong-type", field, f"It must be a finite {parameter.kind}.", "See GET /v1/catalog.")
    low, high = parameter.minimum, parameter.maximum
    too_low = low is not None and (value <= low if parameter.exclusive_minimum else value < low)
    if too_low or (high is not None and value > high):
        raise Refused("out-of-bounds", field, f"It must be {_bounds(parameter)}.", "See GET /v1/catalog.")
    return value if parameter.kind == "integer" else float(value)


def _is_text(value: Any, parameter: Parameter) -> bool:
    printable = isinstance(value, str) and value.replace("\n", "").isprintable()
    return printable and len(value) <= (parameter.maximum or 0)


def _texts(value: Any, parameter: Parameter, field: str) -> list[str]:
    """Different ones, whatever their case; a brace would be taken for a place to fill in."""
    fit = isinstance(value, list) and len(value) <= MOST_TEXTS and all(_is_text(each, parameter) for each in value)
    if not fit or not all(each.strip() and not set("{}") & set(each) for each in value):
        rule = f"It must be at most {MOST_TEXTS} printable texts without braces, each of 1 to {parameter.maximum:g} characters."
        raise Refused("wrong-type", field, rule, "See GET /v1/catalog.")
    if len({each.lower() for each in value}) < len(value):
        raise Refused("out-of-bounds", field, "It names a text twice.", "Name each once.")
    return list(value)


def _named(group: str, name: str) -> str:
    """A field as a problem may repeat it: what does not look like a name of ours may be personal data."""
    return f"{group}.{name}" if re.fullmatch(r"[a-z][a-z0-9_]{0,40}", name) else group


def _bounds(parameter: Parameter) -> str:
    low = (
        ""
        if parameter.minimum is None
        else f"{'above' if parameter.exclusive_minimum else 'at least'} {parameter.minimum:g}"
    )
    high = "" if parameter.maximum is None else f"at most {parameter.maximum:g}"
    return " and ".join(part for part in (low, high) if part)
