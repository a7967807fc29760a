"""Versions of a model's weights. Immutable but for status, override, where their bytes lie and what a report says by label; the newest released one is the head.

released: met its policy, or was released against its verdict. quarantined: missed it, weights kept. superseded: was released, but a request that
completed later means that it still remembers someone. retired: what it alone held is erased, and nothing leads back.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, UniqueConstraint, func, select, update
from sqlalchemy.orm import Mapped, Session, aliased, mapped_column

from app.records import history
from app.records.base import Record, now
from app.records.legal_hold import LegalHold


class Status(StrEnum):
    RELEASED = "released"
    QUARANTINED = "quarantined"
    SUPERSEDED = "superseded"
    RETIRED = "retired"


class Checkpoint(Record):
    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("checkpoints.id"))
    job_id: Mapped[str | None] = mapped_column(unique=True)  # at most one checkpoint per job
    request_id: Mapped[str | None] = mapped_column(index=True)
    status: Mapped[str]
    pack: Mapped[str | None] = mapped_column(index=True)
    manifest: Mapped[str]  # blob name
    digest: Mapped[str]
    changes: Mapped[dict[str, Any]]  # tensors and elements changed, bytes added and full
    report: Mapped[dict[str, Any]]
    override: Mapped[dict[str, Any] | None]  # when, by whom and why it was released against its verdict
    retired: Mapped[dict[str, Any] | None]  # when, by whom, what it was before, and what went: see app/retirement.py
    answers: Mapped[str | None]  # blob of the sealed answer set, under the key of the checkpoint's id; may be missing
    images: Mapped[str | None]  # folder of sealed pictures that show images; None: there are none, or no more
    created_at: Mapped[float]

    @property
    def stem(self) -> str:
        """What names the blobs of a version: it stays when its weights are stored anew."""
        return self.manifest.removeprefix("manifests/").partition(".")[0]


_HELD = select(LegalHold.request_id).where(LegalHold.request_id == Checkpoint.request_id).exists()


def add(session: Session, checkpoint: Checkpoint, actor: str) -> None:
    """Number it and store it, in the caller's transaction."""
    last = session.scalar(select(func.max(Checkpoint.number)).where(Checkpoint.model_id == checkpoint.model_id))
    checkpoint.number = (last or 0) + 1
    checkpoint.created_at = session.scalar(select(now())) or 0.0
    session.add(checkpoint)
    session.flush()
    details = {"number": checkpoint.number, "status": checkpoint.status, "digest": checkpoint.digest}
    history.write(session, actor, "checkpoint.registered", checkpoint.id, checkpoint.request_id, details)


def head(session: Session, model_id: str) -> Checkpoint:
    """The newest released checkpoint: the parent of the next version."""
    query = select(Checkpoint).where(Checkpoint.model_id == model_id, Checkpoint.status == Status.RELEASED)
    return session.scalars(query.order_by(Checkpoint.number.desc()).limit(1)).one()


def supersede_before(session: Session, checkpoint: Checkpoint, actor: str) -> None:
    """A completed request: every earlier released checkpoint of the model still remembers the person."""
    earlier = session.scalars(
        select(Checkpoint).where(
            Checkpoint.model_id == checkpoint.model_id,
            Checkpoint.number < checkpoint.number,
            Checkpoint.status == Status.RELEASED,
        )
    ).all()
    for old in earlier:
        session.execute(update(Checkpoint).where(Checkpoint.id == old.id).values(status=Status.SUPERSEDED))
        history.write(session, actor, "checkpoint.superseded", old.id, checkpoint.request_id, {"number": old.number})


def release(session: Session, checkpoint: Checkpoint, actor: str, details: dict[str, Any]) -> None:
    """A quarantined version, against its verdict."""
    checkpoint.status = Status.RELEASED
    session.flush()
    history.write(session, actor, "checkpoint.overridden", checkpoint.id, checkpoint.request_id, details)


