"""One warm runner: the process that holds torch, as its supervisor sees it.

A fresh interpreter (never a fork of this one, so no CUDA state is inherited) in a process group of its own. It ends
with this process: by the parent-death signal of the thread that started it, and by the end of its pipe.
Messages are JSON, one a line: jobs and stops go in, events and results come out.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SECRET = ("LETHE_", "PG", "POSTGRES", "REDIS", "CELERY", "AWS_")


class Runner:
    def __init__(self, scratch: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.runner", str(os.getpid()), str(scratch)],
            env=bare_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,
        )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._out.fileno(), False)
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._out, selectors.EVENT_READ)
        self._held = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        """A runner that has died is noticed by `receive`, so a broken pipe is no error here."""
        try:
            self._in.write(json.dumps(message).encode() + b"\n")
            self._in.flush()
        except BrokenPipeError:
            self._process.poll()

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None when `timeout` seconds bring none. Raises EOFError when the runner is gone."""
        until = time.monotonic() + timeout
        while b"\n" not in self._held:
            if not self._ready.select(max(0.0, until - time.monotonic())):
                return None
            piece = self._out.read(1 << 20)
            if piece == b"":
                raise EOFError
            self._held += piece or b""
        line, self._held = self._held.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def strike(self) -> None:
        """SIGKILL to the whole group; the end of its output is what `receive` sees next."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """Ends the whole group and waits for it, so that memory and device are free on return."""
        self.strike()
        self._process.wait()
        self._ready.close()
        for pipe in (self._in, self._out):
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what the dead runner had not read yet

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:  # once reaped, the number may be another's
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                self._process.poll()


def bare_environment() -> dict[str, str]:
    """This process's environment without what the runner must not know: where the database, broker and keys are."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SECRET)}
