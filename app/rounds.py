"""What a server does again and again beside its answers, in a thread of its own."""

import os
import socket
import threading
from collections.abc import Callable

Round = Callable[[str], float]  # is told who calls; gives the seconds until the next


class Rounds:
    """`holder` names this process wherever one of several may do the work. `first`: seconds until the first round."""

    def __init__(self, name: str, once: Round, first: float) -> None:
        self.holder = f"{name}:{socket.gethostname()}:{os.getpid()}"
        self._once, self._pause = once, first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            self._pause = self._once(self.holder)
