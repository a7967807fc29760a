"""ESD: make the concept's prediction what guidance *away* from the concept would have predicted.

Rohit Gandikota, Joanna Materzynska, Jaden Fiotto-Kaufman, David Bau. Erasing Concepts from Diffusion Models. ICCV 2023.
arXiv 2303.07345.

    Input   weights theta_o, texts c of the concept, erasing guidance eta
    1.  x_t    <- what theta_o passes through as it draws c, with ordinary guidance, at every step of its schedule
    2.  target <- eps_o(x_t) - eta * (eps_o(x_t | c) - eps_o(x_t))
    3.  minimise || eps(x_t | c) - target ||^2 over cross attention (x) or over all else (u)
    4.  what the variant leaves out keeps its bits; no image is read, and no retain set

Symbols: theta `network`, c `forget.y`, eta `eta`, eps `family.denoise`, eps(x_t) the prediction under the null prompt.
ESD-x erases what is called by its name; ESD-u erases the concept also where the prompt does not name it, and more with it.

Where we differ from the released code, and why:
- x_t comes from the frozen network, as in the 2025 release (the first sampled with the edited one). It then depends on nothing
  that training changes: `trajectories` are sampled once, in one batch, with their targets, and drawn from. The release samples
  about 25 guided steps anew for every training step, which is nearly all of its cost.
- No copy of the base is kept: the targets are all computed before the first step.
- eta is the paper's. The 2025 release writes the target from eps_o(x_t | c), so that its default 2 is 1 here.
- Weights are float32, where Adam's small steps are not rounded away.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Samples, TextGenerator

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]
AT_ONCE = 8  # points of a trajectory whose targets are computed together


def unlearn(
    network: nn.Module,
    family: "TextGenerator",
    forget: "Samples",
    retain: "Samples",
    *,
    variant: Literal["x", "u"] = "x",
    eta: float = 1.0,
    guidance_scale: float = 3.0,
    sampling_steps: int = 50,
    trajectories: int = 20,
    steps: int = 1000,
    batch_size: int = 1,
    learning_rate: float = 1e-5,
    clip: float = 0.0,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, forget, "forget")
    network.eval()
    # 1.
    drawn = torch.randint(len(forget.y), (trajectories,), generator=generator)
    c = forget.y[drawn]
    path, times = family.trajectory(network, c, generator, steps=sampling_steps, guidance_scale=guidance_scale)
    x_t, t, y = path.flatten(0, 1), times.repeat_interleave(trajectories), c.repeat(len(times))
    # 2.
    target = erased_targets(network, family, x_t, t, y, eta)
    # 3.
    theta = variant_weights(network, family, variant)
    mover = torch.optim.Adam(theta, lr=learning_rate)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    for step, rows, _, _ in step_batches((len(y), 0), batch_size, steps, resume(moving), generator):
        loss = F.mse_loss(family.denoise(network, x_t[rows], t[rows], y[rows]), target[rows])
        adam_step(mover, theta, loss, clip)
        on_step(step, steps, {"forget_loss": loss.detach()}, moving)
    mover.zero_grad()


@torch.no_grad()
def erased_targets(
    network: nn.Module, family: "TextGenerator", x_t: Tensor, t: Tensor, y: Tensor, eta: float
) -> Tensor:
    """eps_o(x_t) - eta * (eps_o(x_t | c) - eps_o(x_t)), for every point."""
    targets = []
    for x, time, c in zip(x_t.split(AT_ONCE), t.split(AT_ONCE), y.split(AT_ONCE), strict=True):
        without = family.denoise(network, x, time, torch.full_like(c, family.null_label(network)))
        targets.append(without - eta * (family.denoise(network, x, time, c) - without))
    return torch.cat(targets)


def variant_weights(network: nn.Module, family: "TextGenerator", variant: str) -> list[nn.Parameter]:
    cross = family.cross_attention(network)
    return [weight for name, weight in family.trainable(network).items() if (name in cross) == (variant == "x")]


Batch = tuple[int, Tensor | None, Tensor | None, bool]  # step, rows of D_f, rows of D_r, generator at rest


def step_batches(
    sizes: tuple[int, int], batch_size: int, total: int, done: int, generator: torch.Generator
) -> Iterator[Batch]:
    """One D_f batch and one D_r batch per step, drawn without replacement inside a batch; always at rest."""
    for step in range(done + 1, total + 1):
        of_forget, of_retain = (torch.randperm(size, generator=generator)[:batch_size] for size in sizes)
        yield step, of_forget if sizes[0] else None, of_retain if sizes[1] else None, True


def adam_step(mover: torch.optim.Optimizer, theta: list[nn.Parameter], loss: Tensor, clip: float) -> None:
    """One step over `theta`; no other weight is given a gradient."""
    mover.zero_grad()
    loss.backward(inputs=theta)
    if clip > 0:
        nn.utils.clip_grad_norm_(theta, clip)
    mover.step()
