"""Names such as `production` that point at one version of a model: what is served. They move; the head only grows."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records import alias_move, history
from app.records.alias_move import AliasMove, Kind
from app.records.base import Record, now


class Alias(Record):
    __tablename__ = "aliases"
    __table_args__ = (ForeignKeyConstraint(["model_id", "version"], ["checkpoints.model_id", "checkpoints.number"]),)

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]
    move_id: Mapped[int]  # of its newest move: never the same twice, so the ETag is made of it
    moved_at: Mapped[float]


def find(session: Session, model_id: str, name: str) -> Alias | None:
    return session.get(Alias, (model_id, name))


def of_model(session: Session, model_id: str) -> list[Alias]:
    return list(session.scalars(select(Alias).where(Alias.model_id == model_id).order_by(Alias.name)))


def point(
    session: Session,
    model_id: str,
    name: str,
    version: int | None,
    kind: Kind,
    actor: str,
    reason: str,
    reopened: list[str] | None = None,
) -> AliasMove:
    """Create, move or (version None) remove an alias, with its move, which is returned, and its history row. The caller holds the model's
    lock, so that nobody else moves the alias meanwhile."""
    alias = find(session, model_id, name)
    move = AliasMove(
        model_id=model_id,
        name=name,
        at=session.scalar(select(now())) or 0.0,
        actor=actor,
        kind=kind,
        from_version=alias.version if alias else None,
        to_version=version,
        reason=reason,
        reopened=reopened or [],
    )
    alias_move.add(session, move)
    if version is None:
        session.execute(delete(Alias).where(Alias.model_id == model_id, Alias.name == name))
    elif alias is None:
        session.add(Alias(model_id=model_id, name=name, version=version, move_id=move.id, moved_at=move.at))
    else:
        alias.version, alias.move_id, alias.moved_at = version, move.id, move.at
    session.flush()
    details = {"from": move.from_version, "to": version, "reason": reason, "reopened": move.reopened}
    history.write(session, actor, f"alias.{kind}", f"{model_id}:{name}", details=details)
    return move
