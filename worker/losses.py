"""A method's losses by step, thinned as they come: at most `POINTS` of each, so neither memory nor report grows with the run.

Steps are parted into equal stretches, and a point is the mean of one loss over one stretch. A step costs one addition per
figure, on the figure's own device; nothing is read from the device before the end. After a resume the curves hold the
steps that this attempt saw.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

POINTS = 200

Curves = Mapping[str, dict[str, Any]]  # by the loss's name, as app/report.py says; JSON


class Stretch(NamedTuple):
    """What one loss came to in one stretch so far."""

    last: int  # step
    steps: int  # that had the loss
    sum: Tensor  # (), float32


class Losses:
    """Only what trains has curves: a method that never offers resume state does not move weights step by step."""

    def __init__(self) -> None:
        self.trains = False
        self._every = 1  # steps of one stretch
        self._stretches: dict[str, dict[int, Stretch]] = {}

    def add(self, step: int, total: int, figures: dict[str, Tensor]) -> None:
        """`figures`: tensors of one element, on any device, of `step` out of `total`; not every step has every figure."""
        self._every = max(1, math.ceil(total / POINTS))
        at = (step - 1) // self._every
        for name, figure in figures.items():
            stretches, value = self._stretches.setdefault(name, {}), figure.detach().float().reshape(())
            before = stretches.get(at, Stretch(step, 0, torch.zeros_like(value)))
            stretches[at] = Stretch(step, before.steps + 1, before.sum + value)

    def curves(self) -> Curves:
        """By name `every`, the length of a stretch; `steps`, the last of each that has the loss; `values`, their means."""
        drawn = self._stretches if self.trains else {}
        return {name: {"every": self._every, **_read(list(each.values()))} for name, each in drawn.items()}


def _read(stretches: list[Stretch]) -> dict[str, list[Any]]:
    sums = torch.stack([each.sum for each in stretches]).tolist()
    means = [total / each.steps for total, each in zip(sums, stretches, strict=True)]
    return {"steps": [each.last for each in stretches], "values": [_finite(mean) for mean in means]}


def _finite(mean: float) -> float | None:
    """Six digits; JSON has no NaN, so a mean that left the numbers is null."""
    return float(f"{mean:.6g}") if math.isfinite(mean) else None
