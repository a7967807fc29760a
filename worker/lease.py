"""A job held by this worker: claim it, keep it, write under its token, give it back.

Everything here is one short transaction. LeaseLost means that another attempt owns the job: stop, write nothing.
"""

from dataclasses import dataclass
from typing import Any

from app.errors import JobError
from app.records import job as jobs
from app.records import job_event
from app.records.session import Store


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
        with self.store.write() as session:
            return jobs.renew(session, self.job_id, self.token, self.seconds)

    def tell(self, kind: str, data: dict[str, Any], **job_values: Any) -> None:
        """An event, and what the job's row shows of it."""
        with self.store.write() as session:
            job_event.write(session, self.job_id, self.token, kind, data, **job_values)

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
