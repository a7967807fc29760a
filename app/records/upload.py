"""Model archives that were uploaded and wait to be registered."""

from sqlalchemy import select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records import history
from app.records.base import Record, now


class Upload(Record):
    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    created_by: Mapped[str]
    created_at: Mapped[float]

    @property
    def blob(self) -> str:
        return f"uploads/{self.id}"


def add(session: Session, upload: Upload) -> None:
    upload.created_at = session.scalar(select(now())) or 0.0
    session.add(upload)
    history.write(session, upload.created_by, "upload.received", upload.id, details={"bytes": upload.bytes})


def old(session: Session, older_than_seconds: float) -> list[Upload]:
    return list(session.scalars(select(Upload).where(Upload.created_at < now() - older_than_seconds)))
