"""What attacks on a version found after it was made: one row for each job that made them. The version's report stays as it is."""

from typing import Any

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records import job as jobs
from app.records.base import Record, now


class AttackResult(Record):
    __tablename__ = "attack_results"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), index=True)
    checkpoint_id: Mapped[str] = mapped_column(ForeignKey("checkpoints.id"))
    rows: Mapped[list[Any]]  # as in a report's `attacks`
    at: Mapped[float]


def record(session: Session, job_id: str, token: int, worker: str, rows: list[dict[str, Any]]) -> None:
    """The job ends with this result. Raises LeaseLost when another attempt owns it."""
    job = jobs.end_attack(session, job_id, token, worker)
    session.add(
        AttackResult(
            job_id=job.id,
            request_id=job.request_id,
            checkpoint_id=job.checkpoint_id,
            rows=rows,
            at=session.scalar(select(now())),
        )
    )
    session.flush()


def of_jobs(session: Session, job_ids: list[str]) -> dict[str, AttackResult]:
    found = session.scalars(select(AttackResult).where(AttackResult.job_id.in_(job_ids)))
    return {result.job_id: result for result in found}
