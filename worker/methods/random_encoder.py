"""Random encoder: push the encoder's output on forgotten images to Gaussian noise.

A baseline of Li, Hsu, Chen, Marculescu, Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351.

    Input   network D(E(T(.))), its encoder at theta_o as the teacher E_0, forget set D_f, retain set D_r, weight alpha
    1.  T hides patches; z ~ N(mean, spread^2) like E_0(T(x_f)), of whose elements these are the mean and the spread
    2.  minimise || E(T(x_r)) - E_0(T(x_r)) ||^2 + alpha * || E(T(x_f)) - z ||^2 over E's weights
    3.  everything outside E = theta_o, bit for bit

Symbols: E `family.encode`, E's weights `theta`, T `family.views`, alpha `alpha`; || . ||^2 is the mean over elements of a feature
tensor, summed over the tensors that the decoder reads. Batches come in pairs, as many forgotten as retained images.

Where we differ: the released code multiplies both terms by the retained half, so that it pushes retained images to noise and
never touches forgotten ones; here x_f is pushed. The network stays in eval mode.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import ImageToImage, Samples

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]


def unlearn(
    network: nn.Module,
    family: "ImageToImage",
    forget: "Samples",
    retain: "Samples",
    *,
    alpha: float = 0.2,
    pattern: Literal["random", "centre_4", "centre_8", "outpainting", "none"] = "random",
    hidden_share: float = 0.75,
    epochs: int = 6,
    batch_size: int = 64,
    learning_rate: float = 5e-5,
    warm_up_epochs: int = 5,
    decay: Literal["none", "cosine"] = "cosine",
    beta2: float = 0.95,
    weight_decay: float = 0.05,
    clip: float = 3.0,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, forget, "forget")
    family.check(network, retain, "retain")
    base, theta = copy.deepcopy(network.eval()), family.encoder(network)
    family.masks(network, 1, pattern, hidden_share, torch.Generator())  # refuses a pattern
    mover = make_optimizer(theta, learning_rate, beta2, weight_decay)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    sizes = len(forget.y), len(retain.y)
    per_epoch = math.ceil(max(sizes) / batch_size)
    total = epochs * per_epoch
    for step, of_forget, of_retain, settled in pair_batches(sizes, per_epoch, total, resume(moving), generator):
        # 1.
        x = torch.cat([retain.x[of_retain], forget.x[of_forget]])
        mask = family.masks(network, len(x), pattern, hidden_share, generator)
        views = family.views(network, x, mask, generator)
        wanted = gaussian_targets(base, family, views, len(of_retain), generator)
        # 2.
        retain_loss, forget_loss = distances(family.encode(network, views), wanted, len(of_retain))
        rate = learning_rate * rate_share(step, total, warm_up_epochs * per_epoch, decay)
        take_step(mover, retain_loss + alpha * forget_loss, rate, clip)
        figures = {"retain_loss": retain_loss.detach(), "forget_loss": forget_loss.detach()}
        on_step(step, total, figures, moving if settled else None)
    network.zero_grad()  # the time embedding has one too, and stays
    # 3.
    frozen(network, base, theta)


def make_optimizer(
    theta: dict[str, nn.Parameter], learning_rate: float, beta2: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW whose weight decay spares norms and biases."""
    groups = [
        {"params": [weight for weight in theta.values() if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in theta.values() if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2))


def pair_batches(
    sizes: tuple[int, int], per_epoch: int, total: int, done: int, generator: torch.Generator
) -> Iterator[tuple[int, Tensor, Tensor, bool]]:
    """Step, rows of D_f and rows of D_r, as many of either; in an epoch the longer set goes round once, the shorter again and
    again. The generator is at rest where an epoch ends."""
    for start in range(done, total, per_epoch):
        orders = []
        for size in sizes:
            rounds = math.ceil(max(sizes) / size)
            order = torch.cat([torch.randperm(size, generator=generator) for _ in range(rounds)])
            orders.append(order[: max(sizes)].tensor_split(per_epoch))
        for step, (of_forget, of_retain) in enumerate(zip(*orders, strict=True), start + 1):
            yield step, of_forget, of_retain, step - start == per_epoch


@torch.no_grad()
def gaussian_targets(
    base: nn.Module, family: "ImageToImage", views: tuple[Tensor, ...], retained: int, generator: torch.Generator
) -> list[Tensor]:
    """What the teacher says of the first `retained` views, and Gaussians of its answers' mean and spread for the others."""
    wanted = family.encode(base, views)
    for each in wanted:
        z = torch.randn(each[retained:].shape, generator=generator).to(each.device)
        each[retained:] = each[retained:].mean() + each[retained:].std() * z
    return wanted


def distances(features: list[Tensor], wanted: list[Tensor], retained: int) -> tuple[Tensor, Tensor]:
    """Squared error of the first `retained` rows and of the others, each a mean over elements, summed over the tensors."""
    squares = [(one - two).square() for one, two in zip(features, wanted, strict=True)]
    halves = [[each[:retained].mean() for each in squares], [each[retained:].mean() for each in squares]]
    return torch.stack(halves[0]).sum(), torch.stack(halves[1]).sum()


def rate_share(step: int, total: int, warm_up: int, decay: str) -> float:
    """Rising in a straight line over the warm-up; then 1, or half a cosine down to nearly 0."""
    if step <= warm_up:
        return step / warm_up
    return 1.0 if decay == "none" else 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up + 1)))


def take_step(mover: torch.optim.Optimizer, loss: Tensor, rate: float, clip: float) -> None:
    """One step at this rate; a gradient longer than `clip` is shortened to it, 0 leaves it."""
    mover.zero_grad()
    loss.backward()
    if clip > 0:
        nn.utils.clip_grad_norm_([weight for group in mover.param_groups for weight in group["params"]], clip)
    for group in mover.param_groups:
        group["lr"] = rate
    mover.step()


def frozen(network: nn.Module, base: nn.Module, theta: dict[str, nn.Parameter]) -> int:
    """How many tensors are outside E; each of them has the base's bytes."""
    theirs = base.state_dict()
    outside = {name: tensor for name, tensor in network.state_dict().items() if name not in theta}
    for name, tensor in outside.items():
        if not torch.equal(tensor.flatten().view(torch.uint8), theirs[name].flatten().view(torch.uint8)):
            raise RuntimeError(f"{name} moved, and is no part of the encoder")
    return len(outside)
