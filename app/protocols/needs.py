"""Whether a protocol can run on a model: all that it names, against the server's catalogue and what is registered."""

from typing import Any

from app.errors import Refused
from app.protocols.schema import Protocol

SEE = "See GET /v1/catalog."


def check(protocol: Protocol, model: dict[str, Any], catalogue: dict[str, Any]) -> None:
    _check_names(protocol, model["family"], catalogue)
    needs, family = protocol.needs, model["family"]
    evaluation = settings(protocol, model)
    attacks = evaluation.get("attacks", {})
    for role in needs.sets:
        if model[role] is None:
            raise _refused("needs.sets", f"The model has no {role} set.", "Upload one and PATCH the model.")
    if needs.judge and model["judge"] is None:
        raise _refused("needs.judge", "The model has no judge.", "Register an image_classifier and PATCH the model.")
    for part in needs.evaluators:
        if part not in model["evaluators"]:
            rule = f"The model has no evaluator {part}."
            raise _refused("needs.evaluators", rule, "Register it and PATCH the model's evaluators.")
    for name in needs.evaluation:
        if not evaluation.get(name):
            rule = f"The model's evaluation has no {name}."
            raise _refused("needs.evaluation", rule, f"PATCH it, or run with --set evaluation.{name}=...")
    for name in needs.attacks:
        if name not in attacks:
            rule = f"The model's evaluation does not name the attack {name}."
            raise _refused("needs.attacks", rule, "PATCH the model's evaluation.attacks.")
    _check_kind(protocol, family, catalogue)


def _check_kind(protocol: Protocol, family: str, catalogue: dict[str, Any]) -> None:
    kind = {"labels": "class_label", "concepts": "concept", "samples": "samples", "split": "dataset"}[
        protocol.forget.by
    ]
    possible = next(each["forget_kinds"] for each in catalogue["families"] if each["name"] == family)
    if kind not in possible:
        raise _refused("forget.by", f"{family} cannot forget by {kind}.", f"Possible here: {', '.join(possible)}.")


def settings(protocol: Protocol, model: dict[str, Any]) -> dict[str, Any]:
    """How outputs of the copies are produced: as the model's, but for what the protocol sets."""
    return {**model["evaluation"], **protocol.evaluation}


def _check_names(protocol: Protocol, family: str, catalogue: dict[str, Any]) -> None:
    if family not in protocol.families:
        rule = f"This protocol is not for {family}."
        raise _refused("families", rule, f"Name a model of {', '.join(protocol.families)}.")
    fit = [each for part in ("metrics", "attacks") for each in catalogue[part] if family in each["families"]]
    names = {each["name"] for each in fit}
    if unknown := [name for name in protocol.figures if name not in names]:
        raise _refused("figures", f"{family} has no figure {unknown[0]}.", SEE)
    if protocol.method == "auto":
        return
    methods = {each["name"]: each for each in catalogue["methods"]}
    if protocol.method not in methods or family not in methods[protocol.method]["families"]:
        raise _refused("method", f"{family} has no method {protocol.method}.", SEE)
    for field in ("recipe", "grid"):
        if unknown := [name for name in getattr(protocol, field) if name not in methods[protocol.method]["parameters"]]:
            raise _refused(f"{field}.{unknown[0]}", f"{protocol.method} has no such parameter.", SEE)


def _refused(field: str, rule: str, remedy: str) -> Refused:
    return Refused("protocol-unfit", field, rule, remedy)
