"""Retrain: fresh weights, trained on the retain set alone. What every other method is measured against.

Exact unlearning, as long as the fresh weights and the recipe know nothing of the forget set.

    Input   an architecture, retain set D_r
    1.  theta <- fresh weights and statistics
    2.  minimise l(theta; D_r)

Symbols: theta `network`, D_r `retain`, l `family.training_loss`. D_f `forget` is never read.

A fair reference repeats the base's own recipe; the defaults are those of the SalUn release (arXiv 2310.12508) for ResNet-18 on
CIFAR-10 (SGD 0.1, 182 epochs), with the cosine decay that its maintainers name. Batch-norm statistics are trained, dropout
stays off. `schedule`: "epochs" makes passes over D_r; "steps" draws a batch for each step.
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


def unlearn(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    *,
    schedule: Literal["epochs", "steps"] = "epochs",
    epochs: int = 182,
    steps: int = 20000,
    batch_size: int = 256,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay: Literal["none", "cosine"] = "cosine",
    clip: float = 0.0,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, retain, "retain")
    # 1.
    family.reinitialise(network, generator)
    network.eval()
    train_batch_norm(network, True)
    # 2.
    theta = list(family.trainable(network).values())
    mover = make_optimizer(theta, optimizer, learning_rate, momentum, weight_decay)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    sizes = 0, len(retain.y)
    total = epochs * sum(math.ceil(size / batch_size) for size in sizes) if schedule == "epochs" else steps
    draw = epoch_batches if schedule == "epochs" else step_batches
    for step, _, rows, settled in draw(sizes, batch_size, total, resume(moving), generator):
        loss = family.training_loss(network, retain.x[rows], retain.y[rows], generator)
        mover.zero_grad()
        loss.backward()
        if clip > 0:
            nn.utils.clip_grad_norm_(theta, clip)
        remaining = (1 + math.cos(math.pi * (step - 1) / total)) / 2 if decay == "cosine" else 1.0
        for group in mover.param_groups:
            group["lr"] = learning_rate * remaining
        mover.step()
        on_step(step, total, {"retain_loss": loss.detach()}, moving if settled else None)
    mover.zero_grad()
    train_batch_norm(network, False)


def make_optimizer(
    theta: list[nn.Parameter], optimizer: str, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    if optimizer == "adam":
        return torch.optim.Adam(theta, lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.SGD(theta, lr=learning_rate, momentum=momentum, weight_decay=weight_decay)


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
