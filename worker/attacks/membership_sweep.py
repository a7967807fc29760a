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

from worker.attacks import CannotAttack, Found, Progress, Recognised, auc, auc_interval, balanced_accuracy, rates_of

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
