"""Which samples are to be forgotten and which are kept: the one rule by which D_f and D_r never meet.

D_r is the registered retain set without every image whose keyed digest of decoded pixels occurs in the forget set or
on a tombstone of the model, without those of a label that is forgotten whole, and, where a concept is forgotten,
without those whose label or caption names it. Used by the server, to refuse at POST, and again by the worker when
the job starts.
"""

import json
from dataclasses import dataclass
from typing import Any

from app.catalog import FAMILIES
from app.errors import Refused
from app.privacy.concept import naming, words
from app.privacy.fingerprints import marks_of
from app.privacy.sealing import KeyGone, Keyring, unseal
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.storage import Blobs

Index = dict[str, Any]  # labels, and per sample id, label number, keyed digest and caption


@dataclass(frozen=True)
class Selection:
    """Positions in the forget source's and the retain set's index; None where no set is registered and the worker
    generates one. `fingerprints`: all marks of the forgotten samples, and of those that the retain set has of the
    same label or concept, so that no later request trains on them either. `left_out`: how many samples of the retain
    set are not kept for no other reason than that an earlier request forgot them."""

    forget: list[int] | None
    retain: list[int] | None
    fingerprints: set[str]
    left_out: int = 0


def read_index(dataset: Dataset, keyring: Keyring, blobs: Blobs) -> Index:
    """Labels, and per sample its id, label number and keyed digest. A sealed set is opened in memory; KeyGone if purged."""
    with blobs.open(dataset.index_blob) as file:
        raw = file.read()
    if dataset.key_id:
        raw = unseal(keyring.key(dataset.key_id), raw, f"dataset-index/{dataset.id}".encode())
    index: Index = json.loads(raw)
    return index


def read_wish(request: Request, keyring: Keyring) -> dict[str, Any]:
    """What a request names: concept, ids and labels. Raises KeyGone when its key was destroyed."""
    if not request.sealed:
        raise KeyGone("what it named was erased")  # even where an older key folder brought its key back
    what: dict[str, Any] = json.loads(
        unseal(keyring.key(request.key_id), request.sealed, f"request/{request.id}".encode())
    )
    return what


def rule_of(family: str, kind: str, concept: str | None) -> str | None:
    """The concept where it is a rule by words; None where it is a note for people only.

    Whoever names samples one by one means these and no others.
    """
    return concept if FAMILIES[family].texts and kind != "samples" else None


def job_labels(model: Model, source: Index | None, what: dict[str, Any]) -> list[str]:
    """The labels that a job knows: the model's, and where labels come from sets, those that only the forget set has.

    A concept that alone selects is a label itself, if none is called so and captions alone speak of it, or nothing.
    """
    if FAMILIES[model.family].labels_from == "weights":
        return list(model.labels)
    names = list(dict.fromkeys([*model.labels, *(source["labels"] if source else ())]))
    if what.get("kind") != "concept" or concept_number(names, what) is not None:
        return names
    return [*names, what["called"]] if source is None or by_caption(source, what) else names


def concept_number(names: list[str], what: dict[str, Any]) -> int | None:
    """The number of the label that is the concept which alone selects; None when no label is."""
    if what.get("kind") != "concept":
        return None
    wanted = words(what["named"])
    return next((number for number, name in enumerate(names) if words(name) == wanted), None)


def about(index: Index, concept: str) -> list[int]:
    """Positions of the samples that name the concept, by label or by caption."""
    named = naming(concept)
    labels = [named(label) for label in index["labels"]]
    samples = enumerate(index["samples"])
    return [at for at, sample in samples if labels[sample["label"]] or named(sample.get("text") or "")]


def by_caption(index: Index, what: dict[str, Any]) -> list[int]:
    """Those of them whose caption alone does, when a concept alone selects: they are called by the concept."""
    if what.get("kind") != "concept":
        return []
    named = naming(what["named"])
    labels = [named(label) for label in index["labels"]]
    return [at for at in about(index, what["named"]) if not labels[index["samples"][at]["label"]]]


