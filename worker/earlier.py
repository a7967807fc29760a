"""What earlier requests of the model asked, for the runner to ask again: a new version is held to every promise of its line.

A promise is what the report of a completed request showed: each rule on forgetting that it met, with the value before. Its
other figures on forgetting are asked again, too, for people to see; they bind nobody. Each is asked as it was: with the samples of a registered set, or of an uploaded one that its retention still keeps; else with
registered images of its label; a generator is asked to draw the label. What cannot be asked any more is told with a reason. Labels,
concepts and positions go over the runner's pipe only.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app import catalog
from app.catalog import METRICS, Threshold, met_by_all
from app.errors import Refused
from app.privacy.sealing import KeyGone, Keyring, SealBroken
from app.privacy.selection import (
    Index,
    by_caption,
    concept_number,
    forgotten,
    job_labels,
    label_map,
    labels_whole,
    read_wish,
)
from app.records import checkpoint as checkpoints
from app.records.checkpoint import Checkpoint
from app.records.dataset import Dataset
from app.records.model import Model
from app.records.request import Request
from app.storage import BlobMissing
from worker.rules import COMPARES, NEEDS

Read = Callable[[Dataset], Index]
COPIED = ("metric", "value", "before", "threshold")  # of a report's row


@dataclass(frozen=True)
class Earlier:
    """A request that a version of the parent's line was made for."""

    request: Request
    report: dict[str, Any]
    source: Dataset | None  # the set that it forgot from; None where the base showed what was to be forgotten


@dataclass(frozen=True)
class Promise:
    """`told`: for the runner. `whole`: names of the labels that the request forgot whole; secret."""

    told: dict[str, Any]
    whole: frozenset[str]


def of_line(session: Session, parent: Checkpoint) -> list[Earlier]:
    """Oldest first."""
    found = []
    for version in checkpoints.line(session, parent):
        if version.request_id is not None:
            request = session.get_one(Request, version.request_id)
            source = session.get(Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
            found.append(Earlier(request, version.report, source))
    return found


def promise(one: Earlier, model: Model, registered: list[Dataset], keyring: Keyring, read: Read) -> Promise:
    """`registered`: the model's sets, where images of a label are looked for."""
    told = {
        "request": one.request.id,
        "kind": one.report.get("kind", "samples"),
        "rules": _rules(one.report.get("figures", []), one.report.get("kind", "samples")),
        "reason": None,
    }
    try:
        what = read_wish(one.request, keyring)
    except (KeyGone, SealBroken):
        return Promise({**told, "reason": "key_destroyed"}, frozenset())
    try:
        asked = _asked(one, model, what, registered, keyring, read)
    except Refused:  # a label that the model has no more, or samples that its set has no more
        return Promise({**told, "reason": "samples_gone"}, frozenset())
    whole = frozenset(asked["names"][number] for number in asked.pop("whole"))
    return Promise({**told, **asked}, whole)


def _rules(figures: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rules on forgetting that were met, but for those that every network meets, then the report's other figures on
    forgetting, without a rule; of those that need more than what was forgotten only such as the policy asked for. One that
    the request's own base met is promised all the same: of a label forgotten before, each request promises by itself."""
    showing = [row for row in figures if row["metric"] in METRICS and METRICS[row["metric"]].shows_forgetting]
    met = [row for row in showing if row.get("threshold") and row["passed"] and not met_by_all(_rule(row), kind)]
    promised = {row["metric"] for row in met}
    others = {
        row["metric"]: {**row, "threshold": None}
        for row in showing
        if row["metric"] not in promised and (row.get("threshold") or row["metric"] not in {*COMPARES, *NEEDS})
    }
    return [{name: row[name] for name in COPIED} for row in (*met, *others.values())]


def _rule(row: dict[str, Any]) -> Threshold:
    return Threshold(row["metric"], **row["threshold"])


def _asked(
    one: Earlier, model: Model, what: dict[str, Any], registered: list[Dataset], keyring: Keyring, read: Read
) -> dict[str, Any]:
    """Which labels, under which names, and of which images: those that the request named, else others of its label."""
    family = catalog.FAMILIES[model.family]
    index, key = _kept(one, keyring, read)
    names = job_labels(model, index, what)
    if family.labels_from == "sets":
        names += [label for label in what.get("labels") or () if label not in names]
    concept = concept_number(names, what)
    whole = labels_whole(what, names) | ({concept} if concept is not None else set())
    asked = {"names": names, "whole": whole, "concept": concept, "label": min(whole, default=None)}
    if family.generates:
        return {**asked, "probe": "generated"}
    if one.source is not None and index is not None and (positions := forgotten(index, what, names)):
        return {**asked, "probe": "samples", "set": _set(one.source, index, names, what, positions, key)}
    for dataset in registered:
        index = read(dataset)
        numbers = label_map(index["labels"], names, "set", secret=True)
        alike = [at for at, sample in enumerate(index["samples"]) if numbers[sample["label"]] in whole]
        if alike:
            return {**asked, "probe": "label", "set": _set(dataset, index, names, what, alike)}
    uploaded = one.source is not None and one.source.sealed
    return {**asked, "reason": "forget_set_purged" if uploaded else "samples_gone"}


def _kept(one: Earlier, keyring: Keyring, read: Read) -> tuple[Index | None, bytes | None]:
    """Index and key of the set that the request forgot from, if it is still there; a registered one has no key."""
    if one.source is None or one.source.purged_at is not None:
        return None, None
    try:
        return read(one.source), keyring.key(one.source.key_id) if one.source.key_id else None
    except (KeyGone, SealBroken, BlobMissing):  # purged in this moment
        return None, None


def _set(
    dataset: Dataset,
    index: Index,
    names: list[str],
    what: dict[str, Any],
    positions: list[int],
    key: bytes | None = None,
) -> dict[str, Any]:
    return {
        "blob": dataset.blob,
        "context": f"dataset/{dataset.id}",
        "key": base64.b64encode(key).decode() if key else None,
        "positions": positions,
        "labels": label_map(index["labels"], names, "set", secret=True),
        "by_caption": by_caption(index, what),
    }
