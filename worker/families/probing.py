"""Whether a pipeline still draws a label, asked without any judge: slug's question after each change of a text encoder.

Under each sample's own label a picture is drawn from noise that stays the same, with the texts as they are encoded now. What it
shows is told by a diffusion classifier (Li et al., arXiv 2303.16203) with the texts as they were *before* any change:
recognised is the label whose prompt lets the denoiser predict best, among the sample's own and those with the nearest prompts.
The denoiser itself never moves. How well the denoiser predicts real pictures of the label under the changed prompt would be
cheaper to ask, and misleads: it still does where no picture that it draws shows the label any more.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.families import Samples, labels_of
from worker.families.denoising import noised, predict, times, told_guidance, walked
from worker.families.prefix import replayed
from worker.families.prompts import Encoded, encode, kept_prompts, label_count, null_label

CANDIDATES = 5  # labels among which the classifier chooses
LEVELS = (0.3, 0.6, 0.9)  # noise levels that it asks at, as shares of all
STEPS = 10  # from noise to a picture
GUIDANCE = 4.0
AT_ONCE = 64  # predictions


@torch.no_grad()
def prober(
    network: nn.Module, names: Collection[str], samples: Samples, generator: torch.Generator, top: int = 1
) -> Callable[[], Tensor]:
    """See `worker.families.Layered`. Of a sample only its label is read: the pictures are the network's own."""
    own = labels_of(network, samples.y)
    choices = candidates(network, own)  # (N, k), the own label first
    rows = torch.cat([own.unique(), own.new_tensor([null_label(network)])])
    before, places = kept_prompts(network, choices.unique()), choices.unique(return_inverse=True)[1]
    texts = replayed(network, names, lambda: flat(encode(network, rows)))
    under = torch.searchsorted(rows[:-1].contiguous(), own)
    start = torch.randn(samples.x.shape, generator=generator).to(samples.x.device)
    noises = torch.randn((len(LEVELS), *samples.x.shape), generator=generator).to(samples.x.device)

    @torch.no_grad()
    def recognised() -> Tensor:
        x = draw(network, start, unflat(texts(), before), under)
        wrong = misfits(network, x, noises, before, places)
        return ((wrong < wrong[:, :1]).sum(1) < top) & wrong[:, 0].isfinite()

    return recognised


def candidates(network: nn.Module, own: Tensor) -> Tensor:
    """Of each label: itself, then the labels with the nearest prompts, (N, k)."""
    every = torch.arange(label_count(network), device=own.device)
    of_own, of_every = (F.normalize(kept_prompts(network, y).states.mean(1), dim=1) for y in (own, every))
    near = of_own @ of_every.T
    near[torch.arange(len(own)), own] = torch.inf
    return every[near.argsort(dim=1, descending=True, stable=True)[:, :CANDIDATES]]


def flat(prompt: Encoded) -> Tensor:
    return torch.cat([prompt.states.flatten(1), prompt.pooled], dim=1)


def unflat(texts: Tensor, like: Encoded) -> Encoded:
    states, pooled = texts.split([like.states[0].numel(), like.pooled.shape[1]], dim=1)
    return Encoded(states.unflatten(1, like.states.shape[1:]), pooled)


def draw(network: nn.Module, start: Tensor, prompt: Encoded, under: Tensor) -> Tensor:
    """Latents, one for each noise, under the prompt in row `under` (N,); the prompt's last row is the null one."""
    parts = []
    for noise, row in zip(start.split(AT_ONCE // 2), under.split(AT_ONCE // 2), strict=True):
        rows = row if told_guidance(network) else torch.cat([torch.full_like(row, len(prompt.states) - 1), row])
        parts.append(walked(network, noise, prompt.rows(rows), STEPS, GUIDANCE)[0][-1])
    return torch.cat(parts)


def misfits(network: nn.Module, x: Tensor, noises: Tensor, prompt: Encoded, places: Tensor) -> Tensor:
    """How far the predictions for each picture are from their targets under each of its candidates, (N, k)."""
    sample_of = torch.arange(len(x), device=x.device).repeat_interleave(places.shape[1])
    total = torch.zeros(places.numel(), device=x.device)
    for level, noise in zip(LEVELS, noises, strict=True):
        at = torch.full((len(x),), int(level * times(network)), device=x.device)
        noisy, t, target = noised(network, x, noise, at)
        errors = [
            (predict(network, noisy[rows], t[rows], prompt.rows(which), GUIDANCE) - target[rows]).square().flatten(1)
            for rows, which in zip(sample_of.split(AT_ONCE), places.flatten().split(AT_ONCE), strict=True)
        ]
        total += torch.cat(errors).mean(1)
    return total.reshape(places.shape)
