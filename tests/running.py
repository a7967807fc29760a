"""Whole deployments as real processes, for tests that kill them: a server, workers, and what a client sees.

Embedded: SQLite and `filesystem://`. Production: Postgres and Redis. The same commands in both.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import migration
from app.client import Lethe
from app.deployment import Deployment, deploy
from app.settings import Settings
from tests import pictures, tiny
from tests.conftest import key_for
from tests.services import free_port, fresh_database


class Running:
    """Processes of one deployment in one folder; `stop` leaves none of them."""

    def __init__(self, data: Path, database_url: str = "", broker_url: str = "", **environment: str) -> None:
        self.settings = Settings(
            data=data, database_url=database_url, broker_url=broker_url, lease_seconds=3, sweep_seconds=0.5
        )
        self.lethe: Deployment = deploy(self.settings)
        migration.upgrade(self.lethe.store)
        self.port = free_port()
        self.environment = {
            **os.environ,
            "LETHE_DATA": str(data),
            "LETHE_DATABASE_URL": database_url,
            "LETHE_BROKER_URL": broker_url,
            "LETHE_PORT": str(self.port),
            "LETHE_LEASE_SECONDS": "3",
            "LETHE_SWEEP_SECONDS": "0.5",
            "LETHE_GRACE_SECONDS": "5",
            "LETHE_RESUME_SECONDS": "1",
            "LETHE_THREADS": "1",
            **environment,
        }
        self.output: Path | None = None  # a folder for what each process prints; the test's own output without one
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = Lethe(f"http://127.0.0.1:{self.port}", key_for(self.lethe))

    def start(self, *names: str) -> None:
        """`server`, or a worker under any other name."""
        for name in names:
            command = ["serve"] if name == "server" else ["work", "--name", f"{name}@test"]
            with open(self.output / name, "ab") if self.output else nullcontext() as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "app.cli", *command],
                    env=self.environment,
                    start_new_session=True,
                    stdout=log,
                    stderr=log,
                )
        if "server" in names:
            until(lambda: self._answers(), "the server answers")

    def kill(self, name: str) -> None:
        """SIGKILL to the one process, as the kernel does when memory runs out."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def kill_runner(self, name: str) -> int:
        """SIGKILL to the runner of a worker. Returns its process id."""
        runner = self.runner(name)
        assert runner is not None
        os.kill(runner, signal.SIGKILL)
        return runner

    def runner(self, name: str) -> int | None:
        """The process id of a worker's runner."""
        for child in children(self.processes[name].pid):
            for grandchild in children(child):
                if b"worker.runner" in Path(f"/proc/{grandchild}/cmdline").read_bytes():
                    return grandchild
        return None

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.client.close()
        self.lethe.store.close()

    def add_classifier(self, folder: Path, name: str = "digits", network: str = "vit", images: int = 6) -> None:
        """Register a tiny classifier with its sets of `images` each label, and a policy that anything meets."""
        directory = tiny.write(network, folder / name)
        self.client.upload_dataset(pictures.imagefolder(each=images, seed=1), "train", f"{name}-train")
        self.client.upload_dataset(pictures.imagefolder(each=images, seed=2), "test", f"{name}-test")
        self.client.register_model(
            directory, name, "image_classifier", train=f"{name}-train", retain=f"{name}-train", test=f"{name}-test",
            policy={"class_label": [], "samples": []},
        )  # fmt: skip

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        except httpx.TransportError:
            return False


def open_deployment(request: pytest.FixtureRequest, kind: str, folder: Path) -> Running:
    """`embedded` or `production`, with nothing started yet."""
    if kind == "embedded":
        return Running(folder)
    database = fresh_database(request.getfixturevalue("postgres_server"))
    return Running(folder, database, request.getfixturevalue("redis_url"))


def children(pid: int) -> list[int]:
    """Child processes, whichever thread started them."""
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in listed.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def until(condition: Callable[[], Any], what: str, seconds: float = 60, every: float = 0.02) -> Any:
    """Poll until `condition` is truthy and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {what}")
