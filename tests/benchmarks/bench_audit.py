"""Age of the oldest audit entry without a number while four writers write, on both deployments. `python -m tests.benchmarks.bench_audit`.

The server runs as a process of its own and numbers what the writers commit; every entry has its number in the end, or it fails.
One JSON line per deployment.
"""

import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

from sqlalchemy import func, select

from app.records import audit_queue, history
from app.records.audit_entry import AuditEntry
from app.records.base import now
from app.records.history import HistoryEntry
from app.records.session import Store
from tests import services
from tests.history import settle
from tests.running import Running

WRITERS, SECONDS, ROWS = 4, 10.0, 3  # rows of each transaction
TARGET = 1.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        measure("embedded", Running(root / "embedded"))
        (root / "redis").mkdir()
        with services.postgres(root / "pg") as server, services.redis_server(root / "redis") as broker:
            measure("production", Running(root / "production", services.fresh_database(server), broker))


def measure(name: str, running: Running) -> None:
    ages: list[float] = []
    try:
        running.start("server")
        store = running.lethe.store
        until = time.monotonic() + SECONDS
        writers = [threading.Thread(target=write, args=(store.url, until)) for _ in range(WRITERS)]
        for each in writers:
            each.start()
        while time.monotonic() < until:
            ages.append(oldest(store))
            time.sleep(0.05)
        for each in writers:
            each.join()
        settle(store)
        with store.read() as session:
            entries, rows = (
                session.scalar(select(func.count()).select_from(each)) or 0 for each in (AuditEntry, HistoryEntry)
            )
        assert entries == rows > ROWS * WRITERS
    finally:
        running.stop()
    figures = {"median": statistics.median(ages), "worst": max(ages), "target": TARGET, "unit": "s"}
    print(json.dumps({"name": f"audit_unnumbered.{name}", **figures, "rows_per_second": round(rows / SECONDS)}))


def write(url: str, until: float) -> None:
    store = Store(url)
    while time.monotonic() < until:
        with store.write() as session:
            for _ in range(ROWS):
                history.write(session, "bench", "thing.done", "thing")
        time.sleep(0.01)
    store.close()


def oldest(store: Store) -> float:
    waiting = select(now() - func.min(HistoryEntry.at)).join(
        audit_queue.Waiting, audit_queue.Waiting.history_id == HistoryEntry.id
    )
    with store.read() as session:
        return session.scalar(waiting) or 0.0


if __name__ == "__main__":
    main()
