"""Progress and resume state: finite figures, saved only sealed, and never gone on from under another base."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import Stopped
from worker.progress import Progress, ResumableProgress

KEY = bytes(32)


def moving(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), 0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"network": network, "optimizer": optimizer, "generator": torch.Generator().manual_seed(seed)}


def saved(tmp_path: Path, context: bytes) -> bytes:
    told: list[tuple[str, dict[str, Any]]] = []
    progress = ResumableProgress(
        lambda kind, data: told.append((kind, data)), lambda: "drained", KEY, context, tmp_path, 60
    )
    with pytest.raises(Stopped) as stopped:
        progress.on_step(3, 10, {"loss": torch.tensor(1.0)}, moving(seed=1))
    assert stopped.value.code == "drained"
    path = next(data["path"] for kind, data in told if kind == "saved")
    return Path(path).read_bytes()


def test_a_drained_job_goes_on_where_it_was(tmp_path: Path) -> None:
    progress = ResumableProgress(lambda kind, data: None, lambda: None, KEY, b"job/base-1", tmp_path, 60)
    progress.sealed = saved(tmp_path, b"job/base-1")
    other, same = moving(seed=2), moving(seed=1)
    assert progress.resume(other) == 3
    assert torch.equal(other["network"].weight, same["network"].weight)
    assert other["generator"].initial_seed() == same["generator"].initial_seed()


def test_state_from_another_base_is_not_gone_on_from(tmp_path: Path) -> None:
    told: list[str] = []
    progress = ResumableProgress(lambda kind, data: told.append(kind), lambda: None, KEY, b"job/base-2", tmp_path, 60)
    progress.sealed = saved(tmp_path, b"job/base-1")
    fresh = moving(seed=2)
    before = fresh["network"].weight.clone()
    assert progress.resume(fresh) == 0
    assert torch.equal(fresh["network"].weight, before) and told == ["note"]


def test_saved_state_is_ciphertext(tmp_path: Path) -> None:
    sealed = saved(tmp_path, b"job/base-1")
    assert b"optimizer" not in sealed and b"network" not in sealed


def test_cancel_does_not_wait_for_a_step_that_can_be_resumed(tmp_path: Path) -> None:
    progress = ResumableProgress(lambda kind, data: None, lambda: "cancelled", KEY, b"c", tmp_path, 60)
    with pytest.raises(Stopped):
        progress.on_step(1, 10, {}, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_left_the_numbers_is_told_as_null(value: float) -> None:
    told: list[dict[str, Any]] = []
    Progress(lambda kind, data: told.append(data), lambda: None)(5, 5, {"loss": value})
    assert told[0]["loss"] is None and told[0]["step"] == 5
