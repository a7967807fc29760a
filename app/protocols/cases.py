"""The requests that a protocol asks for on one model: which labels, samples or images, with which seed and recipe."""

import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from app.client import Lethe
from app.errors import Refused
from app.protocols.schema import Concepts, Labels, Protocol, Samples, Split


@dataclass(frozen=True)
class Division:
    """Labels of a folder of images, divided by a seed."""

    forget: list[str]
    retain: list[str]
    proxy: list[str]


@dataclass(frozen=True)
class Case:
    """One request. `settings` is what it shares with the requests that it is averaged with; `forget` is as in POST
    /v1/requests, and None where a forget set is yet to be uploaded or a concept says it alone."""

    settings: dict[str, Any]
    seed: int
    recipe: dict[str, Any]
    labels: list[str]
    forget: dict[str, Any] | None = None
    division: Division | None = None
    concept: str | None = None  # alone: what is to be forgotten is selected by it


def cases(client: Lethe, protocol: Protocol, model: dict[str, Any], images: Path | None) -> list[Case]:
    """In the order in which they run: by point of the grid, then by seed."""
    if (protocol.forget.by == "split") != (images is not None):
        rule = "A protocol that splits labels needs a folder of images." if images is None else "It splits no folder."
        remedy = "Name one with --images, with a folder for each label." if images is None else "Leave --images out."
        raise Refused("protocol-unfit", "images", rule, remedy)
    by_seed = {seed: _targets(client, protocol.forget, model, images, seed) for seed in protocol.seeds}
    points = [dict(zip(protocol.grid, values, strict=True)) for values in product(*protocol.grid.values())]
    return [
        Case(**{**target, "settings": target["settings"] | point}, seed=seed, recipe=protocol.recipe | point)
        for point in points
        for seed in protocol.seeds
        for target in by_seed[seed]
    ]


def _targets(
    client: Lethe, forget: Labels | Concepts | Samples | Split, model: dict[str, Any], images: Path | None, seed: int
) -> list[dict[str, Any]]:
    if isinstance(forget, Labels):
        chosen = _labels(client, forget, model, seed)
        return [{"settings": {}, "labels": [label], "forget": {"class_label": label}} for label in chosen]
    if isinstance(forget, Concepts):
        return [{"settings": {}, "labels": [each], "concept": each} for each in forget.concepts]
    if isinstance(forget, Samples):
        return _samples(client, forget, model, seed)
    assert images is not None
    division = divide(images, forget, seed)
    return [{"settings": {}, "labels": division.forget, "division": division}]


def _labels(client: Lethe, forget: Labels, model: dict[str, Any], seed: int) -> list[str]:
    known = model["labels"] if forget.of == "model" else _set(client, model, forget.of)["labels"]
    if unknown := [label for label in forget.labels or () if label not in known]:
        rule = f"{len(unknown)} of them are no labels of the {forget.of}."
        raise Refused("protocol-unfit", "forget.labels", rule, "See GET /v1/models/{name}.")
    chosen = forget.labels or known
    return chosen if forget.draw is None else _drawn(chosen, forget.draw, seed, "forget.draw")


def _samples(client: Lethe, forget: Samples, model: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    dataset = _set(client, model, forget.of)["id"]
    rows = client.pages(f"/v1/datasets/{dataset}/samples", limit=200)
    ids = [row["id"] for row in rows if forget.label in (None, row["label"])]
    if not ids:
        raise Refused("protocol-unfit", "forget.label", "No sample of the set has it.", "See the set's sample list.")
    found = []
    for percent in forget.percent:
        count = max(1, round(len(ids) * percent / 100))
        wanted = {"dataset": dataset, "samples": _drawn(ids, count, seed, "forget.percent")}
        labels = [] if forget.label is None else [forget.label]
        found.append({"settings": {"percent": percent}, "labels": labels, "forget": wanted})
    return found


def divide(images: Path, forget: Split, seed: int) -> Division:
    known = sorted(path.name for path in images.iterdir() if path.is_dir())
    if len(known) <= forget.forget + forget.retain:
        rule = f"The folder has {len(known)} labels: none would be left as a proxy."
        raise Refused("protocol-unfit", "forget", rule, "Name fewer to forget and to retain, or a larger folder.")
    drawn = random.Random(seed).sample(known, forget.forget + forget.retain)
    proxy = [label for label in known if label not in drawn]
    return Division(drawn[: forget.forget], drawn[forget.forget :], proxy)


def _drawn(among: list[str], count: int, seed: int, field: str) -> list[str]:
    if count > len(among):
        raise Refused("protocol-unfit", field, f"There are only {len(among)} to draw from.", "Ask for fewer.")
    return random.Random(seed).sample(among, count)


def _set(client: Lethe, model: dict[str, Any], role: str) -> dict[str, Any]:
    if model[role] is None:
        raise Refused("protocol-unfit", "forget.of", f"The model has no {role} set.", "Upload one and PATCH the model.")
    found: dict[str, Any] = client.call("GET", f"/v1/datasets/{model[role]}")
    return found
