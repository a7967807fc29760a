"""Keys that were destroyed and are there again, because an older copy of the key folder was restored: they go once more."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.privacy.purge import ENDED
from app.records import checkpoint as checkpoints
from app.records import history
from app.records import request as requests
from app.records.checkpoint import Checkpoint, Status
from app.records.dataset import Dataset, Role
from app.records.job import Job


def destroy_returned(lethe: Deployment, actor: str) -> int:
    """Of purged forget sets, of requests that were purged without work, of resume states of jobs that ended, and of erased
    answer sets and images. How many there were."""
    present = {path.stem for path in lethe.keyring.files() if path.parent.name == "data"}
    if not present:
        return 0
    with lethe.store.read() as session:
        returned = present & _erased(session)
    for key_id in returned:
        lethe.keyring.destroy(key_id)
    if returned:
        with lethe.store.write() as session:
            history.write(session, actor, "keyring.returned_destroyed", "keyring", details={"keys": len(returned)})
    return len(returned)


def _erased(session: Session) -> set[str]:
    purged = select(Dataset.id).where(Dataset.role == Role.FORGET, Dataset.purged_at.is_not(None))
    ended = select(Job.id).where(Job.status.in_(ENDED), Job.resume_blob.is_(None))
    past = Checkpoint.status.in_([Status.SUPERSEDED, Status.RETIRED])
    unanswered = select(Checkpoint.id).where(past, Checkpoint.answers.is_(None))
    named = select(requests.Request.id).where(
        requests.Request.status.in_(requests.WITHOUT_WORK), requests.Request.purged_at.is_not(None)
    )
    unpictured = session.scalars(select(Checkpoint.id).where(Checkpoint.images.is_(None)))
    found = {key for query in (purged, ended, unanswered, named) for key in session.scalars(query)}
    return found | set(map(checkpoints.images_key, unpictured))
