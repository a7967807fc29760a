"""Loss curves: thinned as they come, without reading the device, of what trains alone, and drawn with every series."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from app.report import Loss
from worker import curves
from worker.losses import POINTS, Losses
from worker.progress import ResumableProgress

WEIGHTS: dict[str, Any] = {"network": torch.nn.Linear(1, 1)}


def told(total: int, first: int = 1, period: int = 1) -> Losses:
    """The loss of step s is s; every `period`-th step has the forget loss, the others the retain loss."""
    losses = Losses()
    losses.trains = True
    for step in range(first, total + 1):
        name = "forget_loss" if (step - 1) % period == 0 else "retain_loss"
        losses.add(step, total, {name: torch.tensor(float(step))})
    return losses


@pytest.mark.parametrize("total", [1, 7, POINTS, POINTS + 1, 12_345])
def test_a_run_of_any_length_has_at_most_so_many_points_each_the_mean_of_its_stretch(total: int) -> None:
    curve = told(total).curves()["forget_loss"]
    every, steps = curve["every"], curve["steps"]
    assert every == math.ceil(total / POINTS) and len(steps) <= POINTS and len(steps) == math.ceil(total / every)
    begins = [1, *(step + 1 for step in steps[:-1])]
    assert steps[-1] == total and all(
        end - begin + 1 == every for begin, end in list(zip(begins, steps, strict=True))[:-1]
    )
    means = [(begin + end) / 2 for begin, end in zip(begins, steps, strict=True)]
    assert curve["values"] == pytest.approx(means, rel=1e-5)


def test_sets_that_take_turns_have_steps_of_their_own() -> None:
    found = told(12, period=4).curves()
    assert found["forget_loss"] == {"every": 1, "steps": [1, 5, 9], "values": [1.0, 5.0, 9.0]}
    assert found["retain_loss"]["steps"] == [2, 3, 4, 6, 7, 8, 10, 11, 12]
    thinned = told(2 * POINTS, period=4).curves()
    assert thinned["forget_loss"]["steps"][:3] == [1, 5, 9] and thinned["forget_loss"]["values"][:3] == [1.0, 5.0, 9.0]
    assert thinned["retain_loss"]["steps"][:3] == [2, 4, 6] and thinned["retain_loss"]["values"][:3] == [2.0, 3.5, 6.0]


class Unread(torch.Tensor):
    """What is computed of it is not to be read either."""

    def item(self) -> float:
        raise AssertionError("read")

    __float__ = __bool__ = __int__ = tolist = numpy = item  # type: ignore[assignment]


def test_no_step_reads_a_figure() -> None:
    losses = Losses()
    losses.trains = True
    for step in range(1, 2 * POINTS):
        losses.add(step, 2 * POINTS, {"loss": torch.zeros(1).as_subclass(Unread)})
    with pytest.raises(AssertionError, match="read"):
        losses.curves()


def test_half_precision_does_not_add_up_its_rounding() -> None:
    losses = Losses()
    losses.trains = True
    for step in range(1, 1001):
        losses.add(step, 1000 * POINTS, {"loss": torch.tensor(1.0, dtype=torch.bfloat16)})
    assert losses.curves()["loss"]["values"] == [1.0]


def test_a_mean_that_left_the_numbers_is_null_and_the_others_stay() -> None:
    losses = Losses()
    losses.trains = True
    for step, value in enumerate([1.0, math.nan, 3.0, math.inf], 1):
        losses.add(step, 4, {"loss": torch.tensor(value)})
    found = losses.curves()
    assert found["loss"]["values"] == [1.0, None, 3.0, None]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert Loss.model_validate(found["loss"]).values == [1.0, None, 3.0, None]


def progress(tmp_path: Path) -> ResumableProgress:
    return ResumableProgress(lambda kind, data: None, lambda: None, bytes(32), b"c", tmp_path, 60)


def test_what_moves_no_weights_step_by_step_has_no_curves(tmp_path: Path) -> None:
    one, other = progress(tmp_path), progress(tmp_path)
    for step in range(1, 4):
        one.on_step(step, 3, {"loss": torch.tensor(1.0)}, None)
        other.on_step(step, 3, {"loss": torch.tensor(1.0)}, WEIGHTS if step == 3 else None)  # at rest at an epoch's end
    assert one.losses.curves() == {} and other.losses.curves()["loss"]["steps"] == [1, 2, 3]


def test_after_a_resume_a_curve_holds_what_this_attempt_saw_at_its_own_steps() -> None:
    curve = told(1000, first=503).curves()["forget_loss"]
    assert curve["every"] == 5 and curve["steps"][:2] == [505, 510] and curve["values"][:2] == [504.0, 508.0]


@pytest.mark.parametrize("period", [2, 50])
def test_both_sets_are_drawn_though_they_take_turns(period: int) -> None:
    found = told(600, period=period).curves()
    found["forget_loss"]["values"].reverse()
    drawn = curves.pictures({}, found)
    assert set(drawn) == {"losses.png"}
    (red, dark), (of_forget, _), (_, of_retain) = (
        inked(png) for png in (drawn["losses.png"], *(curves.of_losses({name: found[name]}) for name in found))
    )
    assert red > of_forget / 2 > 50 and dark > of_retain and of_retain > 500


def inked(png: bytes) -> tuple[int, int]:
    """Pixels in the forget set's red, and dark ones."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((pixels[..., 0] - pixels[..., 1] > 60).sum()), int((pixels.max(axis=2) < 60).sum())


@pytest.mark.parametrize("values", [[None, None], [0.0, -1.0], [1e-9, 1e9], [2.0]])
def test_losses_of_any_size_can_be_drawn(values: list[float | None]) -> None:
    found = {"loss": {"every": 1, "steps": list(range(1, len(values) + 1)), "values": values}}
    assert curves.of_losses(found).startswith(b"\x89PNG")


def test_without_losses_there_is_no_picture() -> None:
    assert curves.pictures({}, {}) == {}
