"""Uploaded image sets. A set of role forget is sealed under a key of its own and has no plain name or labels."""

from enum import StrEnum
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.errors import Conflict
from app.records import history
from app.records import legal_hold as legal_holds
from app.records.base import Record, changed, now
from app.records.request import LIVE, RETRIABLE, TERMINAL, Request


class Role(StrEnum):
    FORGET = "forget"
    RETAIN = "retain"
    TRAIN = "train"
    TEST = "test"


WITHDRAWN = "withdrawn"  # in adopted_by: its owner is deleting it


class Dataset(Record):
    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True)  # none for role forget: a name may be personal data
    role: Mapped[str]
    labels: Mapped[list[Any]]  # empty for role forget: they stay in the sealed index
    count: Mapped[int]
    bytes: Mapped[int]
    created_by: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[float]
    adopted_by: Mapped[str | None] = mapped_column(index=True)  # the request that a sealed set belongs to
    purged_at: Mapped[float | None]

    @property
    def sealed(self) -> bool:
        return self.role == Role.FORGET

    @property
    def key_id(self) -> str | None:
        return self.id if self.sealed else None

    @property
    def blob(self) -> str:
        return f"datasets/{self.id}/images"

    @property
    def index_blob(self) -> str:
        return f"datasets/{self.id}/index"


def add(session: Session, dataset: Dataset) -> None:
    dataset.created_at = session.scalar(select(now())) or 0.0
    session.add(dataset)
    history.write(
        session,
        dataset.created_by,
        "dataset.uploaded",
        dataset.id,
        details={"role": dataset.role, "count": dataset.count},
    )


def find(session: Session, name_or_id: str) -> Dataset | None:
    by_name = select(Dataset).where((Dataset.id == name_or_id) | (Dataset.name == name_or_id))
    return session.scalar(by_name.where(Dataset.purged_at.is_(None)))


def page(session: Session, *, owner: str | None, role: str | None, after: str | None, limit: int) -> list[Dataset]:
    query = select(Dataset).order_by(Dataset.id.desc()).limit(limit)
    if owner is not None:
        query = query.where((Dataset.created_by == owner) | (Dataset.role != Role.FORGET))
    if role is not None:
        query = query.where(Dataset.role == role)
    if after is not None:
        query = query.where(Dataset.id < after)
    return list(session.scalars(query))


def sealed(session: Session, ids: set[str]) -> set[str]:
    """Those of these sets that were uploaded to be forgotten."""
    return set(session.scalars(select(Dataset.id).where(Dataset.id.in_(ids), Dataset.role == Role.FORGET)))


def counts(session: Session, ids: set[str]) -> dict[str, int]:
    """How many images each of these sets holds."""
    rows = session.execute(select(Dataset.id, Dataset.count).where(Dataset.id.in_(ids)))
    return {str(row[0]): int(row[1]) for row in rows}


def registered(session: Session) -> list[str]:
    """Ids of the sets that are kept in plain."""
    return list(session.scalars(select(Dataset.id).where(Dataset.purged_at.is_(None), Dataset.role != Role.FORGET)))


def sealed_before(session: Session, at: float) -> int:
    """How many forget sets were uploaded before and may still be forgotten: of a request that completed, the samples have
    their tombstones, however long the set is kept."""
    old = (Dataset.role == Role.FORGET) & Dataset.purged_at.is_(None) & (Dataset.created_at < at)
    ahead = select(Request.id).where(Request.id == Dataset.adopted_by, Request.status.in_((*LIVE, *RETRIABLE))).exists()
    query = select(func.count()).select_from(Dataset).where(old, Dataset.adopted_by.is_(None) | ahead)
    return session.scalar(query) or 0


def sealed_ids(session: Session) -> list[str]:
    """Of forget sets that are still there."""
    return list(session.scalars(select(Dataset.id).where(Dataset.purged_at.is_(None), Dataset.role == Role.FORGET)))


def adopt(session: Session, dataset: Dataset, request_id: str) -> bool:
    """Give a sealed set to a request; false when another one has it."""
    free = update(Dataset).where(Dataset.id == dataset.id, Dataset.adopted_by.is_(None), Dataset.purged_at.is_(None))
    return changed(session, free.values(adopted_by=request_id))


def keep(session: Session, dataset_id: str) -> bool:
    """Whether the registered set is there; if so, nobody withdraws it until the transaction ends."""
    there = Dataset.adopted_by.is_(None) & Dataset.purged_at.is_(None)
    kept = select(Dataset.id).where(Dataset.id == dataset_id, there).with_for_update(read=True)
    return session.scalar(kept) is not None


def withdraw(session: Session, dataset_id: str) -> bool:
    """Make a set that is about to be erased unfit for adoption and retries; false when a request that has not ended has it or
    forgets from it. Conflict when a request that forgets from it is under a legal hold. Nobody takes a hold, retries, or
    posts another until the transaction ends."""
    locked = lock_requests(session, dataset_id)
    session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update())
    if used_by_request(session, dataset_id):  # asked with the rows held: one may have been retried or posted meanwhile
        return False
    if legal_holds.of_requests(session, locked):
        raise Conflict("A request that forgets from this data set is under a legal hold.", code="legal-hold")
    ended = select(Request.id).where(Request.id == Dataset.adopted_by, Request.status.in_(TERMINAL)).exists()
    free = Dataset.adopted_by.is_(None) | (Dataset.adopted_by == WITHDRAWN) | ended
    return changed(session, update(Dataset).where(Dataset.id == dataset_id, free).values(adopted_by=WITHDRAWN))


def lock_requests(session: Session, dataset_id: str) -> list[str]:
    """Requests that forget from the set, in the order in which everybody locks them."""
    named = select(Request.id).where(Request.forget_dataset_id == dataset_id)
    return list(session.scalars(named.order_by(Request.id).with_for_update()))


def used_by_request(session: Session, dataset_id: str) -> bool:
    """Whether a request that has not ended forgets from this set."""
    active = (Request.forget_dataset_id == dataset_id) & Request.status.in_(LIVE)
    return session.scalar(select(Request.id).where(active).limit(1)) is not None


def unadopted(session: Session, older_than_seconds: float) -> list[str]:
    """Forget sets that no request took in time, and sets of any role whose deletion was interrupted."""
    waited = (
        (Dataset.role == Role.FORGET) & Dataset.adopted_by.is_(None) & (Dataset.created_at < now() - older_than_seconds)
    )
    query = select(Dataset.id).where(Dataset.purged_at.is_(None), waited | (Dataset.adopted_by == WITHDRAWN))
    return list(session.scalars(query.limit(500)))


def purge(session: Session, dataset: Dataset, actor: str, details: dict[str, Any]) -> None:
    """Record that the set is gone. The caller has destroyed its key already."""
    dataset.purged_at = session.scalar(select(now()))
    dataset.name = None
    request_id = dataset.adopted_by if dataset.adopted_by != WITHDRAWN else None
    history.write(session, actor, "dataset.purged", dataset.id, request_id, details)
