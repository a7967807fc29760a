"""A job held by this worker: claim it, keep it, write under its token, give it back.

Everything here is one short transaction. LeaseLost means that another attempt owns the job: stop, write nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from app.errors import JobError, LeaseLost
from app.privacy.sealing import Keyring
from app.records import job as jobs
from app.records import job_event
from app.records.session import Store

Result = TypeVar("Result")


@dataclass(frozen=True)
class Lease:
    store: Store
    job_id: str
    request_id: str
    model_id: str
    token: int
    worker: str
    seconds: float

    def renew(self) -> bool:
        """Prolong by the lease's length. Returns whether the job should be cancelled."""
        return self._write(lambda session: jobs.renew(session, self.job_id, self.token, self.seconds))

    def make_key(self, keyring: Keyring) -> None:
        """The job's data key. A stale holder makes none."""

        def make(session: Session) -> None:
            jobs.renew(session, self.job_id, self.token, self.seconds)
            with suppress(FileExistsError):  # the database was away at the commit
                keyring.new_key(self.job_id)

        self._write(make)

    def tell(self, kind: str, data: dict[str, Any], **job_values: Any) -> None:
        """An event, and what the job's row shows of it."""
        self._write(lambda session: job_event.write(session, self.job_id, self.token, kind, data, **job_values))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew from a thread while the block stores bytes, however long that takes."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.seconds / 3):
                try:
                    self.renew()
                except (LeaseLost, SQLAlchemyError):
                    return  # the block's own next write will meet it

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _write(self, action: Callable[[Session], Result]) -> Result:
        """One transaction; a database that is away is tried again until the lease would have run out."""
        until = time.monotonic() + self.seconds
        while True:
            try:
                with self.store.write() as session:
                    return action(session)
            except OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def fail(self, error: JobError) -> None:
        with self.store.write() as session:
            jobs.fail(session, self.job_id, self.token, self.worker, {"code": error.code, "detail": error.detail})

    def cancel(self) -> None:
        with self.store.write() as session:
            jobs.cancel(session, self.job_id, self.token, self.worker)

    def release(self, why: str) -> None:
        """Back to the queue without a crash: the worker drains."""
        with self.store.write() as session:
            jobs.release(session, self.job_id, self.token, self.worker, why)

    def crash(self) -> None:
        """The runner died: what an expired lease would do, without the wait."""
        with self.store.write() as session:
            jobs.crash(session, self.job_id, self.token, self.worker)


def claim(store: Store, worker: str, seconds: float) -> Lease | None:
    """The best claimable job, or None when there is none."""
    with store.write() as session:
        job = jobs.claim(session, worker, seconds)
        if job is None:
            return None
        return Lease(store, job.id, job.request_id, job.model_id, job.lease_token, worker, seconds)
