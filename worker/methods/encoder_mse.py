"""Encoder MSE: Machine Unlearning for Image-to-Image Generative Models.

Guihong Li, Hsiang Hsu, Chun-Fu (Richard) Chen, Radu Marculescu. ICLR 2024. arXiv 2402.00351.

Keep the encoder's output on retained images, and move its output on forgotten ones to what noise would give.

    Input   network D(E(T(.))), its encoder at theta_o as the teacher E_0, forget set D_f, retain set D_r, weight alpha
    1.  T hides patches; student and teacher see the same ones hidden, and n ~ N(0, Sigma) stands for forgotten images
    2.  L = || E(T(x_r)) - E_0(T(x_r)) ||^2 + alpha * || E(T(x_f)) - E_0(T(n)) ||^2
    3.  minimise L over E's weights with AdamW, over pairs of batches of D_r and D_f
    4.  everything outside E = theta_o, bit for bit

Symbols: E `family.encode`, E's weights `theta`, T `family.views`, n `noise`, alpha `alpha`; || . ||^2 is the mean over elements of a
feature tensor, summed over the tensors that the decoder reads. The retain set may be a proxy: other images of the kind.

Sigma: `unit` N(0, I) in the network's input range (the paper); `batch` one mean and one spread for all, those of the
batch's images, clamped to the pixels' range (the VQ-GAN code); `forget_covariance` the diagonal of D_f's covariance about
its channels' means: the mean image itself would show the person.

Where we differ from the released code, and why:
- The network stays in eval mode, student and teacher in one precision, so that the retain loss at theta_o is 0; that is
  checked. The release trains with dropout and autocast, and starts at 0.08.
- The decoder really is frozen: what E's weights share with other parts stays where it is. In the release the token
  embedding is E's and the decoder's output matrix at once, and moves.
- The teacher sees retained images and noise only; the release also gives it the forgotten images, and the noise of retained
  ones, and multiplies both by 0. Where the mask is fixed, E_0(T(x_r)) is computed once, and E_0(T(n)) for BANK noise
  images that the steps draw from, so that a step is one pass of the student; not under `batch`, whose n follows the batch.
- A diffusion network's n is the noise that its own input was mixed with, as in the release, but it replaces the whole
  image, as the formula says: the release keeps what surrounds the hole, from which the teacher may restore what it hides.
- Retained and forgotten images are averaged apart, as the formula says. No moving average of the weights.
- All randomness is the generator's; the release seeds each step by the clock.
- `l1` adds the sum of the encoder's absolute weights, times `l1`; the authors found that it changes nothing.
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
Targets = tuple[list[Tensor], list[Tensor]]  # E_0(T(x_r)) of all D_r, E_0(T(n)) of the bank
BANK = 512  # noise images that stand for all, where the mask is fixed
LARGEST = 1 << 30  # bytes of teacher features that are kept
AGREEMENT = 1e-6  # of the features' mean square: what rounding may leave between student and teacher


def unlearn(
    network: nn.Module,
    family: "ImageToImage",
    forget: "Samples",
    retain: "Samples",
    *,
    alpha: float = 0.2,
    noise: Literal["unit", "batch", "forget_covariance"] = "unit",
    pattern: Literal["random", "centre_4", "centre_8", "outpainting", "none"] = "random",
    hidden_share: float = 0.75,
    l1: float = 0.0,
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
) -> dict[str, Any]:
    family.check(network, forget, "forget")
    family.check(network, retain, "retain")
    base, theta = copy.deepcopy(network.eval()), family.encoder(network)
    crop = pattern, hidden_share
    sigma = noise_spread(forget.x) if noise == "forget_covariance" else None
    fixed = family.FIXED_VIEWS and pattern != "random" and noise != "batch"
    kept = fixed_targets(base, family, forget.x, retain.x, crop, sigma, batch_size, generator) if fixed else None
    at_start = retain_loss_at_start(network, base, family, retain.x[:batch_size], crop, kept, generator)
    mover = make_optimizer(theta, learning_rate, beta2, weight_decay)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    sizes = len(forget.y), len(retain.y)
    per_epoch = math.ceil(max(sizes) / batch_size)
    total = epochs * per_epoch
    for step, of_forget, of_retain, settled in pair_batches(sizes, per_epoch, total, resume(moving), generator):
        # 1.
        x = torch.cat([retain.x[of_retain], forget.x[of_forget]])
        mask = family.masks(network, len(x), *crop, generator)
        views = family.views(network, x, mask, generator)
        # 2.
        if kept is None:
            wanted = targets(base, family, views, mask, len(of_retain), noise, sigma, x, generator)
        else:
            drawn = torch.randint(len(kept[1][0]), (len(of_forget),), generator=generator)
            wanted = [torch.cat([one[of_retain], two[drawn]]) for one, two in zip(*kept, strict=True)]
        features = family.encode(network, views)
        retain_loss, forget_loss = distances(features, wanted, len(of_retain))
        loss = retain_loss + alpha * forget_loss + (l1 * absolute_sum(theta) if l1 > 0 else 0.0)
        # 3.
        rate = learning_rate * rate_share(step, total, warm_up_epochs * per_epoch, decay)
        take_step(mover, loss, rate, clip)
        figures = {"retain_loss": retain_loss.detach(), "forget_loss": forget_loss.detach()}
        on_step(step, total, figures, moving if settled else None)
    network.zero_grad()  # the time embedding has one too, and stays
    # 4.
    return {
        "retain_loss_at_start": at_start,
        "encoder_tensors": len(theta),
        "frozen_tensors": frozen(network, base, theta),
    }


def noise_spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and each pixel's spread over D_f: (C, 1, 1) and (C, H, W)."""
    if len(x) < 2:
        raise ValueError("forget.x: one image has no covariance; choose another noise")
    return x.mean((0, 2, 3)).reshape(-1, 1, 1), x.std(0)


