"""What a request selects: the set to forget from, and how much of it, once every rule on the choice holds.

A wish names an uploaded set, samples, a label, or a concept alone. For a concept, the first registered set that has samples
of it; where none has, a generator's base shows it when the job runs. `app/privacy/selection.py` holds the rule itself.
"""

from dataclasses import dataclass
from typing import Any

from app import catalog
from app.deadlines import Regime
from app.deployment import Deployment
from app.errors import NotFound, Refused
from app.evaluators import real_labels
from app.privacy.concept import naming, words
from app.privacy.fingerprints import in_order, marks_of
from app.privacy.sealing import KeyGone
from app.privacy.selection import Index, about, check, job_labels, label_map, labels_whole, read_index, rule_of, select
from app.records.dataset import Dataset
from app.records.model import Model
from app.storage import BlobMissing


@dataclass(frozen=True)
class Wish:
    """A deletion request as it was posted; without dataset, samples and class_label the concept alone selects.

    `generate`: how many images the worker makes of the concept, and to keep, where no registered set has any.
    """

    model: str
    concept: str | None
    dataset: str | None
    samples: list[str] | None
    class_label: str | None
    generate: dict[str, int]
    method: str
    recipe: dict[str, Any]
    seed: int
    reference: str | None
    external_id: str | None
    requested_at: float | None
    due_at: float | None
    regime: Regime = Regime.OTHER


@dataclass(frozen=True)
class Found:
    """The records that a wish names."""

    model: Model
    reference: Model | None
    sources: list[Dataset]  # the set to forget from; for a concept alone, those to look for it in
    retain: Dataset | None
    train: Dataset | None
    judge: Model | None
    marks: set[str]


@dataclass(frozen=True)
class Choice:
    """What a wish selects. `retained`: how many samples the retain set has beside these, with those that an earlier request
    forgot: a count without them would tell who was forgotten. `labels`: how many labels the forget set has at most. `asked`: what is to be forgotten in one spelling, equal for equal wishes; it is personal data."""

    source: Dataset | None  # None where the base model shows it
    what: dict[str, Any]  # to be sealed
    count: int
    retained: int
    labels: int
    asked: list[str]


def kind_of(wish: Wish) -> str:
    if wish.samples is not None:
        return "samples"
    if wish.class_label is not None:
        return "class_label"
    return "dataset" if wish.dataset is not None else "concept"


def choose(lethe: Deployment, found: Found, kind: str, wish: Wish) -> Choice:
    """The set to forget from, what is to be sealed, and how much that is, once every rule on it holds."""
    family = catalog.FAMILIES[found.model.family]
    source, index = _source(lethe, found, kind, wish)
    whole = [] if wish.class_label is None else [wish.class_label]
    if index is not None and kind == "dataset" and family.by_label:
        whole = _labels_of(found.model, index)  # the family forgets them whole, so none of them may be retained
    what: dict[str, Any] = {
        "kind": kind,
        "concept": wish.concept,
        "named": rule_of(found.model.family, kind, wish.concept),
        "called": _called(found.judge, wish.concept),
        "ids": wish.samples,
        "labels": whole,
        "generate": wish.generate,
    }
    names = job_labels(found.model, index, what)
    if index is not None:
        label_map(index["labels"], names, "forget", secret=True)
    if family.texts and found.judge is not None:
        _check_judge(found.judge, names, "concept" if kind == "concept" else "forget")
        what["keep"] = [label for label in real_labels(found.judge) if not naming(what["named"] or "")(label)]
    retain = None if found.retain is None else _index(lethe, found.retain)
    selection = select(index, retain, what, found.marks, names)
    check(selection, left_out=True)
    if found.train is not None:
        trained_on = (marks_of(sample) for sample in _index(lethe, found.train)["samples"])
        if all(found_marks & selection.fingerprints for found_marks in trained_on):
            raise Refused(
                "whole-training-set",
                "forget",
                "It covers the whole training set.",
                "Name fewer samples, or retire the model.",
            )
    return Choice(
        source,
        what,
        count=wish.generate["forget"] if selection.forget is None else len(selection.forget),
        retained=wish.generate["retain"] if selection.retain is None else len(selection.retain) + selection.left_out,
        labels=_label_count(kind, index, selection.forget),
        asked=_asked(what, index, selection.forget or [], names),
    )


def _label_count(kind: str, index: Index | None, forget: list[int] | None) -> int:
    """What only its caption selects is called by the concept, which may be a label more."""
    if index is None or forget is None:
        return 1
    return len({index["samples"][at]["label"] for at in forget}) + (kind == "concept")


def _asked(what: dict[str, Any], index: Index | None, forget: list[int], names: list[str]) -> list[str]:
    """A concept's words, the label as the model calls it, or else the keyed digests of the images, whatever their order: under
    the oldest living key, so that a rotation of the keys parts no duplicates."""
    if what["kind"] == "concept":
        return words(what["concept"])
    if what["kind"] == "class_label":
        return sorted(names[number] for number in labels_whole(what, names))
    return sorted({in_order(index["samples"][at])[-1] for at in forget}) if index is not None else []


def _called(judge: Model | None, concept: str | None) -> str | None:
    """What the concept is called where it becomes a label: as the judge spells it, if the judge knows it."""
    if judge is None or concept is None:
        return concept
    return next((label for label in real_labels(judge) if words(label) == words(concept)), concept)


def _check_judge(judge: Model, names: list[str], field: str) -> None:
    """A label that is new with this request must be one of the judge's, or nothing could be said of it."""
    if {name.lower() for name in names} <= {label.lower() for label in real_labels(judge)}:
        return
    raise Refused(
        "judge-mismatch",
        field,
        "The model's judge has no label for what is to be forgotten, so forgetting could not be measured.",
        "PATCH the model with a judge that has one, or write the concept as the judge's label.",
    )


def _source(lethe: Deployment, found: Found, kind: str, wish: Wish) -> tuple[Dataset | None, Index | None]:
    """The set to forget from and its index; for a concept alone, the first registered set that has samples of it.

    None when no set has any and the model itself can show what is to be forgotten.
    """
    if kind != "concept":
        return found.sources[0], _index(lethe, found.sources[0])
    concept = wish.concept or ""
    if not words(concept):
        raise Refused("empty-concept", "concept", "It holds no word.", "Name the concept as labels or captions do.")
    for source in found.sources:
        index = _index(lethe, source)
        if about(index, concept):
            return source, index
    if not catalog.FAMILIES[found.model.family].generates:
        raise Refused(
            "concept-not-found",
            "concept",
            "No label or caption of the model's train and retain sets names it.",
            "Write it as they do, or upload a forget set (role=forget) and name that.",
        )
    return None, None


def _index(lethe: Deployment, dataset: Dataset) -> Index:
    """The index of a set; NotFound once the set is purged."""
    try:
        return read_index(dataset, lethe.keyring, lethe.blobs)
    except (KeyGone, BlobMissing):
        raise NotFound("data set") from None


def _labels_of(model: Model, index: Index) -> list[str]:
    """The labels of an uploaded set for a family that forgets by label: what is generated must be judged as one that is
    kept, so a generator forgets one at a time."""
    used = sorted({sample["label"] for sample in index["samples"]})
    if len(used) > 1 and catalog.FAMILIES[model.family].generates:
        raise Refused(
            "many-labels",
            "forget.dataset",
            f"{model.family} forgets one label at a time.",
            "Upload images of one label.",
        )
    return [index["labels"][label] for label in used]
