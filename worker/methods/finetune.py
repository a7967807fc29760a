"""Finetune: go on training on the retain set, and let the forget set fade.

The baseline "FT" after Warnecke, Pirch, Wressnegger, Rieck, Machine Unlearning of Features and Labels, NDSS 2023, arXiv
2108.11577, in the form that Fan et al. (SalUn, ICLR 2024, arXiv 2310.12508) compare with; `mask="salient"` adds their mask.

    Input   weights theta_o, forget set D_f, retain set D_r
    1.  with a mask: m <- 1 on the rho largest entries of | grad of sum over D_f of l(theta; x, y), at theta_o |
    2.  minimise l(theta; D_r), over the entries with m = 1
    3.  where m = 0, theta = theta_o, bit for bit

Symbols: theta `network`, D_f `forget`, D_r `retain`, rho `mask_fraction`, l `family.training_loss`.

Without a mask, D_f is never read. The network stays in eval mode: no dropout, and batch-norm statistics as in theta_o
unless `batch_norm="train"`. `schedule`: "epochs" makes passes over D_r; "steps" draws a batch for each step.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Family, Samples

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: a weight's bits, seen as an integer


def unlearn(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    *,
    mask: Literal["none", "salient"] = "none",
    mask_fraction: float = 0.5,
    batch_norm: Literal["frozen", "train"] = "frozen",
    schedule: Literal["epochs", "steps"] = "epochs",
    epochs: int = 10,
    steps: int = 1000,
    batch_size: int = 256,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip: float = 0.0,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, retain, "retain")
    theta = list(family.trainable(network).values())
    network.eval()
    # 1.
    bits: list[Tensor] | None = None
    if mask == "salient":
        family.check(network, forget, "forget")
        g = [each.abs_() for each in forget_gradient(network, theta, family, forget, batch_size, generator)]
        bits = [-m.to(torch.int8) for m in saliency_mask(g, mask_fraction)]
    # 2.
    mover = make_optimizer(theta, optimizer, learning_rate, momentum)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    train_batch_norm(network, batch_norm == "train")
    sizes = 0, len(retain.y)
    total = epochs * sum(math.ceil(size / batch_size) for size in sizes) if schedule == "epochs" else steps
    draw = epoch_batches if schedule == "epochs" else step_batches
    for step, _, rows, settled in draw(sizes, batch_size, total, resume(moving), generator):
        loss = family.training_loss(network, retain.x[rows], retain.y[rows], generator)
        mover.zero_grad()
        loss.backward()
        # 3.
        masked_step(mover, theta, bits, weight_decay, clip)
        on_step(step, total, {"retain_loss": loss.detach()}, moving if settled else None)
    mover.zero_grad()
    train_batch_norm(network, False)


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


def make_optimizer(
    theta: list[nn.Parameter], optimizer: str, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    """Without weight decay: `masked_step` adds it, so that the mask applies to it too."""
    if optimizer == "adam":
        return torch.optim.Adam(theta, lr=learning_rate)
    return torch.optim.SGD(theta, lr=learning_rate, momentum=momentum)


def train_batch_norm(network: nn.Module, on: bool) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(on)


Batch = tuple[int, Tensor | None, Tensor | None, bool]  # step, rows of D_f, rows of D_r, generator at rest


def epoch_batches(
    sizes: tuple[int, int], batch_size: int, total: int, done: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Epochs of all D_f batches, then all D_r batches, each in a fresh order; at rest where an epoch ends.

    The batches of a set are as equal as can be, so that none is a single leftover image.
    """
    per_epoch = sum(math.ceil(size / batch_size) for size in sizes)
    for start in range(done, total, per_epoch):
        orders = [torch.randperm(size, generator=generator) for size in sizes]
        parts = [order.tensor_split(math.ceil(len(order) / batch_size)) if len(order) else () for order in orders]
        of_forget, of_retain = parts
        for step, rows in enumerate(of_forget + of_retain, start + 1):
            in_forget = step - start <= len(of_forget)
            yield step, rows if in_forget else None, None if in_forget else rows, step - start == per_epoch


def step_batches(
    sizes: tuple[int, int], batch_size: int, total: int, done: int, generator: torch.Generator
) -> Iterator[Batch]:
    """One D_f batch and one D_r batch per step, drawn without replacement inside a batch; always at rest."""
    for step in range(done + 1, total + 1):
        of_forget, of_retain = (torch.randperm(size, generator=generator)[:batch_size] for size in sizes)
        yield step, of_forget if sizes[0] else None, of_retain if sizes[1] else None, True


def masked_step(
    mover: torch.optim.Optimizer,
    theta: list[nn.Parameter],
    bits: list[Tensor] | None,
    weight_decay: float,
    clip: float,
) -> None:
    """One optimizer step in which an entry with m = 0 has gradient, momentum and change of exactly 0.

    `bits` holds -m: the gradient's own bits ANDed with all ones or none, which also turns -0.0 and NaN into 0.0, and
    costs far less than a masked fill.
    """
    if clip > 0:
        nn.utils.clip_grad_norm_(theta, clip)
    for index, weight in enumerate(theta):
        if weight.grad is None:
            continue
        if weight_decay > 0:
            weight.grad.add_(weight.detach(), alpha=weight_decay)
        if bits is not None:
            weight.grad.view(INTEGERS[weight.element_size()]).bitwise_and_(bits[index])
    mover.step()
