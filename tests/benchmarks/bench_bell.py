"""POST to "the runner has the job", with a warm runner: medians on both deployments. `python -m tests.benchmarks.bench_bell`.

The end is the job's first event, which the runner sends when it has the job. One JSON line per deployment.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from app.records.job_event import JobEvent
from tests import services
from tests.running import Running

ROUNDS = 21
TARGETS = {"embedded": 0.5, "production": 0.1}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measure("embedded", Running(root / "embedded"), root)
        (root / "redis").mkdir()
        with services.postgres(root / "pg") as server, services.redis_server(root / "redis") as broker:
            running = Running(root / "production", services.fresh_database(server), broker)
            measure("production", running, root / "networks")


def measure(name: str, running: Running, folder: Path) -> None:
    try:
        running.start("server", "gpu")
        running.add_classifier(folder)
        waits = [wait(running) for _ in range(ROUNDS)][1:]  # the first one warms the runner up
    finally:
        running.stop()
    figures = {"median": statistics.median(waits), "worst": max(waits), "target": TARGETS[name]}
    print(json.dumps({"name": f"post_to_runner.{name}", **figures, "unit": "s", "n": len(waits)}))


def wait(running: Running) -> float:
    """Seconds from just before the POST to the time that the first event carries."""
    begun = time.time()
    posted = running.client.request("digits", {"class_label": "1"}, method="salun", recipe={"epochs": 1})
    assert running.client.wait(posted["id"])["status"] == "completed"
    with running.lethe.store.read() as session:
        query = select(JobEvent.at).where(JobEvent.job_id == posted["jobs"][0]["id"], JobEvent.seq == 1)
        first = session.scalars(query).one()
    return first - begun


if __name__ == "__main__":
    main()
