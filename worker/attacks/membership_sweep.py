"""Membership sweep: every threshold on the true label's confidence, as an attacker who is right rarely but surely uses it.

After Carlini et al., Membership Inference Attacks From First Principles, IEEE S&P 2022, arXiv 2112.03570: an average over all
samples hides the few of which an attacker can be certain, so the true positive rate is given at low false positive rates.

    Input   theta_u, forget set D_f (members), unseen images U
    1.  c(x) = the probability that theta_u gives to x's own label, on D_f and on U
    2.  AUC = P(c of a member > c of an unseen image) + half of the ties, with its interval
    3.  at a false positive rate of 1 % and of 5 %: the share of D_f above every threshold that so few of U exceed,
        and the share below, since forgotten samples also stand out by being unusually unsure
    4.  balanced accuracy: threshold and side are chosen on one half of both sets and counted on the other, and the
        other way round; from the larger set as many are drawn as the smaller one holds, so guessing scores 50

The interval is `auc_interval`'s. With fewer than 100 unseen images "1 %" allows no false
positive at all; `unseen` says how many there are. This is not a shadow-model attack, which finds more.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worker.attacks import CannotAttack, Count, Found, Progress, Recognised, auc, auc_interval, rates_of

if TYPE_CHECKING:
    from worker.families import Family, Samples


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    if unseen is None or min(len(unseen.y), len(forget.y)) < 2:
        raise CannotAttack("It takes two forgotten and two unseen images at least, and so a test set.")
    # 1.
    members, others = confidence(network, family, forget), confidence(network, family, unseen)
    # 2.
    area = auc(members, others)
    low, high = auc_interval(area, len(members), len(others))
    rows: list[dict[str, Any]] = [{"measure": "auc", "value": area, "low": low, "high": high}]
    # 3.
    rows += rates_of(members, others)
    # 4.
    balanced = balanced_accuracy(members, others, generator)
    rows.append({"measure": "balanced_accuracy", **balanced})
    progress(1, 1)
    budget = {"members": len(members), "unseen": len(others)}
    return {"before": None, "after": balanced, "rows": rows, "budget": budget}


def confidence(network: nn.Module, family: "Family", samples: "Samples") -> Tensor:
    module: Any = family
    own = module.labels_of(network, samples.y)[:, None]
    return module.predict(network, samples.x).double().softmax(dim=1).gather(1, own).squeeze(1).cpu()  # type: ignore[no-any-return]


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
