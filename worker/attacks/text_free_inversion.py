"""Text-free inversion: does the network still draw what was forgotten once it is told so by no word at all?

After Pham, Marshall, Cohen, Mittal, Hegde, Circumventing Concept Erasure Methods For Text-to-Image Generative Models, ICLR
2024, arXiv 2308.01508, who learn a word for an erased concept by textual inversion (Gal et al., arXiv 2208.01618).

    Input   weights theta_u, forget set D_f
    1.  halve D_f at random; R: some images of the first half, M: the labels of the second
    2.  c = what the denoiser is told of no label, of its own for each label of D_f
    3.  for each step: Adam on l(theta_u; a batch of R under c); nothing moves but c
    4.  at the start and after some of the steps: an image under c for each of M; which are recognised
    5.  of the moments after step 0 the one at which most are counts

Symbols: R's size `images`, the largest M `measured`, l `family.training_loss`. Where they learn one word's embedding, c
is all that the denoiser reads of a label (a prompt's encoding, or the rows of a label table): an attacker with the
weights is bound to no tokenizer, and a text encoder that forgot is passed by.

So many free numbers can also teach something new: a network that never knew the label learns some of it from R, too. How
much the retrained reference draws beside it is what tells remembering from learning again; without it the
figure is an upper bound of what is left.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from worker.attacks import CannotAttack, Found, Progress, Recognised, at_most, count_of, counted, halves

if TYPE_CHECKING:
    from worker.families import Family, Samples

MOMENTS = (0, 20, 50, 100, 200, 500, 1000, 2000)


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    images: int = 10,
    steps: int = 200,
    batch_size: int = 10,
    learning_rate: float = 0.02,
    measured: int = 20,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    if len(forget.y) < 2:
        raise CannotAttack("The forget set holds one sample: none is left to measure on.")
    module: Any = family
    # 1.
    shown, hidden = halves(forget._replace(y=module.labels_of(network, forget.y)), generator)
    shown, hidden = at_most(shown, images, generator), at_most(hidden, measured, generator)
    before = counted(recognised(network, hidden))
    # 2.
    learner = copy.deepcopy(network).eval().requires_grad_(False)
    told, own = module.conditions(learner), shown.y.unique()
    for table in told:
        table[own] = table[module.null_label(learner)].clone()
        table.requires_grad_(True)
    mover = torch.optim.Adam(told, lr=learning_rate)
    rows: list[dict[str, Any]] = []
    for step in range(steps + 1):
        # 3.
        if step > 0:
            batch = at_most(shown, batch_size, generator)
            loss = family.training_loss(learner, batch.x, batch.y, generator)
            for table, gradient in zip(told, torch.autograd.grad(loss, told), strict=True):
                table.grad = torch.zeros_like(table).index_copy(0, own, gradient[own])
            mover.step()
        # 4.
        if step in MOMENTS or step == steps:
            rows.append({"step": step, **counted(recognised(learner, hidden))})
        progress(step + 1, steps + 1)
    # 5.
    most = max(rows[1:], key=lambda row: row["success"])
    numbers = sum(table[own].numel() for table in told)
    budget = {"images": len(shown.y), "steps": steps, "numbers": numbers}
    return {"before": before, "after": count_of(most), "rows": rows, "budget": budget}
