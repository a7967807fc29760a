"""Jobs: the work a request needs, as a row with a state machine and a lease. The row is the truth.

    queued -> running                 claim: nearest deadline first, one running job per model
    running -> succeeded | failed | cancelled
    running -> queued                 expire (crashes + 1), or release (drained: costs nothing)
    queued -> cancelled

Each transition moves the job's request along, in the same transaction; an attack's moves none. `lease_token` rises with every claim and fences every
later write of that attempt. Lease times are the database's clock.

A job is one rung of its request's ladder, or attacks a version that the request made (kind `attack`). A rung that misses the policy, or fails by what it ran, queues the job of the next rung as
it ends: in one transaction under the lease's token, so a stale attempt queues none and no rung has two jobs.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from app.errors import LeaseLost
from app.records import history, outbox
from app.records import request as requests
from app.records.base import Record, changed, new_id, now

CRASH_CAP = 2
OF_THE_RUNG = ("out_of_memory", "internal_error")  # failures that another recipe may not meet


class Kind(StrEnum):
    UNLEARN = "unlearn"
    ATTACK = "attack"


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stage(StrEnum):
    LOADING = "loading"
    UNLEARNING = "unlearning"
    EVALUATING = "evaluating"
    ATTACKING = "attacking"
    REGISTERING = "registering"


class Job(Record):
    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_claimable", "status", "deadline", "id"),
        Index(
            "uq_jobs_one_running_per_model",
            "model_id",
            unique=True,
            sqlite_where=text("status = 'running'"),
            postgresql_where=text("status = 'running'"),
        ),
        Index(
            "uq_jobs_request_id_retry_rung",
            "request_id",
            "retry",
            "rung",
            unique=True,
            sqlite_where=text("kind = 'unlearn'"),
            postgresql_where=text("kind = 'unlearn'"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(ForeignKey("requests.id"), index=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    kind: Mapped[str] = mapped_column(default=Kind.UNLEARN)
    checkpoint_id: Mapped[str | None]  # of the version that an attack is on
    created_by: Mapped[str | None]  # who asked for the attack; a rung is the ladder's
    method: Mapped[str]  # empty for an attack
    recipe: Mapped[
        dict[str, Any]
    ]  # resolved: every hyper-parameter; for an attack job the attacks, with every parameter
    rung: Mapped[int]  # of the request's ladder, from 0
    retry: Mapped[int]  # how often the request had been retried before
    status: Mapped[str]
    stage: Mapped[str | None]  # for people, never for control flow
    deadline: Mapped[float]
    lease_token: Mapped[int] = mapped_column(default=0)
    lease_expires_at: Mapped[float | None]
    worker: Mapped[str | None]
    crashes: Mapped[int] = mapped_column(default=0)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    event_seq: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any]]  # step, total, seconds_left of the present stage
    resume_blob: Mapped[str | None]
    error: Mapped[dict[str, Any] | None]  # code, detail
    unlearning_seconds: Mapped[float | None]  # of the method alone, when it succeeded
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]

    @property
    def key_id(self) -> str:
        return self.id

    @property
    def seconds(self) -> float | None:
        """Of the whole job, in its last attempt."""
        return None if self.started_at is None or self.finished_at is None else self.finished_at - self.started_at


def of_rung(request: requests.Request, rung: int, retry: int) -> Job:
    """A queued job that runs this rung of the request's ladder."""
    return Job(
        id=new_id("job"),
        request_id=request.id,
        model_id=request.model_id,
        **request.ladder[rung],
        rung=rung,
        retry=retry,
        status=Status.QUEUED,
        deadline=request.due_at,
        progress={},
    )


def of_attacks(
    request: requests.Request, checkpoint_id: str, attacks: dict[str, Any], deadline: float, actor: str
) -> Job:
    """A queued job that attacks a version of the request."""
    return Job(
        id=new_id("job"),
        kind=Kind.ATTACK,
        request_id=request.id,
        model_id=request.model_id,
        checkpoint_id=checkpoint_id,
        created_by=actor,
        method="",
        recipe=attacks,
        rung=0,
        retry=0,
        status=Status.QUEUED,
        deadline=deadline,
        progress={},
    )


