"""Register a result: bytes into the store first, under an intent, then one transaction that carries the lease token.

A crash before that transaction leaves an intent that the sweeper clears; a lost lease makes it fail whole. Either
way there is no half-registered version.
"""

import base64
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from app.catalog import AUTO
from app.privacy import label_figures
from app.privacy.sealing import Keyring
from app.records import attack_result as attack_results
from app.records import checkpoint as checkpoints
from app.records import held_tombstone as held_tombstones
from app.records import intent as intents
from app.records import job as jobs
from app.records import job_event
from app.records import tombstone as tombstones
from app.records.request import Request
from app.records.session import Store
from app.report import IMAGES
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
    """`result`: paths of the pack, the manifest, pictures and answer sets in scratch; digest, changes, report and seconds. Answer
    sets, pictures that show images and figures by label are sealed."""
    kinds = ("pack", "manifest") if result["pack"] else ("manifest",)  # nothing changed: no pack
    names = {kind: f"{kind}s/{lease.job_id}-{lease.token}" for kind in kinds}
    images = specification.message["images"]
    folders = {
        name: images["folder"] if name in IMAGES else f"pictures/{lease.job_id}-{lease.token}"
        for name in result["pictures"]
    }
    pictures = {name: f"{folder}/{name}" for name, folder in folders.items()}
    shown = images["folder"] if images["folder"] in folders.values() else None
    answers = {specification.message["answers"][side]["blob"]: side for side in result["answers"]}
    own = [blob for blob, side in answers.items() if side == "unlearned"]
    with store.write() as session:
        stage = jobs.Stage.REGISTERING
        job_event.write(session, lease.job_id, lease.token, "stage", {"stage": stage}, stage=stage, progress={})
        intents.declare(session, [*names.values(), *pictures.values(), *own], lease.job_id, lease.token)
        checkpoints.keep_answers(session, answers)
        ladder = _place(session, lease)
    for kind, blob in names.items():
        blobs.put(blob, Path(result[kind]))
    if shown:
        keyring.keep(checkpoints.images_key(specification.checkpoint_id), base64.b64decode(images["key"]))
    for name, blob in pictures.items():
        blobs.put(blob, Path(result["pictures"][name]))
    for side, path in result["answers"].items():
        keep_answers(blobs, keyring, specification.message["answers"][side], Path(path))
    passed = result["report"]["verdict"] == "passed"
    report = {**result["report"], "left_out": specification.left_out, "pictures": sorted(pictures)}
    checkpoint = checkpoints.Checkpoint(
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
        report=label_figures.stored(keyring, lease.request_id, report | ladder),
        images=shown,
    )
    with store.write() as session:
        jobs.write_as_holder(session, lease.job_id, lease.token, unlearning_seconds=result["unlearning_seconds"])
        _succeed(session, lease, result["report"])
        checkpoints.add(session, checkpoint, lease.worker)
        if passed:
            checkpoints.supersede_before(session, checkpoint, lease.worker)
            tombstones.lay(session, lease.model_id, lease.request_id, specification.fingerprints)
        else:
            held_tombstones.hold(session, checkpoint.id, specification.fingerprints)
        checkpoints.keep_answers(session, answers)  # the new version's, and any that was superseded meanwhile: it goes
        intents.fulfil(session, [*names.values(), *pictures.values(), *own])


def _succeed(session: Session, lease: Lease, report: dict[str, Any]) -> None:
    """The job; of its request what the verdict says."""
    reasons = report.get("reasons", ())
    why = next((each for each in ("broken_promise", "judge_unfit") if each in reasons), "threshold_missed")
    climbs = "judge_unfit" not in reasons  # a judge is no fitter for another recipe
    passed, details = report["verdict"] == "passed", {"verdict": report["verdict"]}
    jobs.succeed(session, lease.job_id, lease.token, lease.worker, passed, details, why, climbs)


def register_attacks(store: Store, lease: Lease, rows: list[dict[str, Any]]) -> None:
    """What attacks on a version found: rows alone, in one transaction. The version and its report stay as they are."""
    with store.write() as session:
        attack_results.record(session, lease.job_id, lease.token, lease.worker, rows)


def keep_answers(blobs: LocalBlobs, keyring: Keyring, place: dict[str, str], path: Path) -> None:
    """Put a sealed answer set into the store and its key into the keyring. Without room there is none: it is only saved work."""
    keyring.keep(place["blob"].split("/")[1], base64.b64decode(place["key"]))
    with suppress(StorageFull):
        blobs.put(place["blob"], path)


def _place(session: Session, lease: Lease) -> dict[str, Any]:
    """With method auto, what the report says of the ladder: which rung this is, and what the earlier ones came to."""
    request, job = session.get_one(Request, lease.request_id), session.get_one(jobs.Job, lease.job_id)
    if request.method != AUTO:
        return {}
    made = checkpoints.of_jobs(session, [request.id])
    tried = [each for each in jobs.of_request(session, request.id) if each.retry == job.retry and each.rung < job.rung]
    earlier = [
        {
            "method": each.method,
            "version": made[each.id][0] if each.id in made else None,
            "verdict": made[each.id][1] if each.id in made else None,
            "error": each.error["code"] if each.error else None,
            "unlearning_seconds": each.unlearning_seconds,
            "seconds": each.seconds,
        }
        for each in tried
    ]
    return {"ladder": {"rung": job.rung, "rungs": len(request.ladder), "method": job.method, "earlier": earlier}}


def keep_resume_state(blobs: LocalBlobs, lease: Lease, path: str) -> str:
    """Put sealed resume state into the store under a name that the next save of this job replaces."""
    name = f"resume/{lease.job_id}"
    lease.renew()  # a stale holder must not replace what a later attempt saved
    blobs.put(name, Path(path))
    Path(path).unlink()
    return name
