"""Keys that have a name and a lifetime: which there are, since when, and which fingerprints are made with.

    made (joins) -> current -> live, another one is current -> retired        of the purpose `fingerprint`
    made, current -> retired, another one is current                          of the purpose `duplicates`

The keys themselves lie in the key folder. `check_value` shows whether a file there still holds the key that it held when
it was first used.
"""

from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.errors import Conflict
from app.records.base import Record, now


class Purpose(StrEnum):
    API_KEYS = "hmac"
    FINGERPRINT = "fingerprint"
    DUPLICATES = "duplicates"


class NamedKey(Record):
    __tablename__ = "named_keys"

    name: Mapped[str] = mapped_column(primary_key=True)
    purpose: Mapped[str]
    check_value: Mapped[str | None]  # none until it is used
    made_at: Mapped[float]
    current_since: Mapped[float | None]  # none while a fingerprint key joins
    retired_at: Mapped[float | None]


def every(session: Session) -> list[NamedKey]:
    return list(session.scalars(select(NamedKey).order_by(NamedKey.made_at, NamedKey.name)))


def living(session: Session) -> list[NamedKey]:
    """Fingerprint keys that make and match marks: one that joins, the current one, then older ones."""
    alive = (NamedKey.purpose == Purpose.FINGERPRINT) & NamedKey.retired_at.is_(None)
    found = session.scalars(select(NamedKey).where(alive)).all()
    return sorted(found, key=lambda each: (each.current_since is not None, -(each.current_since or 0)))


def current(session: Session) -> NamedKey:
    return next(each for each in living(session) if each.current_since is not None)


def names(session: Session) -> list[str]:
    """Of the current key and older living ones, in this order."""
    return [each.name for each in living(session) if each.current_since is not None]


def hold(session: Session) -> list[NamedKey]:
    """`living`, which stays so until the transaction ends."""
    session.scalars(select(NamedKey.name).where(NamedKey.purpose == Purpose.FINGERPRINT).with_for_update()).all()
    return living(session)


def confirm(session: Session, used: dict[str, str]) -> None:
    """That marks made with `used` (names and check values) are of every living key, at the transaction's end, too.
    Conflict when a key has joined since: what was marked must be marked again."""
    shared = select(NamedKey.name).where(NamedKey.purpose == Purpose.FINGERPRINT).with_for_update(read=True)
    session.scalars(shared).all()
    for each in living(session):
        if each.name not in used:
            raise Conflict("The fingerprint key was rotated while the set arrived: send it again.", code="key-rotated")
        if each.check_value is None:
            each.check_value = used[each.name]


def of_duplicates(session: Session, change: bool = False) -> NamedKey:
    """The key that tells duplicates now; until the transaction ends none takes its place, or, with `change`, nobody uses it."""
    mine = NamedKey.purpose == Purpose.DUPLICATES
    session.scalars(select(NamedKey.name).where(mine).with_for_update(read=not change)).all()
    return session.scalars(select(NamedKey).where(mine, NamedKey.retired_at.is_(None))).one()


def retired_duplicates(session: Session) -> list[NamedKey]:
    past = (NamedKey.purpose == Purpose.DUPLICATES) & NamedKey.retired_at.is_not(None)
    return list(session.scalars(select(NamedKey).where(past)))


def add(session: Session, name: str, check_value: str) -> NamedKey:
    """A fingerprint key that joins."""
    return _add(session, name, Purpose.FINGERPRINT, check_value)


def replace_duplicates(session: Session, old: NamedKey, name: str, check_value: str) -> NamedKey:
    """The next key that tells duplicates, current at once. The caller holds the old one."""
    made = _add(session, name, Purpose.DUPLICATES, check_value)
    made.current_since = old.retired_at = made.made_at
    return made


def _add(session: Session, name: str, purpose: Purpose, check_value: str) -> NamedKey:
    made = NamedKey(
        name=name,
        purpose=purpose,
        check_value=check_value,
        made_at=session.scalar(select(now())) or 0.0,
        current_since=None,
        retired_at=None,
    )
    session.add(made)
    session.flush()
    return made
