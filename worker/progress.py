"""What a method's `on_step` and `resume` are: progress for people, losses by step, the check for a stop, and sealed resume state.

The state holds what moves: the trainable tensors, the optimizer, the generator and the number of steps done. It
leaves the process only sealed with the job's key.
"""

import io
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from app.errors import Stopped
from app.privacy.sealing import SealBroken, seal, unseal
from worker.losses import Losses

Tell = Callable[[str, dict[str, Any]], None]


class Progress:
    """One stage's progress. `stop` returns a reason (cancelled, drained) once the job should end early."""

    def __init__(self, tell: Tell, stop: Callable[[], str | None], every_seconds: float = 0.5) -> None:
        self._tell, self._stop, self._every = tell, stop, every_seconds
        self._begun = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, step: int, total: int, figures: dict[str, Any] | None = None) -> None:
        """Tell at most twice a second, and always at the end. Raises Stopped."""
        clock = time.monotonic()
        if self._first is None:
            self._first = step - 1
        if step >= total or clock - self._told >= self._every:
            self._told = clock
            done = max(1, step - self._first)
            left = (clock - self._begun) / done * (total - step)
            shown = {name: _finite(float(value)) for name, value in (figures or {}).items()}
            self._tell("progress", {"step": step, "total": total, "seconds_left": round(left, 1), **shown})
        if (why := self._stop()) is not None:
            raise Stopped(why)


def _finite(value: float) -> float | None:
    """JSON has no NaN; a loss that left the numbers shows as null."""
    return round(value, 6) if math.isfinite(value) else None


class ResumableProgress:
    """`on_step` and `resume` for a method, with state saved every `seconds` and when asked to drain.

    `context` names all that the state depends on: state that was sealed under another one is not gone on from.
    """

    def __init__(
        self, tell: Tell, stop: Callable[[], str | None], key: bytes, context: bytes, scratch: Path, seconds: float
    ) -> None:
        self._tell, self._stop = tell, stop
        self._key, self._context, self._scratch, self._seconds = key, context, scratch, seconds
        self._show = Progress(tell, lambda: None)
        self._saved_at = time.monotonic()
        self.losses = Losses()
        self.sealed: bytes | None = None  # state of an earlier attempt, to go on from

    def on_step(self, step: int, total: int, figures: dict[str, Any], moving: dict[str, Any] | None) -> None:
        self._show(step, total, figures)
        self.losses.add(step, total, figures)
        self.losses.trains |= moving is not None
        why = self._stop()
        due = time.monotonic() - self._saved_at >= self._seconds
        if moving is not None and step < total and (due or why == "drained"):
            self._save(step, moving)
        if why == "cancelled" or (why is not None and moving is not None):
            raise Stopped(why)

    def resume(self, moving: dict[str, Any]) -> int:
        """Restore what an earlier attempt saved. Returns the number of steps it had done."""
        if self.sealed is None:
            return 0
        try:
            raw = unseal(self._key, self.sealed, self._context)
        except SealBroken:
            self._tell("note", {"resume_state": "made from another base or retain set: starting over"})
            return 0
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        moving["network"].load_state_dict(state["network"])
        moving["optimizer"].load_state_dict(state["optimizer"])
        moving["generator"].set_state(state["generator"])
        self._tell("note", {"resumed_from_step": state["step"]})
        return int(state["step"])

    def _save(self, step: int, moving: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        state = {
            "network": moving["network"].state_dict(),
            "optimizer": moving["optimizer"].state_dict(),
            "generator": moving["generator"].get_state(),
            "step": step,
        }
        torch.save(state, buffer)
        path = self._scratch / f"resume-{step}"
        path.write_bytes(seal(self._key, buffer.getvalue(), self._context))
        self._tell("saved", {"path": str(path), "step": step})
        self._saved_at = time.monotonic()