def forgotten(source: Index, what: dict[str, Any], names: list[str]) -> list[int]:
    """Positions in `source` of what the unsealed request names: ids, labels, a concept, or none of these (all)."""
    samples = source["samples"]
    if what.get("ids") is not None:
        return _by_id(samples, what["ids"])
    if what.get("labels"):
        wanted = labels_whole(what, names)
        numbers = label_map(source["labels"], names, "forget.dataset", secret=True)
        return [at for at, sample in enumerate(samples) if numbers[sample["label"]] in wanted]
    return about(source, what["named"]) if what.get("kind") == "concept" else list(range(len(samples)))


def select(
    source: Index | None, retain: Index | None, what: dict[str, Any], tombstones: set[str], names: list[str]
) -> Selection:
    """`source` and `retain` are dataset indexes, None for one that is generated; `what` is the unsealed request, and
    `names` are the job's labels.

    Sets may call a label by its name or by its number, so labels are compared as the job's numbers.
    """
    forget = None if source is None else forgotten(source, what, names)
    fingerprints = {mark for at in forget or () for mark in marks_of(source["samples"][at])} if source else set()
    if retain is None:
        return Selection(forget, None, fingerprints)
    numbers, wanted = label_map(retain["labels"], names, "retain"), labels_whole(what, names)
    same = set(about(retain, what["named"])) if what.get("named") else set()
    same |= {at for at, sample in enumerate(retain["samples"]) if numbers[sample["label"]] in wanted}
    marks = [marks_of(sample) for sample in retain["samples"]]
    others = [at for at, found in enumerate(marks) if not found & fingerprints and at not in same]
    kept = [at for at in others if not marks[at] & tombstones]
    return Selection(forget, kept, fingerprints.union(*(marks[at] for at in same)), len(others) - len(kept))


def check(selection: Selection, left_out: bool = False) -> None:
    """Refuse an empty forget set and one that leaves nothing to keep. With `left_out`, what earlier requests forgot counts as
    kept, so that who asks is not told whom others had forgotten; the job, which is in the audit, fails then."""
    if selection.forget == []:
        raise Refused(
            "empty-forget-set", "forget", "It selects no sample.", "Name samples or a label that the set has."
        )
    if selection.retain == [] and not (left_out and selection.left_out):
        raise Refused(
            "nothing-retained",
            "forget",
            "It covers the whole retain set, so nothing would be left to keep.",
            "Name fewer samples, or register a larger retain set.",
        )


def label_map(labels: list[str], model_labels: list[str], field: str, secret: bool = False) -> list[int]:
    """The model's label number for each of a set's labels: by name, or by number where the name is one."""
    numbers = []
    for position, label in enumerate(labels):
        number = _number(label, model_labels)
        if number is None:
            name = f"label {position}" if secret else f"label {label!r}"
            raise Refused(
                "unknown-label",
                field,
                f"The model has no {name} of this set.",
                f"The model knows {len(model_labels)} labels; name the folders after them or their numbers.",
            )
        numbers.append(number)
    return numbers


def labels_whole(what: dict[str, Any], names: list[str]) -> set[int]:
    """The numbers of the labels that are forgotten whole."""
    numbers = {_number(label, names) for label in what.get("labels") or ()}
    if None in numbers:
        raise Refused(
            "unknown-label", "forget.class_label", "The model has no such label.", "See GET /v1/models/{name}."
        )
    return {number for number in numbers if number is not None}


def _number(label: str, model_labels: list[str]) -> int | None:
    if label in model_labels:
        return model_labels.index(label)
    by_number = label.isdecimal() and len(label) < 10 and int(label) < len(model_labels)
    return int(label) if by_number else None


def _by_id(samples: list[dict[str, Any]], ids: list[str]) -> list[int]:
    position = {sample["id"]: at for at, sample in enumerate(samples)}
    unknown = sum(1 for sample_id in ids if sample_id not in position)
    if unknown:
        raise Refused(
            "unknown-samples",
            "forget.samples",
            f"{unknown} of {len(ids)} ids are not in the set.",
            "See its sample list.",
        )
    return sorted({position[sample_id] for sample_id in ids})
