"""Which samples are to be forgotten and which are kept: the one rule by which D_f and D_r never meet.

D_r is the registered retain set without every image whose keyed digest of decoded pixels occurs in the forget set or
on a tombstone of the model. Used by the server, to refuse at POST, and again by the worker when the job starts.
"""

import json
from dataclasses import dataclass
from typing import Any

from app.catalog import FAMILIES
from app.errors import Refused
from app.privacy.sealing import Keyring, unseal
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.storage import Blobs


@dataclass(frozen=True)
class Selection:
    """Positions in the forget source's and the retain set's index, and the forgotten samples' keyed digests."""

    forget: list[int]
    retain: list[int]
    fingerprints: set[str]


def read_index(dataset: Dataset, keyring: Keyring, blobs: Blobs) -> dict[str, Any]:
    """Labels, and per sample its id, label number and keyed digest. A sealed set is opened in memory; KeyGone if purged."""
    with blobs.open(dataset.index_blob) as file:
        raw = file.read()
    if dataset.key_id:
        raw = unseal(keyring.key(dataset.key_id), raw, f"dataset-index/{dataset.id}".encode())
    index: dict[str, Any] = json.loads(raw)
    return index


def read_wish(request: Request, keyring: Keyring) -> dict[str, Any]:
    """What a request names: concept, ids and label. Raises KeyGone when its key was destroyed."""
    what: dict[str, Any] = json.loads(
        unseal(keyring.key(request.key_id), request.sealed, f"request/{request.id}".encode())
    )
    return what


def job_labels(model: Model, source: dict[str, Any]) -> list[str]:
    """The labels that a job knows: the model's, and where labels come from sets, those that only the forget set has."""
    if FAMILIES[model.family].labels_from == "weights":
        return list(model.labels)
    known = dict.fromkeys(model.labels)
    return list(known | dict.fromkeys(source["labels"]))


def select(
    source: dict[str, Any], retain: dict[str, Any], what: dict[str, Any], tombstones: set[str], model_labels: list[str]
) -> Selection:
    """`source` and `retain` are dataset indexes; `what` is the unsealed request: ids, label, or neither (all).

    Sets may call a label by the model's name for it or by its number, so labels are compared as the model's numbers.
    """
    samples = source["samples"]
    forget = list(range(len(samples)))
    wanted: int | None = None
    if what.get("ids") is not None:
        forget = _by_id(samples, what["ids"])
    elif what.get("label") is not None:
        wanted = _number(what["label"], model_labels)
        if wanted is None:
            raise Refused(
                "unknown-label", "forget.class_label", "The model has no such label.", "See GET /v1/models/{name}."
            )
        numbers = label_map(source["labels"], model_labels, "forget.dataset", secret=True)
        forget = [at for at in forget if numbers[samples[at]["label"]] == wanted]
    fingerprints = {samples[at]["fingerprint"] for at in forget}
    gone = fingerprints | tombstones
    kept_numbers = label_map(retain["labels"], model_labels, "retain")
    kept = [
        at
        for at, sample in enumerate(retain["samples"])
        if sample["fingerprint"] not in gone and kept_numbers[sample["label"]] != wanted
    ]
    return Selection(forget, kept, fingerprints)


def check(selection: Selection) -> None:
    """Refuse an empty forget set and one that leaves nothing to keep."""
    if not selection.forget:
        raise Refused(
            "empty-forget-set", "forget", "It selects no sample.", "Name samples or a label that the set has."
        )
    if not selection.retain:
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