def add(session: Session, job: Job) -> None:
    """Store it, and order the bell for it."""
    job.created_at = session.scalar(select(now())) or 0.0
    session.add(job)
    session.flush()
    what = {"attacks": list(job.recipe)} if job.checkpoint_id else {"method": job.method, "rung": job.rung}
    history.write(session, job.created_by or "system", "job.queued", job.id, job.request_id, what)
    outbox.put(session, "ring")


def start(session: Session, request: requests.Request) -> None:
    """Queue the first rung of the request's ladder: when it is received, approved or retried."""
    before = of_request(session, request.id)
    add(session, of_rung(request, 0, before[-1].retry + 1 if before else 0))


def claim(session: Session, worker: str, lease_seconds: float) -> Job | None:
    """Take the best claimable job, in the caller's write transaction; None when there is none."""
    other = aliased(Job)
    busy = select(other.id).where(other.model_id == Job.model_id, other.status == Status.RUNNING).exists()
    best = select(Job.id).where(Job.status == Status.QUEUED, ~busy).order_by(Job.deadline, Job.id).limit(1)
    taken = (
        update(Job)
        .where(Job.id == best.with_for_update(skip_locked=True).scalar_subquery(), Job.status == Status.QUEUED)
        .values(
            status=Status.RUNNING,
            stage=Stage.LOADING,
            worker=worker,
            lease_token=Job.lease_token + 1,
            lease_expires_at=now() + lease_seconds,
            started_at=now(),
            progress={},
        )
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    try:
        job_id = session.scalar(taken)
    except IntegrityError:  # a neighbour took another job of the same model in the same moment
        session.rollback()
        return None
    if job_id is None:
        return None
    job = session.get_one(Job, job_id, populate_existing=True)
    history.write(session, worker, "job.claimed", job.id, job.request_id, {"lease_token": job.lease_token})
    _move(session, job, requests.Status.RUNNING, worker)
    return job


def claimable(session: Session) -> bool:
    other = aliased(Job)
    busy = select(other.id).where(other.model_id == Job.model_id, other.status == Status.RUNNING).exists()
    return session.scalar(select(Job.id).where(Job.status == Status.QUEUED, ~busy).limit(1)) is not None


def write_as_holder(session: Session, job_id: str, token: int, **values: Any) -> Job:
    """Change a running job that this lease holds. Raises LeaseLost when it does not any more."""
    held = update(Job).where(Job.id == job_id, Job.lease_token == token, Job.status == Status.RUNNING)
    if not changed(session, held.values(**values)):
        raise LeaseLost
    return session.get_one(Job, job_id, populate_existing=True)


def renew(session: Session, job_id: str, token: int, lease_seconds: float) -> bool:
    """Prolong the lease. Returns whether the job should be cancelled."""
    return write_as_holder(session, job_id, token, lease_expires_at=now() + lease_seconds).cancel_requested


def succeed(
    session: Session,
    job_id: str,
    token: int,
    worker: str,
    passed: bool,
    details: dict[str, Any],
    why_not: str = "threshold_missed",
    climbs: bool = True,
) -> Job:
    """The job did its work; whether the request completed is the verdict's matter, and `why_not` its reason. `climbs`: whether
    a later rung may pass where this one did not."""
    job = _finish(session, job_id, token, worker, Status.SUCCEEDED, None, details)
    if passed:
        requests.move(session, job.request_id, requests.Status.COMPLETED, worker)
    elif not climbs:
        requests.move(session, job.request_id, requests.Status.EVALUATION_FAILED, worker, why_not)
    else:
        _climb(session, job, worker, requests.Status.EVALUATION_FAILED, why_not)
    return job


def fail(session: Session, job_id: str, token: int, worker: str, error: dict[str, Any]) -> Job:
    """What another recipe may not meet leads to the next rung; everything else ends the request."""
    job = _finish(session, job_id, token, worker, Status.FAILED, error, {"code": error["code"]})
    if job.kind == Kind.UNLEARN and error["code"] in OF_THE_RUNG:
        _climb(session, job, worker, requests.Status.FAILED, error["code"])
    else:
        _move(session, job, requests.Status.FAILED, worker, error["code"])
    return job


def end_attack(session: Session, job_id: str, token: int, worker: str) -> Job:
    """The attacks were made; the request and its version stay as they are."""
    return _finish(session, job_id, token, worker, Status.SUCCEEDED, None, {})


def _move(session: Session, job: Job, to: requests.Status, actor: str, reason: str | None = None) -> None:
    if job.kind == Kind.UNLEARN:
        requests.move(session, job.request_id, to, actor, reason)


def _climb(session: Session, job: Job, worker: str, ended: requests.Status, reason: str) -> None:
    """Queue the next rung's job; where the ladder ends, so does the request. Who asked to cancel gets no further rung."""
    request = requests.hold(session, job.request_id)
    if job.rung + 1 >= len(request.ladder):
        requests.move(session, request.id, ended, worker, reason)
    elif job.cancel_requested:
        requests.move(session, request.id, requests.Status.CANCELLED, worker)
    else:
        requests.move(session, request.id, requests.Status.QUEUED, worker, "next_rung")
        add(session, of_rung(request, job.rung + 1, job.retry))


def cancel(session: Session, job_id: str, token: int, worker: str) -> Job:
    job = _finish(session, job_id, token, worker, Status.CANCELLED, None, {})
    _move(session, job, requests.Status.CANCELLED, worker)
    return job


def release(session: Session, job_id: str, token: int, worker: str, why: str) -> Job:
    """Put a running job back without a crash: its worker drains."""
    job = write_as_holder(session, job_id, token, stage=None)
    if job.cancel_requested:
        return cancel(session, job_id, token, worker)
    job = write_as_holder(session, job_id, token, status=Status.QUEUED, lease_expires_at=None)
    history.write(session, worker, "job.released", job.id, job.request_id, {"why": why})
    _move(session, job, requests.Status.QUEUED, worker, why)
    return job


def expired(session: Session) -> list[str]:
    """Running jobs whose lease ran out."""
    return list(session.scalars(select(Job.id).where(Job.status == Status.RUNNING, Job.lease_expires_at < now())))


def take_back(session: Session, job_id: str, actor: str) -> bool:
    """The attempt of a worker whose lease ran out is lost. False when the lease is renewed by now, or somebody else does it."""
    lost = select(Job).where(Job.id == job_id, Job.status == Status.RUNNING, Job.lease_expires_at < now())
    job = session.scalar(lost.with_for_update(skip_locked=True))
    if job is None:
        return False
    crash(session, job.id, job.lease_token, actor)
    return True


def crash(session: Session, job_id: str, token: int, actor: str) -> Job:
    """The attempt is lost with its worker or runner: queue again, end at the cap, or end as cancelled."""
    job = write_as_holder(session, job_id, token, crashes=Job.crashes + 1, lease_expires_at=None, stage=None)
    if job.cancel_requested:
        return cancel(session, job_id, token, actor)
    if job.crashes >= CRASH_CAP:
        detail = "The process that ran this job died twice. Look at the worker's log and memory, then retry."
        return fail(session, job_id, token, actor, {"code": "worker_lost", "detail": detail})
    job = write_as_holder(session, job_id, token, status=Status.QUEUED)
    history.write(session, actor, "job.lost", job.id, job.request_id, {"crashes": job.crashes, "lease_token": token})
    _move(session, job, requests.Status.QUEUED, actor, "worker_lost")
    return job


def ask_to_cancel(session: Session, job_id: str, actor: str) -> Job:
    """A queued job ends now; a running one when its worker next renews the lease."""
    queued = update(Job).where(Job.id == job_id, Job.status == Status.QUEUED)
    if changed(session, queued.values(status=Status.CANCELLED, finished_at=now())):
        job = session.get_one(Job, job_id, populate_existing=True)
        history.write(session, actor, "job.cancelled", job.id, job.request_id)
        _move(session, job, requests.Status.CANCELLED, actor)
        return job
    changed(session, update(Job).where(Job.id == job_id, Job.status == Status.RUNNING).values(cancel_requested=True))
    return session.get_one(Job, job_id, populate_existing=True)


def hold_active(session: Session, model_id: str) -> list[Job]:
    """The model's queued and running jobs; until the transaction ends nobody claims one or writes to it."""
    active = (Job.model_id == model_id) & Job.status.in_([Status.QUEUED, Status.RUNNING])
    query = select(Job).where(active).order_by(Job.id).with_for_update()
    return list(session.scalars(query.execution_options(populate_existing=True)))


def ask_newest_to_cancel(session: Session, request_id: str, actor: str) -> Job | None:
    """Of a request's jobs, the one that waits or runs; None when the request has ended. A rung that ends in this moment has a
    successor, which is asked instead."""
    while (found := of_request(session, request_id)) and found[-1].status in (Status.QUEUED, Status.RUNNING):
        job = ask_to_cancel(session, found[-1].id, actor)
        if job.status == Status.CANCELLED or job.cancel_requested:
            return job
    return None


def hold_rungs(session: Session, request_id: str) -> None:
    """Until the transaction ends nobody claims, ends or follows up the request's queued or running rung."""
    session.execute(_active_rungs(select(Job.id), request_id).with_for_update())


def redate(session: Session, request_id: str, deadline: float) -> None:
    """The request is due at another time: so is the rung that waits or runs, which may have to wait again."""
    changed(session, _active_rungs(update(Job), request_id).values(deadline=deadline))


def _active_rungs(statement: Any, request_id: str) -> Any:
    return statement.where(
        Job.request_id == request_id, Job.kind == Kind.UNLEARN, Job.status.in_([Status.QUEUED, Status.RUNNING])
    )


def of_request(session: Session, request_id: str) -> list[Job]:
    return of_requests(session, [request_id])


def of_requests(session: Session, request_ids: list[str]) -> list[Job]:
    """The rungs of several requests, oldest first: hosts whose clocks differ made their ids."""
    named = select(Job).where(Job.request_id.in_(request_ids), Job.kind == Kind.UNLEARN)
    return list(session.scalars(named.order_by(Job.request_id, Job.retry, Job.rung)))


def attacks_on(session: Session, request_id: str, *, after: str | None, limit: int) -> list[Job]:
    """Jobs that attack a version of the request, newest first."""
    query = select(Job).where(Job.request_id == request_id, Job.kind == Kind.ATTACK).order_by(Job.id.desc())
    return list(session.scalars((query.where(Job.id < after) if after is not None else query).limit(limit)))


def with_leftovers(session: Session) -> list[str]:
    """Ended jobs whose resume state was not erased: their worker died just then."""
    ended = Job.status.in_([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
    return list(session.scalars(select(Job.id).where(ended, Job.resume_blob.is_not(None)).limit(500)))


def ended_among(session: Session, ids: list[str]) -> list[str]:
    ended = Job.status.in_([Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
    return list(session.scalars(select(Job.id).where(ended, Job.id.in_(ids))))


def running_since_before(session: Session, at: float) -> int:
    """How many jobs that unlearn were claimed before and still run."""
    old = (Job.status == Status.RUNNING) & (Job.kind == Kind.UNLEARN) & (Job.started_at < at)
    return session.scalar(select(func.count()).select_from(Job).where(old)) or 0


def _finish(
    session: Session,
    job_id: str,
    token: int,
    worker: str,
    status: Status,
    error: dict[str, Any] | None,
    details: dict[str, Any],
) -> Job:
    job = write_as_holder(
        session, job_id, token, status=status, error=error, finished_at=now(), lease_expires_at=None, stage=None
    )
    history.write(session, worker, f"job.{status}", job.id, job.request_id, details)
    return job


def succeeded(session: Session, model_id: str, method: str, most: int) -> list[Job]:
    """The model's newest rungs that ran this method to its end, whatever the verdict was; newest first."""
    done = (Job.model_id == model_id) & (Job.method == method) & (Job.status == Status.SUCCEEDED)
    query = select(Job).where(done, Job.kind == Kind.UNLEARN).order_by(Job.id.desc()).limit(most)
    return list(session.scalars(query))
