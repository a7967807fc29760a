"""Which process does a periodic duty now: a small lease per duty, so that several servers sweep one at a time."""

from sqlalchemy import insert, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.records.base import Record, changed, now


class Leader(Record):
    __tablename__ = "leaders"

    duty: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    until: Mapped[float]


def lead(session: Session, duty: str, holder: str, seconds: float) -> bool:
    """Take or keep the duty for `seconds`; false while another holder has it."""
    mine = (Leader.holder == holder) | (Leader.until < now())
    taken = update(Leader).where(Leader.duty == duty, mine).values(holder=holder, until=now() + seconds)
    if changed(session, taken):
        return True
    try:
        with session.begin_nested():
            session.execute(insert(Leader).values(duty=duty, holder=holder, until=now() + seconds))
    except IntegrityError:
        return False
    return True
