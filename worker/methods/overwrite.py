"""Overwrite: teach the concept's prompt to draw something else, and hold every other prompt to what the base predicts.

Ours, after the idea of "OVW" in Andrea Schioppa, Emiel Hoogeboom, Jonathan Heek, Model Integrity when Unlearning with T2I
Diffusion Models, arXiv 2411.02068. The paper's equations were not available to us: these are our own, and no figure of the
paper may be read as a claim about them.

    Input   weights theta_o, forget set D_f, retain set D_r, weight beta
    1.  freeze a copy of theta_o: the teacher
    2.  forget  <- || eps(x_t | c_f) - sg eps_o(x_t | c_overwrite) ||^2        x_t from D_f
    3.  help    <- || eps(x_t | c_r) - sg eps_o(x_t | c_r) ||^2                x_t from D_r
    4.  minimise forget + beta * help
    5.  at theta = theta_o, help is 0: nothing is asked of kept prompts but to stay

Symbols: theta `network`, D_f `forget`, D_r `retain`, beta `beta`, eps `family.denoise`, c_f and c_r the samples' own labels or
texts, c_overwrite another one (`overwrite_with`), sg "no gradient". Both terms are means over elements.

It differs from SalUn's generation loss (arXiv 2310.12508) in two things: the teacher never moves, and kept prompts are held to
the *base's predictions* instead of being trained on data again, so that an image of a kept prompt stays the same image, which is
what integrity measures. `beta=0` drops the help term, and neighbours of the concept go with it.

One retain label in ten is replaced by the null one, so that the other half of classifier-free guidance stays too.
`overwrite_with`: "next" is the label after c_f, "null" what the base draws when asked for nothing, "uniform" another label for
each image (a network that is taught many targets at once learns their mean, and draws blends). `train`: "cross_attention" moves
only what reads the text; "no_label_table" keeps rows that only name a label.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Generator, Samples

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]
NULL_SHARE = 0.1  # of kept prompts that are replaced by none


def unlearn(
    network: nn.Module,
    family: "Generator",
    forget: "Samples",
    retain: "Samples",
    *,
    overwrite_with: Literal["next", "uniform", "null"] = "next",
    train: Literal["all", "cross_attention", "no_label_table"] = "all",
    beta: float = 1.0,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 1e-4,
    clip: float = 1.0,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, forget, "forget")
    family.check(network, retain, "retain")
    # 1.
    base = copy.deepcopy(network.eval()).requires_grad_(False)
    theta = movable(network, family, train)
    mover = torch.optim.Adam(theta, lr=learning_rate)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    sizes = len(forget.y), len(retain.y) if beta > 0 else 0
    for step, of_forget, of_retain, _ in step_batches(sizes, batch_size, steps, resume(moving), generator):
        # 2.
        x, y = forget.x[of_forget], forget.y[of_forget]
        forget_loss = overwrite_loss(network, base, family, x, y, generator, overwrite_with)
        figures, loss = {"forget_loss": forget_loss.detach()}, forget_loss
        # 3.
        if of_retain is not None:
            help_loss = keep_loss(network, base, family, retain.x[of_retain], retain.y[of_retain], generator)
            figures["help_loss"], loss = help_loss.detach(), loss + beta * help_loss
        # 4.
        adam_step(mover, theta, loss, clip)
        on_step(step, steps, figures, moving)
    mover.zero_grad()


def movable(network: nn.Module, family: Any, train: str) -> list[nn.Parameter]:
    if train == "cross_attention":
        reading = list(family.cross_attention(network).values()) if hasattr(family, "cross_attention") else []
        if not reading:
            raise ValueError("train: the network has no cross attention: nothing in it reads a text")
        return reading
    fixed = family.label_tables(network) if train == "no_label_table" else {}
    return [weight for name, weight in family.trainable(network).items() if name not in fixed]


Batch = tuple[int, Tensor | None, Tensor | None, bool]  # step, rows of D_f, rows of D_r, generator at rest


def step_batches(
    sizes: tuple[int, int], batch_size: int, total: int, done: int, generator: torch.Generator
) -> Iterator[Batch]:
    """One D_f batch and one D_r batch per step, drawn without replacement inside a batch; always at rest."""
    for step in range(done + 1, total + 1):
        of_forget, of_retain = (torch.randperm(size, generator=generator)[:batch_size] for size in sizes)
        yield step, of_forget if sizes[0] else None, of_retain if sizes[1] else None, True


def overwrite_loss(
    network: nn.Module,
    base: nn.Module,
    family: "Generator",
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
    overwrite_with: str,
) -> Tensor:
    """|| eps(x_t | c_f) - sg eps_o(x_t | c_overwrite) ||^2 per element."""
    if overwrite_with != "null":
        return family.relabel_loss(network, base, x, y, generator, overwrite_with)
    x_t, t, _ = family.diffuse(network, x, generator)
    with torch.no_grad():
        target = family.denoise(base, x_t, t, torch.full_like(y, family.null_label(network)))
    return F.mse_loss(family.denoise(network, x_t, t, y), target)


def keep_loss(
    network: nn.Module, base: nn.Module, family: "Generator", x: Tensor, y: Tensor, generator: torch.Generator
) -> Tensor:
    """L_help: || eps(x_t | c_r) - sg eps_o(x_t | c_r) ||^2 per element; one label in ten is the null one."""
    x_t, t, _ = family.diffuse(network, x, generator)
    dropped = torch.rand(len(y), generator=generator).to(y.device) < NULL_SHARE
    y = y.masked_fill(dropped, family.null_label(network))
    with torch.no_grad():
        target = family.denoise(base, x_t, t, y)
    return F.mse_loss(family.denoise(network, x_t, t, y), target)


def adam_step(mover: torch.optim.Optimizer, theta: list[nn.Parameter], loss: Tensor, clip: float) -> None:
    """One step over `theta`; no other weight is given a gradient."""
    mover.zero_grad()
    loss.backward(inputs=theta)
    if clip > 0:
        nn.utils.clip_grad_norm_(theta, clip)
    mover.step()
