"""Adversarial prompts: are there words before a prompt under which what was forgotten is known again?

After Zhang et al., To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe Images ...
For Now (UnlearnDiffAtk), ECCV 2024, arXiv 2310.11868: the network itself judges the words, by how well it predicts
the noise of a few images of what was forgotten; no other classifier is needed. For CLIP the loss is the cross entropy of these
images over all labels' prompts, so the margin by which the label is told.

    Input   weights theta_u, forget set D_f, words V
    1.  halve D_f at random; R: some images of the first half, M: images of the second, which the search never sees
    2.  for each restart: p uniform over V for each token before each label's prompt, then in each step
            w ~ p, g = the gradient of l(theta_u; a batch of R; w) to the one-hot w (straight through)
            p <- the projection of p - step_size * g / max |g| onto the simplex
    3.  every CHECK steps: w* = argmax p, and l(R; w*) at a noise that is the same for all of them
    4.  the w* of lowest loss, written out as a text before the prompt: which samples of M are recognised

Symbols: R's size `images`, |w| `tokens`. The projection is exact (Duchi, Shalev-Shwartz, Singer, Chandra, ICML 2008, figure
1). Differences: theirs is Adam and a projection by bisection, all of the vocabulary may be chosen, one image is attacked
at one noise level at a time, and the first prompt that a classifier calls a success ends the search; here no success is
ever asked for while searching, so nothing is tuned on what is counted. As many words drawn blindly stand beside it.
The words are not kept: they may spell whom the request is about.
"""

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.attacks import CannotAttack, Found, Progress, Recognised, at_most, count_of, counted, halves

if TYPE_CHECKING:
    from worker.families import Family, Samples

Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]  # of one-hot words, images and their labels
CHECK = 10  # steps between two looks at the tokens that lead


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    tokens: int = 5,
    images: int = 10,
    steps: int = 100,
    restarts: int = 3,
    batch_size: int = 10,
    step_size: float = 0.1,
    measured: int = 200,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    if "captions" not in network.__dict__:
        raise CannotAttack("The network reads no words.")
    if len(forget.y) < 2:
        raise CannotAttack("The forget set holds one sample: none is left to measure on.")
    module: Any = family
    # 1.
    shown, hidden = halves(forget._replace(y=module.labels_of(network, forget.y)), generator)
    shown, hidden = at_most(shown, images, generator), at_most(hidden, measured, generator)
    others = at_most(retain._replace(y=module.labels_of(network, retain.y)), measured, generator)
    search, total = module.prompt_search(network, shown.y.unique(), tokens), restarts * steps + 3
    if len(search.words) == 0 or search.tokens == 0:
        raise CannotAttack("Its text encoders read different tokens, or the prompts leave no room before them.")
    shape = (len(shown.y.unique()), search.tokens, len(search.words))
    # 2. and 3.
    tried = []
    for restart in range(restarts):
        moves = descent(search.loss, shown, shape, steps, batch_size, step_size, generator)
        for step, (loss, words) in enumerate(moves, restart * steps + 1):
            tried.append((loss, words))
            progress(step, total)
    # 4.
    found = min(tried, key=lambda pair: pair[0])[1]
    blind = torch.randint(shape[2], shape[:2], generator=generator)
    rows: list[dict[str, Any]] = []
    texts = {"blind": search.texts(blind), "found": search.texts(found)}
    for prompt in ("asked", *texts):
        reader = told(module, network, shown.y.unique(), texts[prompt]) if prompt in texts else network
        kept = counted(recognised(reader, others))
        rows.append({"prompt": prompt, **counted(recognised(reader, hidden)), "kept": kept})
        progress(restarts * steps + len(rows), total)
    budget = {"tokens": search.tokens, "words": shape[2], "images": len(shown.y), "steps": steps, "restarts": restarts}
    return {"before": count_of(rows[0]), "after": count_of(rows[-1]), "rows": rows, "budget": budget}


def descent(
    loss: Loss,
    shown: "Samples",
    shape: tuple[int, int, int],
    steps: int,
    batch_size: int,
    step_size: float,
    generator: torch.Generator,
) -> Iterator[tuple[float, Tensor]]:
    """After each step the tokens that lead, (labels, tokens), and their loss; infinite where nobody looked at it."""
    noise = int(torch.randint(2**62, (), generator=generator))
    p = torch.full(shape, 1 / shape[2])
    for step in range(1, steps + 1):
        drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).reshape(shape[:2])
        w = one_hot(drawn, shown.x, shape[2]).requires_grad_(True)
        batch = at_most(shown, batch_size, generator)
        (g,) = torch.autograd.grad(loss(w, batch.x, batch.y, generator), w)
        g = g.float().cpu()
        p = simplex(p - step_size * g / g.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny))
        leading, value = p.argmax(-1), float("inf")
        if step % CHECK == 0 or step == steps:
            with torch.no_grad():
                same = torch.Generator().manual_seed(noise)
                value = float(loss(one_hot(leading, shown.x, shape[2]), shown.x, shown.y, same))
        yield value, leading


def one_hot(tokens: Tensor, like: Tensor, count: int) -> Tensor:
    return F.one_hot(tokens, count).to(like)


def simplex(v: Tensor) -> Tensor:
    """The nearest point to each row of v whose entries are 0 or more and sum to 1: max(v - theta, 0)."""
    u = v.double().sort(dim=-1, descending=True).values
    beyond = (u.cumsum(-1) - 1) / torch.arange(1, v.shape[-1] + 1)  # theta, if so many entries were above 0
    rho = (u > beyond).sum(-1, keepdim=True)
    return (v - beyond.gather(-1, rho - 1)).clamp_min(0).to(v.dtype)


def told(module: Any, network: nn.Module, labels: Tensor, texts: list[str]) -> nn.Module:
    """The same weights, told these texts for the labels and no other texts but the labels' own prompts."""
    asked, reader = network.__dict__["captions"], copy.copy(network)
    instead = dict(zip(labels.tolist(), texts, strict=True))
    prompts = tuple(instead.get(label, asked.texts[label]) for label in range(len(asked.names)))
    module.caption(reader, asked._replace(texts=prompts, labels=tuple(range(len(prompts)))))
    return reader
