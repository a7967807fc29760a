"""Quantised copies: does rounding the weights, as everybody does who serves them, bring back what was forgotten?

After Zhang et al., Catastrophic Failure of LLM Unlearning via Quantization, ICLR 2025, arXiv 2410.16454: weights that moved
by less than half a rounding step are the base's again once rounded, and so is what the network knows.

    Input   weights theta_u, forget set D_f, retain set D_r
    1.  on copies: every weight matrix w -> s * round(w / s), s = max |w| / (2^(bits - 1) - 1), per tensor;
        every tensor to float16 and back; every tensor to bfloat16 and back
    2.  which of D_f each copy recognises, and which of D_r, beside theta_u itself

Vectors (biases, scales of norms) stay as they are in the integer copy, as usual. `bits` = 4 is the harder test.
The copy that recognises most is the one that counts.
"""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worker.attacks import Found, Progress, Recognised, at_most, count_of, counted

if TYPE_CHECKING:
    from worker.families import Family, Samples


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    bits: int = 8,
    measured: int = 200,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    forget, retain = at_most(forget, measured, generator), at_most(retain, measured, generator)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "as stored": lambda weight: weight,
        f"int{bits}": lambda weight: to_integers(weight, bits) if weight.ndim > 1 else weight,
        "float16": lambda weight: weight.to(torch.float16).to(weight.dtype),
        "bfloat16": lambda weight: weight.to(torch.bfloat16).to(weight.dtype),
    }
    rows: list[dict[str, Any]] = []
    for name, way in ways.items():
        # 1.
        rounded = copy.deepcopy(network).eval()
        with torch.no_grad():
            for weight in rounded.parameters():
                if weight.is_floating_point():
                    weight.copy_(way(weight))
        # 2.
        row = {"copy": name, **counted(recognised(rounded, forget)), "kept": counted(recognised(rounded, retain))}
        rows.append(row)
        progress(len(rows), len(ways))
    worst = max(rows[1:], key=lambda row: row["success"])
    return {"before": count_of(rows[0]), "after": count_of(worst), "rows": rows, "budget": {"copies": len(ways) - 1}}


def to_integers(weight: Tensor, bits: int) -> Tensor:
    """Rounded to the nearest of 2^bits - 1 values that lie evenly about 0, as far as the largest entry."""
    scale = weight.abs().max().float() / (2 ** (bits - 1) - 1)
    if not bool(scale > 0):
        return weight
    return ((weight.float() / scale).round() * scale).to(weight.dtype)
