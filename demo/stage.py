"""What the demo stands on: an embedded deployment of its own, and a workshop that trains networks two at a time."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Deployment:
    """`lethe up` as a child process, and the admin key that its first start printed."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.key_file = data, folder / "admin-key"
        self.address, self.key = "", ""

    def __enter__(self) -> "Deployment":
        port = str(free_port())
        self.address = f"http://127.0.0.1:{port}"
        environment = {**os.environ, "LETHE_DATA": str(self.data), "LETHE_PORT": port, "LETHE_THREADS": "1"}
        self._log = (self.key_file.parent / "lethe.log").open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "up"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("admin key"):
                keep_private(self.key_file, line.split()[2])
            else:
                print(line, end="")
            if line.startswith("next"):
                break
        if not self.key_file.exists():
            raise SystemExit(
                f"{self.data} has an admin key that the demo does not know: set LETHE_DATA to another folder."
            )
        self.key = self.key_file.read_text()
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        self._log.close()

    def _wait(self) -> None:
        for _ in range(600):
            if self._process.poll() is not None:
                raise SystemExit(f"lethe up ended: see {self._log.name}")
            try:
                if httpx.get(f"{self.address}/readyz").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit(f"lethe up does not answer: see {self._log.name}")


class Workshop:
    """The demo's networks, each trained in a process of its own, once; two processes side by side."""

    def __init__(self, folder: Path, digit: int, seeds: tuple[int, ...]) -> None:
        self._folder = folder
        self._wanted: dict[str, list[str]] = {
            "generator": ["generator"],
            f"generator-without-{digit}": ["generator-reference", "--label", str(digit)],
            "judge": ["judge"],
        }
        for seed in seeds:
            self._wanted[f"classifier-{seed}"] = ["classifier", "--seed", str(seed)]
            self._wanted[f"classifier-retrained-{seed}"] = ["classifier-reference", "--seed", str(seed)]

    def path(self, name: str) -> Path:
        return self._folder / name

    def build(self, console: Console) -> dict[str, float]:
        """Train what is missing, with a progress bar each. Returns the figures that training measured."""
        waiting: queue.Queue[str] = queue.Queue()
        columns = (
            TextColumn("{task.description:>24}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            bars = {}
            for name in self._wanted:
                if not self._figures(name).exists():
                    waiting.put(name)
                    bars[name] = progress.add_task(name, total=None)
            workers = [threading.Thread(target=self._work, args=(waiting, progress, bars)) for _ in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        missing = [name for name in self._wanted if not self._figures(name).exists()]
        if missing:
            raise SystemExit(f"training {missing[0]} failed")
        console.print(f"{len(self._wanted)} networks in {self._folder}")
        return {
            key: value for name in self._wanted for key, value in json.loads(self._figures(name).read_text()).items()
        }

    def _figures(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _work(self, waiting: "queue.Queue[str]", progress: Progress, bars: dict[str, Any]) -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            self._train(name, progress, bars[name])

    def _train(self, name: str, progress: Progress, bar: Any) -> None:
        what, *options = self._wanted[name]
        shutil.rmtree(self.path(name), ignore_errors=True)
        command = [sys.executable, "-m", "demo.networks", what, str(self.path(name)), *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                message = json.loads(line)
                if "progress" in message:
                    done, total = message["progress"]
                    progress.update(bar, completed=done, total=total)
                else:
                    self._figures(name).write_text(json.dumps(message["figures"]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def keep_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)
