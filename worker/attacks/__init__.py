"""Attacks on a network that has forgotten. Each file of this package is one attack.

    attack(network, family, forget, retain, unseen, recognised, *, hyper-parameters, generator, progress) -> Found

An attack never changes `network`; what it moves is a copy. `recognised(network, samples)` says of each sample, (N,) bool,
whether the network still answers it with its own label; a generator draws one image per sample, and the judge answers. One
that restores images is asked whether it gives the image away, and takes `masks` (N, rows, columns) besides.
`unseen` holds images that were never trained on, or None. One that the catalogue says takes
`shadows` is given them, a sequence of `Shadow`. Figures are counts, so that an interval can be put on each.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Samples

Recognised = Callable[..., Tensor]  # network, samples
Progress = Callable[[int, int], None]  # done, total; may raise to stop


RATES = (1.0, 5.0)  # false positive rates, percent
Z = 1.959963984540054  # 95 %


class Shadow(NamedTuple):
    """A network of the same kind that was trained on a known part of the images."""

    open: Callable[[], nn.Module]
    knows_forget: Tensor  # (N,), bool: whether it was trained on each sample of the forget set
    knows_unseen: Tensor  # (M,), bool: and of the unseen ones


class Count(TypedDict):
    success: int
    total: int


class Found(TypedDict):
    """What one attack found on one network. Success is the attacker's: what was to be forgotten is recognised."""

    before: Count | None  # without the attack; None where there is nothing to compare with
    after: Count  # under the attack, at its strongest
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


def auc(members: Tensor, others: Tensor) -> float:
    """0..1; every pair is compared."""
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members) + torch.searchsorted(ordered, members, right=True)  # twice, per member
    return float(below.sum()) / (2 * len(members) * len(others))


def auc_interval(area: float, members: int, others: int) -> tuple[float, float]:
    """Where |area - t| = z * sqrt(V(t)), V Hanley and McNeil's variance with both sizes replaced by their mean.

    Newcombe's score interval for a Mann-Whitney statistic (method 5; Statistics in Medicine 25, 2006): like Wilson's for a
    share it is never empty, not at 0 or 1 either.
    """

    def outside(t: float) -> bool:
        spread = 1 + ((members + others) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return abs(area - t) > Z * math.sqrt(t * (1 - t) * spread / (members * others))

    ends = []
    for far in (0.0, 1.0):
        near = area
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if outside(middle) else (middle, far)
        ends.append(near)
    return ends[0], ends[1]


def at_rate(members: Tensor, others: Tensor, rate: float) -> tuple[Count, Count]:
    """Members and others above the lowest threshold that at most `rate` percent of the others exceed."""
    allowed = int(rate * len(others) / 100)
    threshold = others.sort(descending=True).values[allowed]
    return counted(members > threshold), counted(others > threshold)


def rates_of(members: Tensor, others: Tensor) -> list[dict[str, Any]]:
    """Rows: at each of RATES the members that stand out above, and below, with the counts of both sides."""
    rows = []
    for rate in RATES:
        for side, sign in (("above", 1), ("below", -1)):
            caught, alarms = at_rate(sign * members, sign * others, rate)
            of_unseen = {"false_positives": alarms["success"], "unseen": alarms["total"]}
            rows.append({"measure": "true_positives", "rate": rate, "side": side, **caught, **of_unseen})
    return rows


def balanced_accuracy(members: Tensor, others: Tensor, generator: torch.Generator) -> Count:
    """Of as many members as others, those that are told rightly by a threshold which was chosen without them."""
    size = min(len(members), len(others))
    sides = [side[torch.randperm(len(side), generator=generator)[:size]] for side in (members, others)]
    folds = [[side[: size // 2] for side in sides], [side[size // 2 :] for side in sides]]
    right = 0
    for chosen_on, told in (folds, folds[::-1]):
        threshold, sign = best_threshold(*chosen_on)
        right += int((sign * told[0] > sign * threshold).sum()) + int((sign * told[1] <= sign * threshold).sum())
    return {"success": right, "total": 2 * size}


def best_threshold(members: Tensor, others: Tensor) -> tuple[float, int]:
    """The threshold, half-way between two confidences, and the side of it (1 above, -1 below) that call most rightly."""
    values = torch.cat([members, others]).unique()  # ascending
    between = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    above = [torch.stack([(side > each).double().mean() for each in between]) for side in (members, others)]
    lead = above[0] - above[1]  # of "above is a member" over guessing
    best = int(lead.abs().argmax())
    return float(between[best]), 1 if lead[best] >= 0 else -1
