"""What the unlearning step takes: the kernel's own high-water mark, set back when the step begins."""

from pathlib import Path

import numpy as np
import pytest
import torch

from worker import cost

MB = 1 << 20


def test_the_peak_is_of_the_step_alone() -> None:
    """A peak before it does not count, one within it does, also when it is over by the end."""
    before = np.ones(400 * MB, dtype=np.uint8)
    del before
    spent = cost.start(torch.device("cpu"))
    resting = cost.peak() or 0
    within = np.ones(150 * MB, dtype=np.uint8)
    del within
    taken = spent()
    assert taken.host_bytes is not None
    assert 140 * MB < taken.host_bytes - resting < 200 * MB
    assert taken.device_bytes is None and taken.joules is None


def test_where_the_mark_cannot_be_set_back_nothing_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clear_refs").mkdir()
    monkeypatch.setattr(cost, "PROCESS", tmp_path)
    assert cost.start(torch.device("cpu"))().host_bytes is None
