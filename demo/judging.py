"""What the demo's judge is trained on besides digits: changed digits, and images that are no digit at all.

A rejected image must be no digit to a person: noise of several kinds, constants, soft blobs, shuffled pixels and
quarters, two digits laid over each other, and digits drowned in noise. Images are (n, 1, 8, 8) in [-1, 1].
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Digits as other hands might have written them: turned, scaled, sheared, shifted, fainter, a little noisy."""
    n = len(x)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, wide, tall, shear = uniform(-0.2, 0.2), uniform(0.9, 1.12), uniform(0.9, 1.12), uniform(-0.15, 0.15)
    across, down = uniform(-0.2, 0.2), uniform(-0.12, 0.12)
    first = torch.stack([angle.cos() * wide, -angle.sin() * tall + shear, across], dim=1)
    second = torch.stack([angle.sin() * wide, angle.cos() * tall, down], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(x.shape), align_corners=False)
    ink = (x + 1) / 2
    moved = F.grid_sample(ink, grid, align_corners=False)
    exact = torch.rand(n, generator=generator) < 0.4  # resampling blurs: some stay sharp
    moved[exact] = ink[exact]
    faint = moved * uniform(0.85, 1.15).view(-1, 1, 1, 1)
    noisy = faint + torch.randn(x.shape, generator=generator) * uniform(0, 0.06).view(-1, 1, 1, 1)
    return noisy.clamp(0, 1) * 2 - 1


def no_digits(x: Tensor, y: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """About 8 * `each` images that are no digit, made from digits `x` with labels `y`, or from nothing."""

    def some() -> Tensor:
        return torch.randint(len(x), (each,), generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def per_image() -> Tensor:
        return torch.rand((each, 1, 1, 1), generator=generator)

    shape = (each, 1, 8, 8)
    one, other = some(), some()
    apart = y[one] != y[other]
    share = 0.35 + 0.3 * per_image()
    pixels = torch.argsort(torch.rand((each, 64), generator=generator), dim=1)
    made = [
        normal(*shape),
        per_image() * 1.2 - 0.6 + normal(*shape) * per_image() * 1.2,
        (per_image() * 2 - 1).expand(shape) + 0.1 * per_image() * normal(*shape),
        F.interpolate(normal(each, 1, 4, 4), size=(8, 8), mode="bilinear") * 2 * per_image(),
        x[some()].flatten(1).gather(1, pixels).view(shape),
        shuffled_quarters(x[some()], generator),
        (share * x[one] + (1 - share) * x[other])[apart],
        x[some()] * (0.2 + 0.4 * per_image()) + normal(*shape) * (0.6 + 0.5 * per_image()),
    ]
    return torch.cat(made).clamp(-1, 1)


def shuffled_quarters(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image's four 4x4 quarters in another order; those that drew the old order are left out."""
    n = len(x)
    quarters = x.reshape(n, 2, 4, 2, 4).permute(0, 1, 3, 2, 4).reshape(n, 4, 4, 4)
    order = torch.argsort(torch.rand((n, 4), generator=generator), dim=1)
    mixed = quarters.gather(1, order.view(n, 4, 1, 1).expand(n, 4, 4, 4))
    images = mixed.reshape(n, 2, 2, 4, 4).permute(0, 1, 3, 2, 4).reshape(n, 1, 8, 8)
    return images[(order != torch.arange(4)).any(dim=1)]
