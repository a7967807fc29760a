"""The process that reads uploads, as the server holds it: started once, given jobs, started again when it is gone.

It has an empty environment and none of the server's files; app/privacy/decoder.py is what runs in it. It ends when this
process does, by the end of its socket.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.errors import Unavailable

ROOT = Path(__file__).resolve().parent.parent


class DecoderProcess:
    """The process that forks a child for each job, as the server holds it; started again when it is gone."""

    def __init__(self) -> None:
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            self._started()

    def stop(self) -> None:
        """End it with whatever it reads, so that nothing outlives a server that ends in order."""
        with self._lock:
            if self._control is not None:
                self._drop()

    def give(self, job: dict[str, Any], files: list[int]) -> int:
        """Start a child on the job with these open files; a handle that kills it. Unavailable when that fails twice."""
        message = json.dumps(job).encode()
        with self._lock:
            for _ in range(2):
                control = self._started()
                try:
                    socket.send_fds(control, [message], files)
                    answer, handles, _, _ = socket.recv_fds(control, 64, 1)
                except OSError:
                    answer, handles = b"", []
                if answer and handles:
                    return handles[0]
                self._drop()
        raise Unavailable("The decoder")

    def _started(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.settimeout(60)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "app.privacy.decoder"],
                    env={"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
                    cwd="/",
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    process_group=0,
                )
        return self._control

    def _drop(self) -> None:
        assert self._control and self._process
        self._control.close()
        self._process.kill()
        self._process.wait()
        self._control = None


@lru_cache(maxsize=1)
def decoder_process() -> DecoderProcess:
    """This process's own: it holds nothing of a deployment."""
    return DecoderProcess()


def end(child: int) -> None:
    """Kill the child, if it lives, and let go of its handle."""
    try:
        signal.pidfd_send_signal(child, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(child)
