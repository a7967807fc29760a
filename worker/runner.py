"""The process that imports torch: jobs in on stdin, events and results out on stdout, one JSON document a line.

It knows its job and nothing else: no database, no master key, no network. It decodes what strangers uploaded, so it
is a process of its own that can be killed at any moment without harm.
"""

import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import structlog
import torch

from app import logs
from app.errors import JobError, Stopped
from worker import attack_run
from worker.load import Warm
from worker.run import run

PR_SET_PDEATHSIG = 1


class Pipe:
    """Both ends of the supervisor's pipe. The end of input ends the process, whatever it is doing."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what libraries print goes to the log, not into the protocol
        self._lock = threading.Lock()
        self._stop: str | None = None
        self._attempt: str | None = None
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, kind: str, data: dict[str, Any]) -> None:
        with self._lock:
            message = {"kind": kind, "data": data, "attempt": self._attempt}
            self._out.write(json.dumps(message, allow_nan=False) + "\n")
            self._out.flush()

    def stop(self) -> str | None:
        return self._stop

    def next_job(self) -> dict[str, Any]:
        """Waits for a job; whatever is told from then on belongs to this attempt of it."""
        specification = self.jobs.get()
        self._attempt = f"{specification['job']}-{specification['token']}"
        return specification

    def _listen(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "stop" in message:
                self._stop = message["stop"]
            else:
                self._stop = None
                self.jobs.put(message["run"])
        os._exit(0)


def attempt(specification: dict[str, Any], warm: Warm, pipe: Pipe) -> None:
    """One job, and whatever became of it as one last message."""
    try:
        run_job = attack_run.run if "unlearned" in specification else run
        outcome = run_job(specification, warm, pipe.tell, pipe.stop)
    except Stopped as stopped:
        pipe.tell("stopped", {"why": stopped.code})
    except JobError as error:
        pipe.tell("failed", {"code": error.code, "detail": error.detail})
    except torch.OutOfMemoryError:
        pipe.tell(
            "failed", {"code": "out_of_memory", "detail": "The device has too little memory: use a smaller batch."}
        )
    except MemoryError:
        pipe.tell("failed", {"code": "out_of_memory", "detail": "The host has too little memory for this job."})
    except Exception as error:  # noqa: BLE001  (the last line of defence; the message may hold personal data)
        structlog.get_logger().error("run.failed", error=type(error).__name__, where=_where(error))
        pipe.tell("failed", {"code": "internal_error", "detail": f"{type(error).__name__} at {_where(error)}"})
    else:
        pipe.tell("done", {**outcome, "resident_mb": resident_mb()})


def resident_mb() -> float:
    """The most that was resident since the last unlearning step began, which sets the kernel's mark back."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _where(error: BaseException) -> str:
    """File and line of the innermost frame: enough to find the fault, nothing of the data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"


def die_with(parent: int) -> None:
    """Ask for a kill when the thread that started this process ends; end now if it already did."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def main() -> None:
    die_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.umask(0o077)
    logs.configure()
    pipe, warm = Pipe(), Warm(Path(sys.argv[2]) / "networks")
    pipe.tell("ready", {})
    while True:
        attempt(pipe.next_job(), warm, pipe)


if __name__ == "__main__":
    main()
