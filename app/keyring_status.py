"""How the keys are: what opens, what is lost, which fingerprint key is past its lifetime. Read by `lethe keyring status`, by
/readyz and by the sweeper, which logs it."""

import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.fingerprint_keys import State, state_of, use
from app.privacy import master_rotation
from app.privacy.fingerprints import check_of
from app.records import dataset as datasets
from app.records import named_key as named_keys
from app.records import request as requests
from app.records import tombstone as tombstones
from app.records.base import now
from app.records.named_key import NamedKey, Purpose

DAY = 86400.0
BROKEN = (State.LOST, State.ANOTHER)


def status(lethe: Deployment) -> dict[str, Any]:
    """`missing`: data keys that a forget set or a request that has not ended needs, and that are gone."""
    with lethe.store.read() as session:
        rows, laid = named_keys.every(session), tombstones.counts(session)
        current = named_keys.current(session).name
        clock = session.scalar(select(now())) or time.time()
        needed = datasets.sealed_ids(session) + requests.unended(session)
    named = [
        {
            "name": row.name,
            "use": _use(row, current),
            "key": state_of(lethe, row),
            "days": int((clock - row.made_at) / DAY),
            "tombstones": laid.get(row.name, 0),
        }
        for row in rows
    ]
    return {
        "master_key": str(lethe.keyring.master_file),
        "rotation_unfinished": master_rotation.unfinished(lethe.keyring),
        "keys": lethe.keyring.counts(),
        "missing": sum(not lethe.keyring.exists(key_id) for key_id in needed),
        "named": named,
        "warnings": warnings(lethe),
    }


def warnings(lethe: Deployment) -> list[dict[str, str]]:
    """What an operator should do something about: an event's name for the log, and the remedy."""
    rotate = "`lethe keyring rotate-fingerprints`"
    with lethe.store.read() as session:
        rows = named_keys.every(session)
        overdue = _overdue(session, named_keys.current(session), lethe.settings.fingerprint_key_days)
        mute = _overdue(session, named_keys.of_duplicates(session), lethe.settings.fingerprint_key_days)
        joining = any(each.current_since is None for each in named_keys.living(session))
    found = [{"event": "keyring.broken", "remedy": each} for each in broken(lethe)]
    if overdue:
        found.append({"event": "fingerprint_key.overdue", "remedy": f"{overdue} is past its lifetime: {rotate}"})
    if mute:
        replace = "`lethe keyring rotate-duplicates --reason-code expired`"
        found.append({"event": "duplicates_key.overdue", "remedy": f"{mute} is past its lifetime: {replace}"})
    if joining:
        found.append({"event": "fingerprint_key.joining", "remedy": f"a rotation was interrupted: {rotate}"})
    for name in (row.name for row in rows if row.purpose == Purpose.FINGERPRINT and state_of(lethe, row) == State.LEFT):
        again = f"`lethe keyring retire-fingerprints {name} --reason-code other --yes`"
        found.append({"event": "fingerprint_key.left", "remedy": f"its end was interrupted: {again}"})
    if master_rotation.unfinished(lethe.keyring):
        found.append({"event": "master_key.rotation_unfinished", "remedy": "`lethe keyring rotate`"})
    return found


def broken(lethe: Deployment) -> list[str]:
    """What keeps the service from its promises, each with its remedy."""
    try:
        lethe.keyring.check()
    except OSError as error:
        return [str(error)]
    with lethe.store.read() as session:
        rows = [row for row in named_keys.every(session) if row.retired_at is None]
    return [
        f"{lethe.keyring.folder}/named/{row.name}.key is {_how(state)}: put it back from its backup, or {_without(row)}"
        for row in rows
        if (state := state_of(lethe, row)) in BROKEN
    ]


def note_first_use(lethe: Deployment) -> None:
    """Remember the check values of keys that are used already, such as the API keys' and those from before an upgrade, so
    that their loss shows."""
    with lethe.store.write() as session:
        for row in named_keys.every(session):
            if row.check_value is None and row.retired_at is None:
                row.check_value = check_of(use(lethe, row))


def _use(row: NamedKey, current: str) -> str:
    if row.purpose == Purpose.API_KEYS:
        return "API keys"
    if row.retired_at is not None:
        return "retired"
    if row.purpose == Purpose.DUPLICATES:
        return "duplicates"
    if row.current_since is None:
        return "joining"
    return "current" if row.name == current else "older"


def _overdue(session: Session, current: NamedKey, days: float) -> str | None:
    """The key's name when it is past its lifetime."""
    clock = session.scalar(select(now())) or 0.0
    return current.name if clock - current.made_at > days * DAY else None


def _how(state: State) -> str:
    return "gone" if state == State.LOST else "another key than the one that was used"


def _without(row: NamedKey) -> str:
    if row.purpose == Purpose.API_KEYS:
        return "give up all API keys: `lethe keyring renew-api-secret`"
    if row.purpose == Purpose.DUPLICATES:
        return "give up telling duplicates of earlier requests: `lethe keyring rotate-duplicates --reason-code lost`"
    return (
        "give up what only it matches: `lethe keyring rotate-fingerprints` (unless a newer one is current), then "
        f"`lethe keyring retire-fingerprints {row.name} --reason-code lost`"
    )
