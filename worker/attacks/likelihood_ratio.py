"""Likelihood ratio: is the network's confidence in a sample that of networks which knew it, or of those which did not?

Carlini, Chien, Nasr, Song, Terzis, Tramer, Membership Inference Attacks From First Principles, IEEE S&P 2022, arXiv
2112.03570, algorithm 1 (the online attack, LiRA).

    Input   theta_u, forget set D_f, unseen images U, shadow networks f_1..f_k and which of D_f and U each was trained on
    1.  phi(p) = log(p / (1 - p)), p the probability of x's own label; for every network and sample
    2.  for each sample: mu_in, sigma_in of phi over the shadows that know it, mu_out, sigma_out over those that do not
    3.  Lambda = N(phi(theta_u); mu_in, sigma_in) / N(phi(theta_u); mu_out, sigma_out)
    4.  AUC of Lambda, true positives at few false ones; those that Lambda > 1 tells rightly, of as many of D_f as of U
    5.  balanced accuracy, as in membership_sweep: threshold and side of Lambda are chosen on one half and counted on the other

A sample is scored where LEAST shadows know it and LEAST do not; the others are left out, and `budget` says how many are not.
With fewer than PER_SAMPLE shadows on either side the spreads are estimated over all samples at once, as the paper advises
where there are few (section VI-C). A network that was overdriven is unsure of
D_f beyond any shadow: Lambda > 1 calls D_f "out" with U and sees nothing, so what counts is 5., where either side betrays.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worker.attacks import (
    CannotAttack,
    Count,
    Found,
    Progress,
    Recognised,
    Shadow,
    auc,
    auc_interval,
    balanced_accuracy,
    rates_of,
)

if TYPE_CHECKING:
    from worker.families import Family, Samples

LEAST = 2  # shadows that know a sample, and that do not
PER_SAMPLE = 32  # of each from which on a sample has spreads of its own
SMALLEST = 1e-6  # spread


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    shadows: Sequence[Shadow],
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    if unseen is None or len(unseen.y) == 0:
        raise CannotAttack("It takes unseen images, and so a test set.")
    if len(shadows) < 2 * LEAST:
        raise CannotAttack(f"It takes {2 * LEAST} shadow networks at least; the evaluation names {len(shadows)}.")
    # 1.
    sets = (forget, unseen)
    own = torch.cat([confidence(network, family, samples) for samples in sets])
    known = torch.stack([torch.cat([shadow.knows_forget, shadow.knows_unseen]) for shadow in shadows])  # (k, N + M)
    phi = torch.empty(known.shape, dtype=torch.float64)
    for at, shadow in enumerate(shadows):
        opened = shadow.open()
        phi[at] = torch.cat([confidence(opened, family, samples) for samples in sets])
        progress(at + 1, len(shadows))
    # 2. and 3.
    ratio = log_ratio(own, phi, known)
    members, others = ratio[: len(forget.y)], ratio[len(forget.y) :]
    members, others = members[members.isfinite()], others[others.isfinite()]
    if min(len(members), len(others)) < 2:
        raise CannotAttack(f"Too few samples are known to {LEAST} shadow networks and unknown to {LEAST} others.")
    # 4.
    area = auc(members, others)
    low, high = auc_interval(area, len(members), len(others))
    rows: list[dict[str, Any]] = [{"measure": "auc", "value": area, "low": low, "high": high}]
    rows += rates_of(members, others)
    rows.append({"measure": "lambda_above_1", **told_rightly(members, others, generator)})
    # 5.
    balanced = balanced_accuracy(members, others, generator)
    rows.append({"measure": "balanced_accuracy", **balanced})
    budget = {"shadows": len(shadows), "members": len(members), "unseen": len(others)}
    return {"before": None, "after": balanced, "rows": rows, "budget": budget}


def confidence(network: nn.Module, family: "Family", samples: "Samples") -> Tensor:
    """phi: the own label's logit less the logarithm of the sum of the others' exponentials; (N,), float64."""
    module: Any = family
    logits, own = module.predict(network, samples.x).double().cpu(), samples.y.cpu()[:, None]
    return (logits.gather(1, own) - logits.scatter(1, own, -torch.inf).logsumexp(1, keepdim=True)).squeeze(1)  # type: ignore[no-any-return]


def log_ratio(own: Tensor, phi: Tensor, known: Tensor) -> Tensor:
    """log Lambda of each sample, (n,), from phi (k, n) of the shadows that know it and do not; nan where they are too few."""
    densities = []
    for chosen in (known, ~known):
        count = chosen.sum(0)
        mean = (phi * chosen).sum(0) / count
        squares = ((phi - mean).square() * chosen).nan_to_num().sum(0)
        many = bool((known.sum(0) >= PER_SAMPLE).all() and ((~known).sum(0) >= PER_SAMPLE).all())
        usable = count >= LEAST
        variance = squares / (count - 1) if many else squares[usable].sum() / (count[usable] - 1).sum()
        spread = variance.sqrt().clamp_min(SMALLEST)
        density = -0.5 * ((own - mean) / spread).square() - spread.log()
        densities.append(density.masked_fill(~usable, torch.nan))
    return densities[0] - densities[1]


def told_rightly(members: Tensor, others: Tensor, generator: torch.Generator) -> Count:
    """By Lambda > 1, of as many members as others."""
    size = min(len(members), len(others))
    sides = [side[torch.randperm(len(side), generator=generator)[:size]] for side in (members, others)]
    return {"success": int((sides[0] > 0).sum()) + int((sides[1] <= 0).sum()), "total": 2 * size}