@torch.no_grad()
def fixed_targets(
    base: nn.Module,
    family: "ImageToImage",
    forget: Tensor,
    retain: Tensor,
    crop: tuple[str, float],
    sigma: tuple[Tensor, Tensor] | None,
    batch_size: int,
    generator: torch.Generator,
) -> Targets | None:
    """What the teacher says of D_r and of the bank, once; None when that is more than LARGEST bytes."""
    mean, spread = sigma if sigma is not None else (0.0, 1.0)
    of_retain: list[list[Tensor]] = []
    of_noise: list[list[Tensor]] = []
    for x in retain.split(batch_size):
        mask = family.masks(base, len(x), *crop, generator)
        of_retain.append(family.encode(base, family.views(base, x, mask, generator)))
        if sum(each[0].nbytes for each in of_retain[0]) * (len(retain) + BANK) > LARGEST:
            return None
    for start in range(0, BANK, batch_size):
        x = forget[:1].expand(min(batch_size, BANK - start), -1, -1, -1)
        mask = family.masks(base, len(x), *crop, generator)
        views = family.views(base, x, mask, generator)
        n = mean + spread * family.unit_noise(base, views, generator)
        of_noise.append(family.encode(base, family.noise_views(base, views, mask, n)))
    of_all, of_bank = ([torch.cat(each) for each in zip(*parts, strict=True)] for parts in (of_retain, of_noise))
    return of_all, of_bank


@torch.no_grad()
def retain_loss_at_start(
    network: nn.Module,
    base: nn.Module,
    family: "ImageToImage",
    x: Tensor,
    crop: tuple[str, float],
    kept: Targets | None,
    generator: torch.Generator,
) -> float:
    """0 but for rounding; a student that is not its own teacher at theta_o is an error of ours."""
    views = family.views(network, x, family.masks(network, len(x), *crop, generator), generator)
    wanted = family.encode(base, views) if kept is None else [each[: len(x)] for each in kept[0]]
    loss, _ = distances(family.encode(network, views), wanted, len(x))
    if not bool(loss <= AGREEMENT * sum(each.square().mean() for each in wanted)):
        raise RuntimeError("student and teacher differ before the first step")
    return float(loss)


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
def targets(
    base: nn.Module,
    family: "ImageToImage",
    views: tuple[Tensor, ...],
    mask: Tensor,
    retained: int,
    noise: str,
    sigma: tuple[Tensor, Tensor] | None,
    x: Tensor,
    generator: torch.Generator,
) -> list[Tensor]:
    """E_0 of the first `retained` views as they are, and of the others with n in the place of their images."""
    of_retain, of_forget = (tuple(each[part] for each in views) for part in (slice(retained), slice(retained, None)))
    n = family.unit_noise(base, of_forget, generator)
    if sigma is not None:
        n = sigma[0] + sigma[1] * n
    elif noise == "batch":
        n = (x.mean() + x.std() * n).clamp(*family.pixel_range(base))
    of_noise = family.noise_views(base, of_forget, mask[retained:], n)
    return family.encode(base, tuple(torch.cat(pair) for pair in zip(of_retain, of_noise, strict=True)))


def distances(features: list[Tensor], wanted: list[Tensor], retained: int) -> tuple[Tensor, Tensor]:
    """Squared error of the first `retained` rows and of the others, each a mean over elements, summed over the tensors."""
    squares = [(one - two).square() for one, two in zip(features, wanted, strict=True)]
    halves = [[each[:retained].mean() for each in squares], [each[retained:].mean() for each in squares]]
    return torch.stack(halves[0]).sum(), torch.stack(halves[1]).sum()


def absolute_sum(theta: dict[str, nn.Parameter]) -> Tensor:
    return torch.stack([weight.abs().sum() for weight in theta.values()]).sum()


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
