"""l1-sparse: go on training on the retain set under an l1 penalty that fades, so that what only the forget set used dies out.

Jinghan Jia, Jiancheng Liu, Parikshit Ram, Yuguang Yao, Gaowen Liu, Yang Liu, Pranay Sharma, Sijia Liu. Model Sparsity Can
Simplify Machine Unlearning. NeurIPS 2023 (spotlight). arXiv 2304.04934.

    Input   weights theta_o, retain set D_r, penalty gamma
    1.  gamma_k <- gamma * (1 - (k - 1) / K) at step k of K
    2.  minimise l(theta; D_r) + gamma_k * || theta ||_1
    3.  with gamma = 0 it is finetune, bit for bit

Symbols: theta `network`, D_r `retain`, gamma `gamma`, l `family.training_loss`. D_f `forget` is never read.

Where we differ from the released code, and why:
- The penalty falls at every step, not once an epoch, so that a schedule in steps has it too. `gamma_decay="none"` keeps it.
- Its gradient is gamma_k * sign(theta), and 0 at 0: the same subgradient, without a sum over all weights that nobody reads.
- The network stays in eval mode: no dropout, and batch-norm statistics as in theta_o unless `batch_norm="train"`.
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
    gamma: float = 5e-4,
    gamma_decay: Literal["linear", "none"] = "linear",
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
        # 1. and 2.
        add_l1(theta, gamma * (1 - (step - 1) / total) if gamma_decay == "linear" else gamma)
        masked_step(mover, theta, None, weight_decay, clip)
        on_step(step, total, {"retain_loss": loss.detach()}, moving if settled else None)
    mover.zero_grad()
    train_batch_norm(network, False)


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


def add_l1(theta: list[nn.Parameter], gamma: float) -> None:
    """Add the gradient of gamma * || theta ||_1."""
    for weight in theta:
        if weight.grad is not None and gamma > 0:
            weight.grad.add_(weight.detach().sign(), alpha=gamma)


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
