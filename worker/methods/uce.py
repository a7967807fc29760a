"""UCE: solve, in closed form, for the cross attention that reads the concept as if something else had been written.

Rohit Gandikota, Hadas Orgad, Yonatan Belinkov, Joanna Materzynska, David Bau. Unified Concept Editing in Diffusion Models.
WACV 2024. arXiv 2308.14761.

The paper's problem, for each linear map W that reads text states, with erased states c_i, guides v_i = W g_i, kept states p_j:

    min_W'  a * sum_i || W' c_i - W g_i ||^2 + b * sum_j || W' p_j - W p_j ||^2 + lambda * || W' - W ||^2

    Input   maps W, the concept's texts, texts to keep, scales a and b, lambda
    1.  C <- [sqrt(a) c_1 ... , sqrt(b) p_1 ...]        where each text names its subject, one column per text: (d, k)
    2.  G <- [sqrt(a) g_1 ... , sqrt(b) p_1 ...]        the guides; a kept text is its own
    3.  V <- (lambda I_k + C^T C)^-1 C^T                one k x k solve for all maps
    4.  W' <- W + W (G - C) V                           for each W
    5.  W' - W has at most as many dimensions as there are erased texts, and W' (I - (G - C)(I_k + V (G - C))^-1 V) = W

Symbols: W `family.projections`, c, p and g `family.prompt_vectors`, a `erase_scale`, b `preserve_scale`, lambda `ridge`.

3. and 4. are exact: W' = (lambda W + W G C^T)(lambda I + C C^T)^-1 is the paper's solution, and
C^T (lambda I_d + C C^T)^-1 = (lambda I_k + C^T C)^-1 C^T. The release inverts the same d x d matrix once for every map.

Erased: every distinct text of the forget set, and its label's own prompt. Kept: the prompts of the retain set's labels. `guide`:
"null" what an empty prompt reads, "next" the next label that stays. No image is read, and nothing is drawn by chance.
The text's pooled vector (SDXL, SD3, Flux) does not pass through W, and stays. A flow transformer has one map, its context
embedder: editing it moves every layer's reading of the text at once.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Samples, TextGenerator, Trace

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]


def unlearn(
    network: nn.Module,
    family: "TextGenerator",
    forget: "Samples",
    retain: "Samples",
    *,
    guide: Literal["null", "next"] = "null",
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
    ridge: float = 0.5,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
) -> "Trace":
    family.check(network, forget, "forget")
    if preserve_scale > 0:
        family.check(network, retain, "retain")
    network.eval()
    gone = family.labels_of(network, forget.y).unique()
    erased = torch.cat([forget.y, gone]).unique()
    kept = family.labels_of(network, retain.y).unique() if preserve_scale > 0 else gone[:0]
    kept = kept[~torch.isin(kept, gone)]
    guides = guide_texts(network, family, erased, gone, guide)
    # 1. and 2.
    c, p, g = (columns(network, family, texts) for texts in (erased, kept, guides))
    C = torch.cat([erase_scale**0.5 * c, preserve_scale**0.5 * p], dim=1)
    G = torch.cat([erase_scale**0.5 * g, preserve_scale**0.5 * p], dim=1)
    # 3.
    V = right_factor(C, ridge)
    # 4.
    maps, changes = family.projections(network), {}
    for step, (name, W) in enumerate(maps.items(), 1):
        change = edit(W, G - C, V)
        changes[name] = float(change)
        on_step(step, len(maps), {"relative_change": change}, None)
    return {"erased": c.shape[1], "preserved": p.shape[1], "relative_change": changes}


def guide_texts(network: nn.Module, family: "TextGenerator", erased: Tensor, gone: Tensor, guide: str) -> Tensor:
    """For each erased text the one that takes its place: none, or the prompt of the next label that stays."""
    if guide == "null":
        return torch.full_like(erased, family.null_label(network))
    labels = family.label_count(network)
    staying = [label for label in range(labels) if label not in gone.tolist()]
    if not staying:
        raise ValueError("forget.y: every label is to be forgotten, so that none is left to guide to")
    spoken = family.labels_of(network, erased).tolist()
    return erased.new_tensor([min(staying, key=lambda other: (other - label) % labels) for label in spoken])


def columns(network: nn.Module, family: "TextGenerator", texts: Tensor) -> Tensor:
    """What the maps read of each text's subject, (d, k), in double precision."""
    with torch.no_grad():
        return family.prompt_vectors(network, texts).double().T


def right_factor(C: Tensor, ridge: float) -> Tensor:
    """(lambda I_k + C^T C)^-1 C^T, (k, d)."""
    gram = C.T @ C + ridge * torch.eye(C.shape[1], dtype=C.dtype, device=C.device)
    return torch.linalg.solve(gram, C.T)


@torch.no_grad()
def edit(W: nn.Parameter, left: Tensor, right: Tensor) -> Tensor:
    """W <- W + W @ left @ right, in place; how large the change is against W."""
    whole = W.double()
    change = whole @ left @ right
    W.copy_(whole + change)
    return change.norm() / whole.norm()
