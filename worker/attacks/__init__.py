"""Attacks on a network that has forgotten. Each file of this package is one attack.

    attack(network, family, forget, retain, unseen, recognised, *, hyper-parameters, generator, progress) -> Found

An attack never changes `network`; what it moves is a copy. `recognised(network, samples)` says of each sample, (N,) bool,
whether the network still answers it with its own label; a generator draws one image per sample, and the judge answers.
`unseen` holds images that were never trained on, or None. Figures are counts, so that an interval can be put on each.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Samples

Recognised = Callable[[nn.Module, "Samples"], Tensor]
Progress = Callable[[int, int], None]  # done, total; may raise to stop


class Count(TypedDict):
    success: int
    total: int


class Found(TypedDict):
    """What one attack found on one network. Success is the attacker's: what was to be forgotten is recognised."""

    before: Count | None  # without the attack; None where there is nothing to compare with
    after: Count  # under the attack, at its strongest or at its end
    rows: list[dict[str, Any]]  # every measured moment, copy, template or threshold, each with its own counts
    budget: dict[str, int]  # what the attacker had: images, steps, tries


class CannotAttack(ValueError):
    """Why this attack cannot be made on what it was given; no label, name or id."""


def counted(hits: Tensor) -> Count:
    return {"success": int(hits.sum()), "total": len(hits)}


def count_of(row: dict[str, Any]) -> Count:
    return {"success": row["success"], "total": row["total"]}


def pick(samples: "Samples", rows: Tensor) -> "Samples":
    return samples._replace(x=samples.x[rows], y=samples.y[rows])


def at_most(samples: "Samples", most: int, generator: torch.Generator) -> "Samples":
    """`most` of them, drawn without replacement; all where there are no more."""
    return pick(samples, torch.randperm(len(samples.y), generator=generator)[:most])


def halves(samples: "Samples", generator: torch.Generator) -> tuple["Samples", "Samples"]:
    """Two random halves that share no sample; the first is the smaller one."""
    order = torch.randperm(len(samples.y), generator=generator)
    middle = len(order) // 2
    return pick(samples, order[:middle]), pick(samples, order[middle:])
