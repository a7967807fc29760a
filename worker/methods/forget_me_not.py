"""Forget-Me-Not: turn the network's attention away from the tokens that name the concept.

Gong Zhang (Eric Zhang), Kai Wang, Xingqian Xu, Zhangyang Wang, Humphrey Shi. Forget-Me-Not: Learning to Forget in Text-to-Image
Diffusion Models. CVPR Workshops 2024. arXiv 2303.17591.

    Input   weights theta_o, forget set D_f: a few images of the concept with texts that name it
    1.  x_t <- noisy images of D_f, at random times
    2.  A   <- the attention that the picture pays, in every layer that reads the text, to the tokens that name the concept
               and to the end-of-text token
    3.  minimise || A ||_2, all layers, heads, pixels and tokens in one norm
    4.  D_r is never read

Symbols: theta `network`, D_f `forget`, A `family.attention_maps`.

Where we differ from the released code, and why:
- No textual inversion first. It learns new tokens for concepts that the text cannot name; a request here names its concept.
- Layers: attn2 of a U-Net, as there; of a flow transformer, which the paper did not have, the joint attention, where the norm is
  over the share of a row that goes to the concept's tokens.
- Of the tokens that end a text only the first is counted. SD 1.x pads with that token, and the release then counts all of them.
- The network stays in eval mode.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Samples, TextGenerator

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]


def unlearn(
    network: nn.Module,
    family: "TextGenerator",
    forget: "Samples",
    retain: "Samples",
    *,
    train: Literal["all", "cross_attention"] = "all",
    steps: int = 35,
    batch_size: int = 1,
    learning_rate: float = 2e-6,
    clip: float = 1.0,
    weight_decay: float = 0.01,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> None:
    family.check(network, forget, "forget")
    network.eval()
    chosen = family.cross_attention(network) if train == "cross_attention" else family.trainable(network)
    theta = list(chosen.values())
    mover = torch.optim.AdamW(theta, lr=learning_rate, weight_decay=weight_decay)
    moving = {"network": network, "optimizer": mover, "generator": generator}
    sizes = len(forget.y), 0
    for step, rows, _, _ in step_batches(sizes, batch_size, steps, resume(moving), generator):
        # 1.
        x, y = forget.x[rows], forget.y[rows]
        x_t, t, _ = family.diffuse(network, x, generator)
        # 2. and 3.
        loss = attention_norm(family.attention_maps(network, x_t, t, y))
        adam_step(mover, theta, loss, clip)
        on_step(step, steps, {"attention": loss.detach()}, moving)
    mover.zero_grad()


Batch = tuple[int, Tensor | None, Tensor | None, bool]  # step, rows of D_f, rows of D_r, generator at rest


def step_batches(
    sizes: tuple[int, int], batch_size: int, total: int, done: int, generator: torch.Generator
) -> Iterator[Batch]:
    """One D_f batch and one D_r batch per step, drawn without replacement inside a batch; always at rest."""
    for step in range(done + 1, total + 1):
        of_forget, of_retain = (torch.randperm(size, generator=generator)[:batch_size] for size in sizes)
        yield step, of_forget if sizes[0] else None, of_retain if sizes[1] else None, True


def attention_norm(maps: list[Tensor]) -> Tensor:
    """The Euclidean norm of all maps together."""
    return torch.stack([each.square().sum() for each in maps]).sum().sqrt()


def adam_step(mover: torch.optim.Optimizer, theta: list[nn.Parameter], loss: Tensor, clip: float) -> None:
    """One step over `theta`; no other weight is given a gradient."""
    mover.zero_grad()
    loss.backward(inputs=theta)
    if clip > 0:
        nn.utils.clip_grad_norm_(theta, clip)
    mover.step()
