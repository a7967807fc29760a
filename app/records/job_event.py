"""What a job tells while it runs: stages, progress, losses. Numbered without gaps per job, fenced by the lease."""

from typing import Any

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records import job as jobs
from app.records.base import Record, now


class JobEvent(Record):
    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    kind: Mapped[str]  # stage, progress, note
    data: Mapped[dict[str, Any]]


def write(session: Session, job_id: str, token: int, kind: str, data: dict[str, Any], **job_values: Any) -> int:
    """Append an event as the lease's holder, together with `job_values` on the job's row. Returns its number."""
    job = jobs.write_as_holder(session, job_id, token, event_seq=jobs.Job.event_seq + 1, **job_values)
    session.add(JobEvent(job_id=job_id, seq=job.event_seq, at=session.scalar(select(now())), kind=kind, data=data))
    session.flush()
    return job.event_seq


def page(session: Session, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq).limit(limit)
    return list(session.scalars(query))
