"""Evaluators beside the judge: which registered models may measure a model, and in which part."""

import json
import re
from typing import Any

from sqlalchemy.orm import Session

from app import catalog, weights
from app.deployment import Deployment
from app.errors import Refused
from app.records import checkpoint as checkpoints
from app.records import model as models
from app.records.model import Model
from app.settings import Settings

REJECT_LABELS = ("none", "reject", "unknown")  # a judge's own label for what is no image of any label


def real_labels(judge: Model) -> list[str]:
    return [label for label in judge.labels if label.lower() not in REJECT_LABELS]


def can_reject(lethe: Deployment, session: Session, judge: Model) -> bool:
    """By a label of its own for that, or by a confidence that its config.json asks for."""
    if any(label.lower() in REJECT_LABELS for label in judge.labels):
        return True
    with lethe.blobs.open(checkpoints.head(session, judge.id).manifest) as file:
        manifest = weights.decode(file.read())
    size = manifest.file("config.json").size
    config = json.loads(b"".join(weights.open_range(manifest, lethe.blobs, "config.json", 0, size)))
    threshold = config.get("reject_below", 0)
    return isinstance(threshold, int | float) and threshold > 0


def resolve_evaluators(
    lethe: Deployment, family: str, named: dict[str, str], evaluation: dict[str, Any]
) -> dict[str, str]:
    """By part, the id of the named model, by name or id; each of the part's family, and knowing what it is asked."""
    check_weights(lethe.settings, evaluation)
    possible = [part for part, known in catalog.EVALUATORS.items() if family in known.families]
    found = {}
    for part, name in named.items():
        field = f"evaluators.{part}" if re.fullmatch(r"[a-z_]{1,40}", part) else "evaluators"
        if part not in possible:
            remedy = f"It can have {', '.join(possible) or 'none'}."
            raise Refused("unknown-evaluator", field, f"{family} has no such evaluator.", remedy)
        wanted = catalog.EVALUATORS[part].family
        with lethe.store.read() as session:
            model = models.find(session, name)
        if model is None or model.family != wanted:
            raise Refused("unknown-evaluator", field, f"It must be a registered {wanted}.", "Register it first.")
        if part == "context":
            _check_contexts(model, evaluation.get("contexts", []), field)
        if part == "detector":
            _check_detector(lethe, model, evaluation, field)
        found[part] = model.id
    return found


def check_weights(settings: Settings, evaluation: dict[str, Any]) -> None:
    """Whoever asks for a famous network needs an operator who gave its weights."""
    for name in catalog.BACKBONES:
        if evaluation.get(name) and getattr(settings, name) is None:
            rule = f"This deployment has no weights of {catalog.BACKBONES[name].title}."
            remedy = f"Ask the operator to set LETHE_{name.upper()}, or leave it out."
            raise Refused("no-weights", f"evaluation.{name}", rule, remedy)


def _check_contexts(judge: Model, contexts: list[str], field: str) -> None:
    if not contexts:
        raise Refused(
            "contexts-missing",
            "evaluation.contexts",
            "A judge of contexts needs to know in which contexts images are drawn.",
            "Name them, each as the judge labels it.",
        )
    if not {each.lower() for each in contexts} <= {label.lower() for label in real_labels(judge)}:
        raise Refused(
            "evaluator-mismatch",
            field,
            "It does not know every text of evaluation.contexts as a label.",
            "Train it on them, or name only contexts that it knows.",
        )


def _check_detector(lethe: Deployment, detector: Model, evaluation: dict[str, Any], field: str) -> None:
    """It needs prompts to look at, at least one label of its own to find, and a way to say that it sees no image."""
    for name, rule, remedy in (
        ("prompts", "A detector needs prompts for which images are drawn.", "List them; docs/protocols.md says how."),
        ("detector_labels", "A detector needs to know which of its labels count.", "Name some of its labels."),
    ):
        if not evaluation.get(name):
            raise Refused(f"{name.replace('_', '-')}-missing", f"evaluation.{name}", rule, remedy)
    known = {label.lower() for label in real_labels(detector)}
    if not {each.lower() for each in evaluation["detector_labels"]} <= known:
        raise Refused(
            "evaluator-mismatch",
            field,
            "It does not know every one of evaluation.detector_labels as a label.",
            "Name labels that it has; a label for what is no image is none.",
        )
    with lethe.store.read() as session:
        rejects = can_reject(lethe, session, detector)
    if not rejects:
        raise Refused(
            "detector-never-rejects",
            field,
            "It must be able to answer that an image is none of its labels, or noise would look clean.",
            "Give it a label 'none', or set reject_below in its config.json, and register it anew.",
        )
