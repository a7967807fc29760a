"""Register a result: bytes into the store first, under an intent, then one transaction that carries the lease token.

A crash before that transaction leaves an intent that the sweeper clears; a lost lease makes it fail whole. Either
way there is no half-registered version.
"""

import base64
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.privacy.sealing import Keyring
from app.records import checkpoint as checkpoints
from app.records import intent as intents
from app.records import job as jobs
from app.records import job_event
from app.records import tombstone as tombstones
from app.records.session import Store
from app.storage import LocalBlobs, StorageFull
from worker.lease import Lease
from worker.specification import Specification


def register(
    store: Store,
    blobs: LocalBlobs,
    keyring: Keyring,
    lease: Lease,
    specification: Specification,
    result: dict[str, Any],
) -> None:
    """`result`: paths of the pack, the manifest, pictures and answer sets in scratch; digest, changes and report."""
    kinds = ("pack", "manifest") if result["pack"] else ("manifest",)  # nothing changed: no pack
    names = {kind: f"{kind}s/{lease.job_id}-{lease.token}" for kind in kinds}
    pictures = {name: f"pictures/{lease.job_id}-{lease.token}/{name}" for name in result["pictures"]}
    answers = {specification.message["answers"][side]["blob"]: side for side in result["answers"]}
    own = [blob for blob, side in answers.items() if side == "unlearned"]
    with store.write() as session:
        stage = jobs.Stage.REGISTERING
        job_event.write(session, lease.job_id, lease.token, "stage", {"stage": stage}, stage=stage, progress={})
        intents.declare(session, [*names.values(), *pictures.values(), *own], lease.job_id, lease.token)
        checkpoints.keep_answers(session, answers)
    for kind, blob in names.items():
        blobs.put(blob, Path(result[kind]))
    for name, blob in pictures.items():
        blobs.put(blob, Path(result["pictures"][name]))
    for side, path in result["answers"].items():
        keep_answers(blobs, keyring, specification.message["answers"][side], Path(path))
    passed = result["report"]["verdict"] == "passed"
    checkpoint = version_of(lease, specification, result, names, sorted(pictures))
    with store.write() as session:
        details = {"verdict": result["report"]["verdict"]}
        jobs.succeed(session, lease.job_id, lease.token, lease.worker, passed, details)
        checkpoints.add(session, checkpoint, lease.worker)
        if passed:
            checkpoints.supersede_before(session, checkpoint, lease.worker)
            tombstones.lay(session, lease.model_id, lease.request_id, specification.fingerprints)
        checkpoints.keep_answers(session, answers)  # the new version's, and any that was superseded meanwhile: it goes
        intents.fulfil(session, [*names.values(), *pictures.values(), *own])


def version_of(
    lease: Lease, specification: Specification, result: dict[str, Any], names: dict[str, str], pictures: list[str]
) -> checkpoints.Checkpoint:
    passed = result["report"]["verdict"] == "passed"
    return checkpoints.Checkpoint(
        id=specification.checkpoint_id,
        model_id=lease.model_id,
        parent_id=specification.parent_id,
        job_id=lease.job_id,
        request_id=lease.request_id,
        status=checkpoints.Status.RELEASED if passed else checkpoints.Status.QUARANTINED,
        pack=names.get("pack"),
        manifest=names["manifest"],
        digest=result["digest"],
        changes=result["changes"],
        report={**result["report"], "left_out": specification.left_out, "pictures": pictures},
    )


def keep_answers(blobs: LocalBlobs, keyring: Keyring, place: dict[str, str], path: Path) -> None:
    """Put a sealed answer set into the store and its key into the keyring. Without room there is none: it is only saved work."""
    keyring.keep(place["blob"].split("/")[1], base64.b64decode(place["key"]))
    with suppress(StorageFull):
        blobs.put(place["blob"], path)


def keep_resume_state(blobs: LocalBlobs, lease: Lease, path: str) -> str:
    """Put sealed resume state into the store under a name that the next save of this job replaces."""
    name = f"resume/{lease.job_id}"
    lease.renew()  # a stale holder must not replace what a later attempt saved
    blobs.put(name, Path(path))
    Path(path).unlink()
    return name
