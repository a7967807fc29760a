"""Destroyed keys that an older copy of the key folder brought back.

Only what this database says was erased goes. A key that it does not know may be another database's, such as the one that an
empty or an older database took the place of.
"""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.privacy.fingerprints import check_of
from app.privacy.purge import ENDED
from app.privacy.sealing import KeyGone
from app.records import checkpoint as checkpoints
from app.records import history
from app.records import named_key as named_keys
from app.records import request as requests
from app.records.checkpoint import Checkpoint, Status
from app.records.dataset import Dataset, Role
from app.records.job import Job
from app.records.named_key import NamedKey
from app.records.request import Request


def destroy_returned(lethe: Deployment, actor: str) -> int:
    """Of purged forget sets, of what purged requests named unless they completed and nobody erased it, of resume states of jobs
    that ended, and of erased answer sets and images; and retired keys that told duplicates. How many there were."""
    present = {path.stem for path in lethe.keyring.files() if path.parent.name == "data"}
    with lethe.store.read() as session:
        returned = present & _erased(session) if present else set()
        named = {row.name for row in named_keys.retired_duplicates(session) if _is_there(lethe, row)}
    for key_id in returned:
        lethe.keyring.destroy(key_id)
    for name in named:
        lethe.keyring.destroy_named(name)
    if count := len(returned) + len(named):
        with lethe.store.write() as session:
            history.write(session, actor, "keyring.returned_destroyed", "keyring", details={"keys": count})
    return count


def _is_there(lethe: Deployment, row: NamedKey) -> bool:
    """The key that was retired, not another deployment's of the same name."""
    try:
        return row.check_value == check_of(lethe.keyring.named_key(row.name, make=False))
    except KeyGone:
        return False


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