def retire(
    session: Session, checkpoint: Checkpoint, actor: str, retired: dict[str, Any], details: dict[str, Any]
) -> None:
    """A superseded or quarantined version: nothing is one's parent or download any more. Its report stays."""
    assert checkpoint.status in (Status.SUPERSEDED, Status.QUARANTINED)
    checkpoint.status, checkpoint.retired = Status.RETIRED, retired
    session.flush()
    history.write(session, actor, "checkpoint.retired", checkpoint.id, checkpoint.request_id, details)


def move(session: Session, checkpoint: Checkpoint, actor: str, manifest: str, details: dict[str, Any]) -> None:
    """The same bytes, in other packs."""
    checkpoint.manifest = manifest
    session.flush()
    history.write(session, actor, "checkpoint.repacked", checkpoint.id, checkpoint.request_id, details)


def find(session: Session, model_id: str, number: int) -> Checkpoint | None:
    return session.scalar(select(Checkpoint).where(Checkpoint.model_id == model_id, Checkpoint.number == number))


def hold(session: Session, model_id: str, number: int) -> Checkpoint | None:
    """The same, and until the transaction ends no request supersedes it."""
    named = select(Checkpoint).where(Checkpoint.model_id == model_id, Checkpoint.number == number)
    return session.scalar(named.with_for_update(key_share=True).execution_options(populate_existing=True))


def of_model(session: Session, model_id: str) -> list[Checkpoint]:
    return list(session.scalars(select(Checkpoint).where(Checkpoint.model_id == model_id).order_by(Checkpoint.number)))


def statuses(session: Session, model_id: str) -> dict[int, str]:
    """The status of each version, by its number."""
    query = select(Checkpoint.number, Checkpoint.status).where(Checkpoint.model_id == model_id)
    return {int(row[0]): str(row[1]) for row in session.execute(query)}


def line(session: Session, checkpoint: Checkpoint) -> list[Checkpoint]:
    """The version and its ancestors, oldest first."""
    known = {each.id: each for each in of_model(session, checkpoint.model_id)}
    found = [checkpoint]
    while found[-1].parent_id is not None:
        found.append(known[found[-1].parent_id])
    return found[::-1]


def lacking(session: Session, checkpoint: Checkpoint) -> list[str]:
    """Requests whose version is neither this one nor an ancestor of it: what they forgot, it still remembers."""
    columns = (Checkpoint.id, Checkpoint.parent_id, Checkpoint.request_id, Checkpoint.status, Checkpoint.retired)
    rows = session.execute(
        select(*columns).where(Checkpoint.model_id == checkpoint.model_id).order_by(Checkpoint.number)
    ).all()
    parents = {row.id: row.parent_id for row in rows}
    line: list[str] = []
    ancestor: str | None = checkpoint.id
    while ancestor is not None:
        line.append(ancestor)
        ancestor = parents[ancestor]
    met = {row.request_id for row in rows if row.id in line}
    was = {row.id: row.retired["was"] if row.retired else row.status for row in rows}
    made = [row.request_id for row in rows if row.request_id and was[row.id] != Status.QUARANTINED]
    return [request_id for request_id in made if request_id not in met]


def of_request(session: Session, request_id: str) -> list[Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.request_id == request_id).order_by(Checkpoint.number)
    return list(session.scalars(query))


def numbers_of_requests(session: Session, request_ids: list[str]) -> dict[str, int]:
    """The newest version's number for each request that made one."""
    query = select(Checkpoint.request_id, func.max(Checkpoint.number)).where(Checkpoint.request_id.in_(request_ids))
    return {str(request_id): number for request_id, number in session.execute(query.group_by(Checkpoint.request_id))}


def answers_blob(checkpoint_id: str) -> str:
    return f"answers/{checkpoint_id}"


def keep_answers(session: Session, blobs: Iterable[str]) -> None:
    """Answer sets are in the store, or will be at once: from now on they are erased when their version is superseded."""
    for blob in blobs:
        session.execute(update(Checkpoint).where(Checkpoint.id == blob.split("/")[1]).values(answers=blob))


