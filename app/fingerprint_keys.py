"""The fingerprint keys that are alive, as the server and the operator's commands use them; KeyLost when one is lost."""

from enum import StrEnum

from app.deployment import Deployment
from app.errors import LetheError
from app.privacy.fingerprints import check_of
from app.privacy.sealing import KeyGone
from app.records import named_key as named_keys
from app.records.named_key import NamedKey


class State(StrEnum):
    OK = "ok"
    UNCHECKED = "unchecked"  # its first use was not noted yet
    LOST = "lost"
    DESTROYED = "destroyed"  # it was retired
    LEFT = "left"  # it was retired, and whoever did it died before it was destroyed
    ANOTHER = "another"  # the file holds another key than the one that was used


class KeyLost(LetheError):
    """A named key is not in the key folder any more, or another one is."""

    status_of_class = 503
    title_of_class = "A key is lost"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"The key {name} is not in the key folder as it was: the operator puts named/{name}.key back from its backup, or "
            "accepts the loss (docs/operators.md, Keys).",
            code="key-lost",
        )


class Unusable(LetheError):
    """The key folder is not as it should be. The log and `lethe keyring status` say the remedy: it names paths."""

    status_of_class = 503
    title_of_class = "Keys are lost"

    def __init__(self, broken: list[str]) -> None:
        super().__init__(
            f"{len(broken)} of the service's keys are lost: see `lethe keyring status`.", code="keyring-broken"
        )


def living_keys(lethe: Deployment) -> dict[str, bytes]:
    """By name, the newest first; a key that was never used is made. KeyLost when one that was used is not there."""
    with lethe.store.read() as session:
        rows = named_keys.living(session)
    return {row.name: use(lethe, row) for row in rows}


def use(lethe: Deployment, row: NamedKey) -> bytes:
    try:
        key = lethe.keyring.named_key(row.name, make=row.check_value is None)
    except KeyGone:
        raise KeyLost(row.name) from None
    if row.check_value not in (None, check_of(key)):
        raise KeyLost(row.name)
    return key


def state_of(lethe: Deployment, row: NamedKey) -> State:
    """Makes nothing."""
    if row.retired_at is not None:
        return State.LEFT if lethe.keyring.has_named(row.name) else State.DESTROYED
    try:
        key = lethe.keyring.named_key(row.name, make=False)
    except KeyGone:
        return State.UNCHECKED if row.check_value is None else State.LOST
    if row.check_value is None:
        return State.UNCHECKED
    return State.OK if row.check_value == check_of(key) else State.ANOTHER
