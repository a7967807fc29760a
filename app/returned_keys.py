"""Keys that should not be there: destroyed ones that an older copy of the key folder brought back, and those of requests that
were never recorded.
"""

import time
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.privacy.purge import ENDED
from app.records import checkpoint as checkpoints
from app.records import history
from app.records import named_key as named_keys
from app.records import request as requests
from app.records.checkpoint import Checkpoint, Status
from app.records.dataset import Dataset, Role
from app.records.job import Job
from app.records.request import Request

DAY = 86400.0


def destroy_returned(lethe: Deployment, actor: str) -> int:
    """Of purged forget sets, of what purged requests named unless they completed and nobody erased it, of resume states of jobs
    that ended, and of erased answer sets and images; and retired keys that told duplicates. How many there were."""
    present = {path.stem for path in lethe.keyring.files() if path.parent.name == "data"}
    with lethe.store.read() as session:
        returned = present & _erased(session) if present else set()
        named = {name for name in named_keys.retired_duplicates(session) if lethe.keyring.has_named(name)}
    return _destroyed(lethe, returned, actor, "keyring.returned_destroyed", named)


def destroy_orphans(lethe: Deployment, actor: str) -> int:
    """Of requests that no row knows a day later: the server was killed before the commit. How many there were."""
    old = {path.stem for path in lethe.keyring.files() if path.stem.startswith("req_") and _age(path) > DAY}
    if not old:
        return 0
    with lethe.store.read() as session:
        orphans = old - set(session.scalars(select(Request.id)))
    return _destroyed(lethe, orphans, actor, "keyring.orphans_destroyed")


def _age(path: Path) -> float:
    """Seconds since it was made or wrapped anew; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _destroyed(
    lethe: Deployment, keys: set[str], actor: str, action: str, named: frozenset[str] | set[str] = frozenset()
) -> int:
    for key_id in keys:
        lethe.keyring.destroy(key_id)
    for name in named:
        lethe.keyring.destroy_named(name)
    if count := len(keys) + len(named):
        with lethe.store.write() as session:
            history.write(session, actor, action, "keyring", details={"keys": count})
    return count


def _erased(session: Session) -> set[str]:
    purged = select(Dataset.id).where(Dataset.role == Role.FORGET, Dataset.purged_at.is_not(None))
    ended = select(Job.id).where(Job.status.in_(ENDED), Job.resume_blob.is_(None))
    past = Checkpoint.status.in_([Status.SUPERSEDED, Status.RETIRED])
    unanswered = select(Checkpoint.id).where(past, Checkpoint.answers.is_(None))
    unkept = Request.status.not_in(requests.KEPT) | (func.length(Request.sealed) == 0)
    named = select(Request.id).where(Request.purged_at.is_not(None), unkept)
    unpictured = session.scalars(select(Checkpoint.id).where(Checkpoint.images.is_(None)))
    found = {key for query in (purged, ended, unanswered, named) for key in session.scalars(query)}
    return found | set(map(checkpoints.images_key, unpictured))
