"""POST of an image set to 201, with its decoding process: medians. `python -m tests.benchmarks.bench_intake`.

One JSON line for a set of one image, one for 24 images of 224 x 224, both of role forget.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

from tests import hostile
from tests.running import Running

ROUNDS = 21
SETS = {"one": 1, "twenty_four": 24}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        running = Running(Path(folder) / "embedded")
        try:
            running.start("server")
            for name, count in SETS.items():
                measure(name, running, count)
        finally:
            running.stop()


def measure(name: str, running: Running, count: int) -> None:
    picture = hostile.saved("PNG", size=(224, 224))
    body = hostile.zipped({f"0/{at}.png": picture for at in range(count)})
    waits = [wait(running, body) for _ in range(ROUNDS)][1:]
    figures = {"median": statistics.median(waits), "worst": max(waits)}
    print(json.dumps({"name": f"upload.{name}", **figures, "unit": "s", "n": len(waits)}))


def wait(running: Running, body: bytes) -> float:
    begun = time.perf_counter()
    assert running.client.upload_dataset(body, "forget")["sealed"]
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