def with_answers_to_erase(session: Session, model_id: str | None = None) -> list[str]:
    """Superseded or retired, with an answer set: it shows whom the version remembers, and no job asks that version again. A
    legal hold on the version's request keeps it."""
    past = Checkpoint.status.in_([Status.SUPERSEDED, Status.RETIRED])
    due = select(Checkpoint.id).where(past, Checkpoint.answers.is_not(None), ~_HELD)
    if model_id is not None:
        due = due.where(Checkpoint.model_id == model_id)
    return list(session.scalars(due.limit(500)))


def images_folder(checkpoint_id: str) -> str:
    return f"images/{checkpoint_id}"


def images_key(checkpoint_id: str) -> str:
    """Another key than the answer set's: the head's pictures may go while later versions still ask for its answers."""
    return f"{checkpoint_id}-images"


def with_images_to_erase(session: Session, model_id: str | None = None) -> list[str]:
    """With pictures that show what nobody shall see any more: of a version that was superseded or retired; of one whose parent
    was retired, for what that one drew is half of them; of a quarantined one that nobody can release, for its parent is no more
    the head. The purge of its request erases those of a quarantined one, too. What lies unsealed, of before there was a key for
    it, goes at once. A legal hold on the version's request keeps all of them."""
    parent, past = aliased(Checkpoint), (Status.SUPERSEDED, Status.RETIRED)
    left_behind = (Checkpoint.status == Status.QUARANTINED) & (parent.status == Status.SUPERSEDED)
    over = Checkpoint.status.in_(past) | (parent.status == Status.RETIRED) | left_behind
    over |= ~Checkpoint.images.startswith("images/")
    pictured = select(Checkpoint.id).outerjoin(parent, parent.id == Checkpoint.parent_id)
    due = pictured.where(Checkpoint.images.is_not(None), over, ~_HELD)
    if model_id is not None:
        due = due.where(Checkpoint.model_id == model_id)
    return list(session.scalars(due.limit(500)))


def shown(session: Session, checkpoint_id: str) -> bool:
    """Whether what a version drew is still in a picture: in its own report, or in that of a version made from it."""
    drew = (Checkpoint.id == checkpoint_id) | (Checkpoint.parent_id == checkpoint_id)
    return session.scalar(select(Checkpoint.id).where(drew, Checkpoint.images.is_not(None)).limit(1)) is not None


def of_jobs(session: Session, request_ids: list[str]) -> dict[str, tuple[int, str]]:
    """Number and verdict of the version that each job of these requests made."""
    columns = (Checkpoint.job_id, Checkpoint.number, Checkpoint.report["verdict"].as_string())
    query = select(*columns).where(Checkpoint.request_id.in_(request_ids), Checkpoint.job_id.is_not(None))
    return {str(job_id): (number, verdict) for job_id, number, verdict in session.execute(query)}


def made_by(session: Session, job_ids: list[str]) -> list[Checkpoint]:
    """The versions that these jobs made, newest first."""
    query = select(Checkpoint).where(Checkpoint.job_id.in_(job_ids)).order_by(Checkpoint.number.desc())
    return list(session.scalars(query))


def uses_blob(session: Session, blob: str) -> bool:
    named = (Checkpoint.pack == blob) | (Checkpoint.manifest == blob) | (Checkpoint.answers == blob)
    return session.scalar(select(Checkpoint.id).where(named).limit(1)) is not None


def heads(session: Session, model_ids: list[str]) -> dict[str, int]:
    """The number of each model's newest released checkpoint."""
    released = Checkpoint.model_id.in_(model_ids) & (Checkpoint.status == Status.RELEASED)
    query = select(Checkpoint.model_id, func.max(Checkpoint.number)).where(released).group_by(Checkpoint.model_id)
    return {str(row[0]): int(row[1]) for row in session.execute(query)}
