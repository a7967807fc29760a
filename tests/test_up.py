"""`lethe up` as a newcomer runs it: one key, a worker that comes back, and nothing left when it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.client import Lethe
from tests import pictures, tiny
from tests.running import children, until
from tests.services import free_port


class Up:
    """One start of `lethe up` on a data folder."""

    def __init__(self, data: Path) -> None:
        self.port = free_port()
        environment = {**os.environ, "LETHE_LEASE_SECONDS": "3", "LETHE_SWEEP_SECONDS": "0.5", "LETHE_THREADS": "1"}
        command = [sys.executable, "-m", "app.cli", "up", "--data", str(data), "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.greeting: list[str] = []
        for line in self.process.stdout:
            self.greeting.append(line)
            if line.startswith("next"):
                break
        until(self._answers, "lethe up answers")

    def worker(self) -> int | None:
        for child in children(self.process.pid):
            if b"celery" in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
        return None

    def tree(self) -> set[int]:
        """Every process below this one."""
        found, todo = set(), [self.process.pid]
        while todo:
            below = children(todo.pop())
            found |= set(below)
            todo += below
        return found

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    """Starts `lethe up` on one folder; whatever still runs at the end is killed."""
    started: list[Up] = []

    def make() -> Up:
        started.append(Up(tmp_path / "lethe"))
        return started[-1]

    yield make
    for up in started:
        up.process.kill()


def running(pids: set[int]) -> list[int]:
    return [
        pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()
    ]


def test_up_survives_its_worker_and_leaves_nothing_behind(start: Callable[[], Up], tmp_path: Path) -> None:
    first = start()
    key = next(line.split()[2] for line in first.greeting if line.startswith("admin key"))
    client = Lethe(f"http://127.0.0.1:{first.port}", key)
    client.upload_dataset(pictures.imagefolder(), "train", "set")
    directory = tiny.write("vit", tmp_path / "vit")
    client.register_model(directory, "m", "image_classifier", train="set", retain="set", policy={"class_label": []})
    done = client.wait(client.request("m", {"class_label": "0"}, method="salun", recipe={"epochs": 1})["id"])
    assert done["status"] == "completed"

    worker = first.worker()
    assert worker is not None
    os.kill(worker, signal.SIGKILL)
    done = client.wait(client.request("m", {"class_label": "1"}, method="salun", recipe={"epochs": 1})["id"])
    assert done["status"] == "completed" and first.worker() not in (None, worker)

    below = first.tree()
    first.process.kill()
    first.process.wait()
    until(lambda: not running(below), "a killed server takes its worker and runner with it", seconds=90)

    second = start()
    assert not any(line.startswith("admin key") for line in second.greeting)
    with Lethe(f"http://127.0.0.1:{second.port}", key) as again:
        assert again.call("GET", "/v1/models/m")["head"] == 3
    until(lambda: len(second.tree()) >= 3, "worker, pool child and runner run")
    below = second.tree()
    second.process.send_signal(signal.SIGINT)
    assert second.process.wait(timeout=60) == 0
    assert running(below) == []
    client.close()
