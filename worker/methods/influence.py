"""Influence unlearning: one Newton-type step to where training without the forget set would have ended.

The baseline "IU" after Pang Wei Koh, Percy Liang, Understanding Black-box Predictions via Influence Functions, ICML 2017, arXiv
1703.04730, and Zachary Izzo, Mary Anne Smart, Kamalika Chaudhuri, James Zou, Approximate Data Deletion from Machine Learning
Models, AISTATS 2021, arXiv 2002.10077, with the Fisher matrix of WoodFisher (Singh, Alistarh, NeurIPS 2020, arXiv 2004.14340) as
SalUn (Fan et al., ICLR 2024, arXiv 2310.12508) compares with; `mask="salient"` adds the mask of SalUn.

    Input   weights theta_o, forget set D_f, retain set D_r, step alpha, damping lambda
    1.  v     <- n_f / (n_f + n_r) * (grad l(theta_o; D_f) - grad l(theta_o; D_r))        gradients of mean losses
    2.  H u   <- lambda u + mean over m images of D_r of g_i (g_i . u),  g_i their gradients: the empirical Fisher matrix
    3.  delta <- H^-1 v, by conjugate gradients
    4.  theta <- theta_o + alpha * delta over the entries with m = 1                        all, without a mask
    5.  where m = 0, theta = theta_o, bit for bit

Symbols: theta `network`, D_f `forget`, D_r `retain`, m (a number) `fisher_samples`, alpha `alpha`, lambda `damping`, m (a mask) the
`mask_fraction` largest entries of | grad of sum over D_f of l(theta_o) |, l `family.training_loss`.

v is how the gradient at theta_o changes when D_f leaves the mean, so that alpha = 1 is the influence function's own step.

Where we differ from the released code, and why:
- H^-1 v is solved for. The release's recursion keeps one vector, which stays parallel to the first image's gradient whatever
  follows: its inverse is the identity but for that one direction. Keeping what WoodFisher's recursion needs costs m copies of
  the weights; conjugate gradients read m gradients once for each of `iterations` products, and keep none.
- The m images are drawn from D_r, not its first thousand.
"""

from collections.abc import Callable
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
    mask: Literal["none", "salient"] = "none",
    mask_fraction: float = 0.5,
    alpha: float = 1.0,
    damping: float = 1.0,
    fisher_samples: int = 1000,
    iterations: int = 10,
    batch_size: int = 256,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> "Trace":
    family.check(network, forget, "forget")
    family.check(network, retain, "retain")
    network.eval()
    theta = list(family.trainable(network).values())
    # 1.
    of_forget = forget_gradient(network, theta, family, forget, batch_size, generator)
    of_retain = forget_gradient(network, theta, family, retain, batch_size, generator)
    share = len(forget.y) / (len(forget.y) + len(retain.y))
    v = share * (flat(of_forget) - flat(of_retain))
    # 2.
    chosen = torch.randperm(len(retain.y), generator=generator)[:fisher_samples]
    x, y = retain.x[chosen], retain.y[chosen]

    def product(u: Tensor) -> Tensor:
        return damping * u + fisher_product(network, theta, family, x, y, u, generator)

    # 3.
    delta, residual, size = torch.zeros_like(v), v.clone(), v.norm()
    direction, square = residual.clone(), residual.dot(residual)
    for step in range(1, iterations + 1):
        if square > 0:
            delta, residual, direction, square = conjugate_step(product, delta, residual, direction, square)
        on_step(step, iterations, {"residual": square.sqrt() / size.clamp(min=torch.finfo(size.dtype).tiny)}, None)
    # 4.
    m = saliency_mask([each.abs_() for each in of_forget], mask_fraction) if mask == "salient" else None
    newton_step(theta, alpha * delta, m)
    return {"residual": float(square.sqrt() / size) if size > 0 else 0.0, "moved": float(alpha * delta.norm())}


def forget_gradient(
    network: nn.Module,
    theta: list[nn.Parameter],
    family: "Family",
    forget: "Samples",
    batch_size: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """The gradient of the mean training loss over D_f, in float32; as large as the sum's, up to a factor."""
    total = [torch.zeros_like(weight, dtype=torch.float32) for weight in theta]
    for x, y in zip(forget.x.split(batch_size), forget.y.split(batch_size), strict=True):
        loss = family.training_loss(network, x, y, generator) * (len(y) / len(forget.y))
        for running, gradient in zip(total, torch.autograd.grad(loss, theta, allow_unused=True), strict=True):
            if gradient is not None:
                running.add_(gradient)
    return total


def saliency_mask(g: list[Tensor], mask_fraction: float) -> list[Tensor]:
    """True on exactly floor(mask_fraction * n) of the n entries: the largest; among equals, the first."""
    pool = torch.cat([each.flatten() for each in g])  # (n,)
    if not bool(torch.isfinite(pool.sum())):
        raise ValueError("forget: the gradient of its loss is not finite")
    count = int(mask_fraction * len(pool))
    if count == 0:
        return [torch.zeros_like(each, dtype=torch.bool) for each in g]
    threshold = pool.kthvalue(len(pool) - count + 1).values
    mask = pool > threshold
    equal = (pool == threshold).nonzero().flatten()
    mask[equal[: count - int(mask.sum())]] = True
    parts = mask.split([each.numel() for each in g])
    return [part.reshape(each.shape).clone() for part, each in zip(parts, g, strict=True)]


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def fisher_product(
    network: nn.Module,
    theta: list[nn.Parameter],
    family: "Family",
    x: Tensor,
    y: Tensor,
    u: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """mean over images of g (g . u), each g the gradient of one image's loss."""
    total = torch.zeros_like(u)
    for image, label in zip(x.split(1), y.split(1), strict=True):
        loss = family.training_loss(network, image, label, generator)
        found = torch.autograd.grad(loss, theta, allow_unused=True)
        g = flat([torch.zeros_like(w) if each is None else each for each, w in zip(found, theta, strict=True)])
        total.add_(g * (g.dot(u) / len(y)))
    return total


def conjugate_step(
    product: Callable[[Tensor], Tensor], delta: Tensor, residual: Tensor, direction: Tensor, square: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of conjugate gradients towards H delta = v; `square` is the residual's squared norm."""
    turned = product(direction)
    length = square / direction.dot(turned)
    delta, residual = delta + length * direction, residual - length * turned
    smaller = residual.dot(residual)
    return delta, residual, residual + smaller / square * direction, smaller


@torch.no_grad()
def newton_step(theta: list[nn.Parameter], by: Tensor, mask: list[Tensor] | None) -> None:
    """Add `by`, and nothing, not even 0, where the mask is 0."""
    for index, (weight, part) in enumerate(zip(theta, by.split([each.numel() for each in theta]), strict=True)):
        moved = weight + part.reshape(weight.shape)
        weight.copy_(moved if mask is None else torch.where(mask[index], moved, weight))
