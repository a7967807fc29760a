"""Relearning: how fast what was forgotten comes back when a few images of it are shown again.

After the anamnesis index of Chundawat, Tarun, Mandal, Kankanhalli, Zero-Shot Machine Unlearning, IEEE TIFS 2023, arXiv
2201.05629, which counts the steps until the forgotten is known again; here the whole curve is kept.

    Input   weights theta_u, forget set D_f, retain set D_r
    1.  halve D_f and D_r at random; R: some images of the first half of D_f, B: some of the first half of D_r
    2.  M: images of the second half of D_f, K: of the second half of D_r; neither is ever trained on here
    3.  on a copy of theta_u, for each step: Adam on l(theta; a batch of R and as many of B)
    4.  at theta_u and after some of the steps: which of M are recognised, which of K are still
    5.  of the moments after step 0 the one at which most of M are counts: an attacker stops where it suits him

Symbols: R's size `images`, B's size `retain_images`, the largest M and K `measured`, l `family.training_loss`.

Without B every network would soon answer everything with the forgotten label, one that never knew it too: K shows that.
A network that only hides what it knows needs a few steps; one that was retrained without D_f learns from R what R teaches
and no more, so its own curve, at the same images and seed, is what to compare with. Networks stay in eval mode.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worker.attacks import CannotAttack, Found, Progress, Recognised, at_most, count_of, counted, halves

if TYPE_CHECKING:
    from worker.families import Family, Samples

MOMENTS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    images: int = 10,
    retain_images: int = 50,
    steps: int = 50,
    batch_size: int = 10,
    learning_rate: float = 1e-3,
    measured: int = 200,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    if len(forget.y) < 2:
        raise CannotAttack("The forget set holds one sample: none is left to measure on.")
    # 1.
    shown, hidden = halves(forget, generator)
    beside, others = halves(retain, generator)
    shown, beside = at_most(shown, images, generator), at_most(beside, retain_images, generator)
    # 2.
    hidden, others = at_most(hidden, measured, generator), at_most(others, measured, generator)
    # 3.
    learner = copy.deepcopy(network).eval()
    mover = torch.optim.Adam(list(family.trainable(learner).values()), lr=learning_rate)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step > 0:
            mover.zero_grad()
            family.training_loss(learner, *batch(shown, beside, batch_size, generator), generator).backward()
            mover.step()
        # 4.
        if step in MOMENTS or step == steps:
            kept = counted(recognised(learner, others))
            rows.append({"step": step, **counted(recognised(learner, hidden)), "kept": kept})
        progress(step + 1, steps + 1)
    # 5.
    most = max(rows[1:], key=lambda row: row["success"])
    budget = {"images": len(shown.y), "retain_images": len(beside.y), "steps": steps}
    return {"before": count_of(rows[0]), "after": count_of(most), "rows": rows, "budget": budget}


def batch(shown: "Samples", beside: "Samples", batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`batch_size` images to relearn and as many to keep, fewer where there are fewer."""
    parts = [at_most(each, batch_size, generator) for each in (shown, beside)]
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
