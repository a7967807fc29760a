"""Robustness: the attacks that a model's evaluation names, on the unlearned network, the base and the retrained one.

All of them are attacked alike, from the same seed and with the same images, so that the unlearned network's figure stands
between what the base gives away and what was never learned. Whoever cannot be attacked so is listed with the reason.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from app.catalog import ATTACKS, FAMILIES
from worker import by_name, intervals
from worker.attacks import CannotAttack, Found, Shadow
from worker.families import Samples, labels_of
from worker.judge import Judge
from worker.kept import forgotten_before, without
from worker.load import Material

Advance = Callable[[int, int], None]  # done, total


def sides_of(material: Material, network: nn.Module) -> dict[str, nn.Module]:
    found = {"unlearned": network, "base": material.base.network}
    return found | ({"reference": material.reference.network} if material.reference else {})


def attack(
    specification: Mapping[str, Any],
    material: Material,
    network: nn.Module,
    judge: Judge | None,
    name: str,
    progress: Advance,
) -> dict[str, Any]:
    """One attack on each side, as a row of the report; `value` is None where it could not be made."""
    settings, kind = specification["evaluation"], FAMILIES[specification["base"]["family"]]
    row = {**described(name), "settings": settings["attacks"][name], "seed": int(settings.get("seed", 0))}
    try:
        found = attack_all(specification, material, sides_of(material, network), judge, name, progress)
    except CannotAttack as why:
        return {**row, "reason": str(why)}
    after = found["unlearned"]["after"]
    return {
        **row,
        "value": round(100.0 * after["success"] / after["total"], 6),
        "interval": intervals.of_share(after["success"], after["total"]),
        "n": after["total"],
        "budget": found["unlearned"]["budget"],
        "evaluators": [judge.digest] if judge and kind.needs_judge else [],
        "sides": {
            side: {key: with_intervals(value) for key, value in each.items() if key != "budget"}
            for side, each in found.items()
        },
    }


def with_intervals(found: Any) -> Any:
    """What an attack found, with an interval beside each count in it that has a total."""
    if isinstance(found, list):
        return [with_intervals(each) for each in found]
    if not isinstance(found, dict):
        return found
    told = {key: with_intervals(value) for key, value in found.items()}
    return {**told, "interval": intervals.of_share(found["success"], found["total"])} if found.get("total") else told


def attack_all(
    specification: Mapping[str, Any],
    material: Material,
    sides: Mapping[str, nn.Module],
    judge: Judge | None,
    name: str,
    progress: Advance,
) -> dict[str, Found]:
    """What the attack finds on each side, each time from a fresh generator of the same seed."""
    settings, family = specification["evaluation"], material.base.family
    parameters = dict(settings["attacks"][name])
    if ATTACKS[name].shadows:  # networks in the place of their names
        parameters["shadows"] = shadows_of(material, specification)
    answers = by_name.answers(FAMILIES[specification["base"]["family"]].answers)
    retain, unseen = (
        without(material.retain, specification, material.base.network),
        unseen_images(material, specification),
    )
    return {
        side: by_name.attack(name).attack(
            network,
            family,
            material.forget,
            retain,
            unseen,
            partial(answers.recognised, family, settings, judge),
            **parameters,
            generator=torch.Generator().manual_seed(int(settings.get("seed", 0))),
            progress=lambda done, total, at=index: progress(at * total + done, len(sides) * total),
        )
        for index, (side, network) in enumerate(sides.items())
    }


def described(name: str) -> dict[str, Any]:
    """A row of the report before anything was measured."""
    attack = ATTACKS[name]
    return {
        "attack": name,
        "title": attack.title,
        "value": None,
        "n": 0,
        "unit": "%",
        "direction": attack.direction,
        "threshold": None,
        "passed": None,
        "n_needed": None,
    }


def unseen_images(material: Material, specification: Mapping[str, Any]) -> Samples | None:
    """The test set, without labels that this or an earlier request forgets whole: what the membership metrics compare with."""
    test = material.test
    if test is None:
        return None
    kept = unseen_rows(material, test, specification)
    return Samples(test.x[kept.to(test.x.device)], test.y[kept])


def unseen_rows(material: Material, test: Samples, specification: Mapping[str, Any]) -> Tensor:
    gone = forgotten_before(specification).to(test.y.device)
    if specification["kind"] == "class_label":
        own = labels_of(material.base.network, material.forget.y).to(test.y.device)
        gone = torch.cat([gone, own])
    return ~torch.isin(test.y, gone)


def shadows_of(material: Material, specification: Mapping[str, Any]) -> list[Shadow]:
    """The shadows, and what they know of the unseen images alone."""
    if material.test is None:
        return list(material.shadows)
    kept = unseen_rows(material, material.test, specification).cpu()
    return [shadow._replace(knows_unseen=shadow.knows_unseen[kept]) for shadow in material.shadows]
