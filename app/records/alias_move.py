"""Where an alias pointed, for ever: one row per move, with who moved it and why. The database refuses to change them."""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, Index, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record


class Kind(StrEnum):
    CREATED = "created"
    MOVED = "moved"
    ROLLED_BACK = "rolled_back"
    REMOVED = "removed"


class AliasMove(Record):
    __tablename__ = "alias_moves"
    __table_args__ = (Index("ix_alias_moves_model_id_name_id", "model_id", "name", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    name: Mapped[str]
    at: Mapped[float]
    actor: Mapped[str]
    kind: Mapped[str]
    from_version: Mapped[int | None]
    to_version: Mapped[int | None]
    reason: Mapped[str]
    reopened: Mapped[list[Any]]  # ids of the requests that a rollback went behind


def add(session: Session, move: AliasMove) -> None:
    """Store it; its id says that it is the newest."""
    session.add(move)
    session.flush()


def page(session: Session, model_id: str, name: str, *, after: int, limit: int) -> list[AliasMove]:
    """Oldest first. They stay when the alias is removed."""
    own = select(AliasMove).where(AliasMove.model_id == model_id, AliasMove.name == name, AliasMove.id > after)
    return list(session.scalars(own.order_by(AliasMove.id).limit(limit)))


def version_before(session: Session, model_id: str, name: str, version: int) -> int | None:
    """Where the alias pointed when it was last set to `version`, so that one rollback after another goes further back."""
    sets = select(AliasMove.from_version).where(
        AliasMove.model_id == model_id,
        AliasMove.name == name,
        AliasMove.to_version == version,
        AliasMove.kind != Kind.ROLLED_BACK,
    )
    return session.scalar(sets.order_by(AliasMove.id.desc()).limit(1))
