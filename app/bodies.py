"""What bodies may take of a server process's memory: how many large ones are held at a time, and for how long one is awaited."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from anyio import fail_after

from app.errors import Busy, Refused
from app.settings import Settings


class Bodies:
    def __init__(self, settings: Settings) -> None:
        self.seconds = settings.body_seconds
        self._free = threading.BoundedSemaphore(settings.large_bodies)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Room for one that is large: Busy at once when there is none."""
        if not self._free.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self._free.release()

    @contextmanager
    def in_time(self, left: float) -> Iterator[None]:
        """For what waits for a body that has so many seconds left to come in; Refused (408) after them."""
        try:
            with fail_after(left):
                yield
        except TimeoutError:
            raise Refused(
                "body-time",
                "body",
                f"It must be whole within {self.seconds:g} seconds.",
                "Send less, or ask the operator to raise LETHE_BODY_SECONDS.",
                408,
            ) from None
