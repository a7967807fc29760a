"""Re-cropping: is what was forgotten restored when the network is shown other parts of it?

Named after the re-cropping of Li, Hsu, Chen, Marculescu, Machine Unlearning for Image-to-Image Generative Models, ICLR 2024,
arXiv 2402.00351, who feed what the unlearned network made to the base again. Here the network itself is asked
again, about the same images, cropped otherwise.

    Input   theta_u, forget set D_f, retain set D_r
    1.  as it is asked in the report: which images of D_f are given away, which of D_r
    2.  under each other view: other holes (middle, edges, corners, halves, all but the middle), other shares of scattered
        patches, and under the report's own masks the image moved by a patch or mirrored
    3.  the view under which most of D_f is given away

A method that trained on one kind of mask may have emptied the encoder for that kind alone. An image is given away where
the judge calls the restored one as it calls the original, and would not call it so with noise, black, grey, white or the
visible part's mean in the hidden place: a small hole hides nothing, and nothing is won there. So no network gives all away under every view; the base beside it
shows what can be had.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from worker.attacks import Found, Progress, Recognised, at_most, count_of, counted

if TYPE_CHECKING:
    from worker.families import Family, Samples

SHARES = (0.25, 0.5, 0.75, 0.9)  # of scattered patches


def attack(
    network: nn.Module,
    family: "Family",
    forget: "Samples",
    retain: "Samples",
    unseen: "Samples | None",
    recognised: Recognised,
    *,
    measured: int = 200,
    generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Found:
    forget, retain = at_most(forget, measured, generator), at_most(retain, measured, generator)
    module: Any = family
    grid = module.masks(network, 1, "random", 0.5, generator).shape[1:]
    height, width = module.image_shape(network)[1:]
    step = (height // grid[0], width // grid[1])  # a patch, in pixels
    seed = int(torch.randint(2**62, (), generator=generator))

    def asked(samples: "Samples", view: str) -> Tensor:
        # 2.
        if view in HOLES:
            hole = torch.zeros(grid, dtype=torch.bool)
            hole[HOLES[view](*grid)] = True
            return recognised(network, samples, masks=hole.expand(len(samples.y), -1, -1))
        if view in SCATTERED:
            same = torch.Generator().manual_seed(seed)
            masks = module.masks(network, len(samples.y), "random", SCATTERED[view], same)
            return recognised(network, samples, masks=masks)
        return recognised(network, samples._replace(x=MOVED[view](samples.x, step)))

    views = [*MOVED, *HOLES, *SCATTERED]  # the first is the report's own
    rows: list[dict[str, Any]] = []
    for view in views:
        # 1.
        rows.append({"view": view, **counted(asked(forget, view)), "kept": counted(asked(retain, view))})
        progress(len(rows), len(views))
    # 3.
    most = max(rows[1:], key=lambda row: row["success"])
    return {"before": count_of(rows[0]), "after": count_of(most), "rows": rows, "budget": {"views": len(views) - 1}}


Region = Callable[[int, int], tuple[slice, slice]]  # of rows and columns of patches


def part(top: float, bottom: float, left: float, right: float) -> Region:
    """What lies between these shares of height and width."""
    return lambda rows, columns: (
        slice(round(top * rows), max(round(bottom * rows), round(top * rows) + 1)),
        slice(round(left * columns), max(round(right * columns), round(left * columns) + 1)),
    )


MOVED: Mapping[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "as asked": lambda x, patch: x,
    "moved down": lambda x, patch: x.roll(patch[0], 2),
    "moved up": lambda x, patch: x.roll(-patch[0], 2),
    "moved right": lambda x, patch: x.roll(patch[1], 3),
    "moved left": lambda x, patch: x.roll(-patch[1], 3),
    "mirrored": lambda x, patch: x.flip(3),
}
HOLES: Mapping[str, Region] = {
    "hole in the middle": part(0.25, 0.75, 0.25, 0.75),
    "hole at the upper left": part(0, 0.5, 0, 0.5),
    "hole at the upper right": part(0, 0.5, 0.5, 1),
    "hole at the lower left": part(0.5, 1, 0, 0.5),
    "hole at the lower right": part(0.5, 1, 0.5, 1),
    "upper half hidden": part(0, 0.5, 0, 1),
    "lower half hidden": part(0.5, 1, 0, 1),
    "left half hidden": part(0, 1, 0, 0.5),
    "right half hidden": part(0, 1, 0.5, 1),
}
SCATTERED: Mapping[str, float] = {f"{share:.0%} of the patches hidden": share for share in SHARES}
