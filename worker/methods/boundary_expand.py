"""Boundary expand: train the forget set into a shadow label that does not exist, then take that label away again.

Min Chen, Weizhuo Gao, Gaoyang Liu, Kai Peng, Chen Wang. Boundary Unlearning: Rapid Forgetting of Deep Networks via Shifting the
Decision Boundary. CVPR 2023. arXiv 2303.11570.

    Input   weights theta_o with K labels, forget set D_f
    1.  widen the last layer by one row with fresh weights: label K, the shadow
    2.  minimise l(theta; x, K) over D_f
    3.  prune the row
    4.  the network has theta_o's shapes again, and D_r was never read

Symbols: theta `network`, D_f `forget`, K `family.label_count`, l the cross entropy of `family.logits`.

Where we differ from the released code, and why:
- The row is pruned. SalUn's copy of this baseline leaves it in and reports a network of K + 1 labels.
- The row's first weights are drawn from the job's generator, uniform on (-1/sqrt(d), 1/sqrt(d)) as torch draws a layer's.
- The network stays in eval mode: no dropout, and batch-norm statistics as in theta_o unless `batch_norm="train"`.
"""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Classifier, Samples

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes: a weight's bits, seen as an integer


def unlearn(
    network: nn.Module,
    family: "Classifier",
    forget: "Samples",
    retain: "Samples",
    *,
    batch_norm: Literal["frozen", "train"] = "frozen",
    schedule: Literal["epochs", "steps"] = "epochs",
    epochs: int = 10,
    steps: int = 1000,
    batch_size: int = 256,
    optimizer: Literal["sgd", "adam"] = "sgd",
    learning_rate: float = 1e-5,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip: float = 0.0,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, forget, "forget")
    network.eval()
    # 1.
    labels = family.label_count(network)
    head = last_layer(network, labels)
    narrow = {name: getattr(head, name) for name in ("weight", "bias") if getattr(head, name) is not None}
    widen(head, narrow, generator)
    shadow = torch.full_like(forget.y, labels)
    # 2.
    theta = list(family.trainable(network).values())
    mover = make_optimizer(theta, optimizer, learning_rate, momentum)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    train_batch_norm(network, batch_norm == "train")
    sizes = len(forget.y), 0
    total = epochs * sum(math.ceil(size / batch_size) for size in sizes) if schedule == "epochs" else steps
    draw = epoch_batches if schedule == "epochs" else step_batches
    for step, rows, _, settled in draw(sizes, batch_size, total, resume(moving), generator):
        loss = F.cross_entropy(family.logits(network, forget.x[rows]), shadow[rows])
        mover.zero_grad()
        loss.backward()
        masked_step(mover, theta, None, weight_decay, clip)
        on_step(step, total, {"forget_loss": loss.detach()}, moving if settled else None)
    mover.zero_grad()
    # 3.
    prune(head, narrow)
    train_batch_norm(network, False)


def last_layer(network: nn.Module, labels: int) -> nn.Linear:
    found = [layer for layer in network.modules() if isinstance(layer, nn.Linear) and layer.out_features == labels]
    if not found:
        raise ValueError("network: its last layer is not linear, so no label can be added to it")
    return found[-1]


@torch.no_grad()
def widen(head: nn.Linear, narrow: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    bound = head.in_features**-0.5
    for name, weights in narrow.items():
        row = (2 * torch.rand((1, *weights.shape[1:]), generator=generator) - 1) * bound
        setattr(head, name, nn.Parameter(torch.cat([weights, row.to(weights)])))
    head.out_features += 1


@torch.no_grad()
def prune(head: nn.Linear, narrow: dict[str, nn.Parameter]) -> None:
    """Put the first tensors back, holding what their rows have become."""
    for name, weights in narrow.items():
        weights.copy_(getattr(head, name)[: len(weights)])
        setattr(head, name, weights)
    head.out_features -= 1


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
