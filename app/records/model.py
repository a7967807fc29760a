"""What a user registers: a base network, the sets that judge it, and the policy that its versions must meet."""

from enum import StrEnum
from typing import Any

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records import history
from app.records.base import Record, now


class Step(StrEnum):
    """What a request may need before it is queued, in this order."""

    VERIFICATION = "verification"
    APPROVAL = "approval"


def _maker(context: Any) -> Any:
    return context.get_current_parameters()["created_by"]


class Model(Record):
    __tablename__ = "models"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    family: Mapped[str]
    labels: Mapped[list[Any]]
    train_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    retain_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    test_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    judge_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    evaluators: Mapped[dict[str, Any]] = mapped_column(default=dict)  # part -> model id; see app.catalog.evaluators
    policy: Mapped[dict[str, Any]]  # kind of forgetting -> list of thresholds
    evaluation: Mapped[dict[str, Any]]
    ladder: Mapped[list[Any] | None]  # of method auto: method and resolved recipe; None: the family's default
    process: Mapped[dict[str, Any]] = mapped_column(default=lambda: dict.fromkeys(Step, "none"))  # or required
    retention: Mapped[dict[str, Any]] = mapped_column(default=dict)  # what was said; see `retention`
    created_by: Mapped[str]
    owner: Mapped[str] = mapped_column(default=_maker)  # whose key may change it
    created_at: Mapped[float]
    revision: Mapped[int] = mapped_column(default=1)  # rises with every change; the ETag


def add(session: Session, model: Model) -> None:
    model.created_at = session.scalar(select(now())) or 0.0
    session.add(model)
    session.flush()
    history.write(session, model.created_by, "model.registered", model.id, details={"family": model.family})


def retention(model: Model, failed_days: float) -> dict[str, float]:
    """For how many days the sealed forget set of an ended request is kept. `failed_days`: where the model says nothing."""
    return {"completed_days": 0, "failed_days": failed_days, **model.retention}


def find(session: Session, name_or_id: str) -> Model | None:
    return session.scalar(select(Model).where((Model.id == name_or_id) | (Model.name == name_or_id)))


def lock(session: Session, name_or_id: str, whole: bool = False) -> Model | None:
    """The model, held until the transaction ends by whoever changes what serves; jobs go on registering versions, but not
    with `whole`."""
    named = select(Model).where((Model.id == name_or_id) | (Model.name == name_or_id))
    return session.scalar(named.with_for_update(key_share=not whole))


def share(session: Session, model_id: str) -> Model:
    """The model as it is now; until the transaction ends nobody changes its process, and many may hold it so."""
    named = {"read": True, "key_share": True}
    return session.get_one(Model, model_id, with_for_update=named, populate_existing=True)


def page(session: Session, *, after: str | None, limit: int) -> list[Model]:
    query = select(Model).order_by(Model.id.desc()).limit(limit)
    return list(session.scalars(query.where(Model.id < after) if after is not None else query))


def names(session: Session, ids: set[str]) -> dict[str, str]:
    return {row.id: row.name for row in session.execute(select(Model.id, Model.name).where(Model.id.in_(ids)))}


def uses_dataset(session: Session, dataset_id: str) -> bool:
    columns = (Model.train_id, Model.retain_id, Model.test_id)
    return any(session.scalar(select(Model.id).where(column == dataset_id).limit(1)) for column in columns)


def steps(model: Model) -> list[str]:
    """What its requests need before they are queued, in order."""
    return [str(step) for step in Step if model.process.get(step) == "required"]


def change(session: Session, model: Model, changes: dict[str, Any], actor: str) -> None:
    for name, value in changes.items():
        setattr(model, name, value)
    model.revision += 1
    handed = {"owner": changes["owner"]} if "owner" in changes else {}
    history.write(session, actor, "model.changed", model.id, details={"fields": sorted(changes), **handed})
