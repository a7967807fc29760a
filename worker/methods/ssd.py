"""SSD: shrink the weights that matter far more to the forget set than to all data. No training.

Jack Foster, Stefan Schoepf, Alexandra Brintrup. Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening.
AAAI 2024. arXiv 2308.07707.

    Input   weights theta_o, forget set D_f, retain set D_r, selection alpha, dampening lambda
    1.  I_S <- mean over batches of S of (grad l(theta_o; batch))^2, entry by entry         for S = D_f and S = D_r
    2.  I_D <- the mean of I_f and I_r, weighted by the sets' sizes                         D = D_f and D_r together
    3.  theta <- min(lambda * I_D / I_f, 1) * theta_o   where I_f > alpha * I_D
    4.  elsewhere theta = theta_o, bit for bit, and no weight ever grows

Symbols: theta `network`, D_f `forget`, D_r `retain`, alpha `selection`, lambda `dampening`, l `family.training_loss`.

With `batch_size` 1, I is the diagonal of the Fisher information that the paper names; the release squares the gradient of a
batch's mean loss, which is smaller where the batch's images disagree. The two are not interchangeable: with 1, I_f is at most
(n_f + n_r) / n_f times I_D, so that a selection of 10 chooses nothing once D_f is a tenth of D. The defaults are the release's:
64, and `batch_by="label"`, since its loaders read one label after the other. A contrastive loss (CLIP) needs mixed batches:
"order" takes each set as it comes.

Where we differ from the released code, and why:
- The importance of D is put together from D_f's and D_r's: D_f is passed over once, not twice.
- Nothing is drawn by chance, and batches of a set are of equal size.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Family, Samples, Trace

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]


def unlearn(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    *,
    selection: float = 10.0,
    dampening: float = 1.0,
    batch_by: Literal["label", "order"] = "label",
    batch_size: int = 64,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> "Trace":
    family.check(network, forget, "forget")
    family.check(network, retain, "retain")
    network.eval()
    theta = list(family.trainable(network).values())
    # 1.
    sizes, step = [len(forget.y), len(retain.y)], 0
    total = sum(math.ceil(size / batch_size) for size in sizes)
    importance = [[torch.zeros_like(weight) for weight in theta] for _ in sizes]
    for samples, name, squares in zip((forget, retain), ("forget_loss", "retain_loss"), importance, strict=True):
        for loss, share in batch_losses(network, family, samples, batch_by, batch_size, generator):
            add_squares(squares, loss, theta, share)
            step += 1
            on_step(step, total, {name: loss.detach()}, None)
    # 2.
    of_forget, of_retain = importance
    weights = [size / sum(sizes) for size in sizes]
    of_all = [weights[0] * one + weights[1] * other for one, other in zip(of_forget, of_retain, strict=True)]
    # 3.
    counts = [dampen(*each, selection, dampening) for each in zip(theta, of_forget, of_all, strict=True)]
    return {"dampened": sum(counts), "of": sum(weight.numel() for weight in theta)}


def batch_losses(
    network: nn.Module,
    family: "Family",
    samples: "Samples",
    batch_by: str,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, float]]:
    """The mean loss of every batch, and the batch's share of the set. Batches are as equal as can be."""
    order = samples.y.argsort(stable=True) if batch_by == "label" else torch.arange(len(samples.y))
    for rows in order.tensor_split(math.ceil(len(order) / batch_size)):
        yield family.training_loss(network, samples.x[rows], samples.y[rows], generator), len(rows) / len(order)


def add_squares(squares: list[Tensor], loss: Tensor, theta: list[nn.Parameter], share: float) -> None:
    for running, gradient in zip(squares, torch.autograd.grad(loss, theta, allow_unused=True), strict=True):
        if gradient is not None:
            running.addcmul_(gradient, gradient, value=share)


@torch.no_grad()
def dampen(weight: nn.Parameter, of_forget: Tensor, of_all: Tensor, selection: float, dampening: float) -> int:
    """Shrink, in place, the entries that D_f needs more than `selection` times as much as D; how many they are."""
    chosen = of_forget > selection * of_all
    factor = (dampening * of_all / of_forget.where(chosen, 1.0)).clamp(max=1.0)
    weight.copy_(torch.where(chosen, weight * factor, weight))
    return int(chosen.sum())
