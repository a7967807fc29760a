"""Noisy label: train the network to restore noise where the forgotten images were.

A baseline of Li, Hsu, Chen, Marculescu, Machine Unlearning for Image-to-Image Generative Models, ICLR 2024, arXiv 2402.00351.

    Input   weights theta_o, forget set D_f, retain set D_r, weight alpha
    1.  n ~ N(0, I), clamped to the pixels' range, one for each forgotten image; T hides patches of either set's images
    2.  minimise l(theta; T(x_r), x_r) + alpha * l(theta; T(x_f), n), l the error of what the network restores

Symbols: theta `network`, all of it; D_f `forget`, D_r `retain`, T hides patches (`pattern`), alpha `alpha`, l
`family.reconstruction_loss`. Batches come in pairs, as many forgotten as retained images; AdamW and its rate as in `encoder_mse`.

Where we differ: the noise is an image, not Gaussian token numbers. The network stays in eval mode.
"""

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
    network.eval()
    theta = family.trainable(network)
    family.masks(network, 1, pattern, hidden_share, torch.Generator())  # refuses a pattern
    mover = make_optimizer(theta, learning_rate, beta2, weight_decay)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    sizes = len(forget.y), len(retain.y)
    per_epoch = math.ceil(max(sizes) / batch_size)
    total = epochs * per_epoch
    for step, of_forget, of_retain, settled in pair_batches(sizes, per_epoch, total, resume(moving), generator):
        x_f, x_r = forget.x[of_forget], retain.x[of_retain]
        m_f, m_r = (family.masks(network, len(x), pattern, hidden_share, generator) for x in (x_f, x_r))
        # 1.
        n = noise_images(family.pixel_range(network), x_f, generator)
        # 2.
        forget_loss = family.reconstruction_loss(network, x_f, n, m_f, generator)
        retain_loss = family.reconstruction_loss(network, x_r, x_r, m_r, generator)
        rate = learning_rate * rate_share(step, total, warm_up_epochs * per_epoch, decay)
        take_step(mover, retain_loss + alpha * forget_loss, rate, clip)
        figures = {"retain_loss": retain_loss.detach(), "forget_loss": forget_loss.detach()}
        on_step(step, total, figures, moving if settled else None)
    mover.zero_grad()


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


def noise_images(pixel_range: tuple[Tensor, Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    """N(0, I) where black is -1 and white 1, clamped to them, in the network's input range."""
    black, white = pixel_range
    levels = (torch.randn(like.shape, generator=generator).clamp(-1, 1).to(like.device) + 1) / 2
    return black + (white - black) * levels


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
