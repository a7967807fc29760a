"""The straight line of a job, inside the runner: load, copy, unlearn, pack, measure.

Everything that can be chosen was chosen before: the specification holds the resolved recipe and the seed.
"""

import base64
import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from app import weights
from app.catalog import METHODS
from app.privacy.sealing import seal
from app.report import IMAGES
from app.storage import LocalBlobs
from worker import answer_set, by_name, cost, evaluate
from worker.families import Trace
from worker.load import Material, Warm, load, pick_device
from worker.losses import Curves
from worker.progress import Progress, ResumableProgress, Tell


def run(specification: dict[str, Any], warm: Warm, tell: Tell, stop: Callable[[], str | None]) -> dict[str, Any]:
    """Returns what the supervisor registers: paths in scratch, digest, changes, the report and the seconds."""
    device = prepare_torch(specification)
    blobs = LocalBlobs(Path(specification["blob_root"]))

    tell("stage", {"stage": "loading"})
    material = load(specification, warm, blobs, device, Progress(tell, stop))

    tell("stage", {"stage": "unlearning"})
    network = copy.deepcopy(material.base.network)
    spent, begun = cost.start(device), time.monotonic()
    trace, losses = unlearn(specification, material, network, blobs, warm, tell, stop)
    seconds = time.monotonic() - begun
    taken = spent()

    packed, sizes = pack(specification, material, network, blobs)

    tell("stage", {"stage": "evaluating"})
    taken = replace(taken, **sizes)
    kept = answer_set.open_sets(specification, material, blobs)
    report = evaluate.evaluate(
        specification, material, network, trace, seconds, Progress(tell, stop), kept, taken, losses
    )

    passed = report.document["verdict"] == "passed"
    answers = answer_set.seal_sets(specification, material, kept, packed["digest"], passed)
    told = {"answers": answers, "unlearning_seconds": round(seconds, 3)}
    return packed | told | written(report, specification, material.scratch)


def unlearn(
    specification: dict[str, Any],
    material: Material,
    network: nn.Module,
    blobs: LocalBlobs,
    warm: Warm,
    tell: Tell,
    stop: Callable[[], str | None],
) -> tuple[Trace | None, Curves]:
    """Run the method on `network` in place. Returns what it chose on the way, for methods that choose, and its losses by step."""
    method = by_name.method(specification["method"])
    progress = ResumableProgress(
        tell,
        stop,
        base64.b64decode(specification["job_key"]),
        resume_context(specification),
        material.scratch,
        specification["resume_seconds"],
    )
    if specification["resume"] and blobs.exists(specification["resume"]):
        with blobs.open(specification["resume"]) as file:
            progress.sealed = file.read()
    remember = (
        {"remember": warm.remember(kept_context(specification))} if METHODS[specification["method"]].remembers else {}
    )
    trace: Trace | None = method.unlearn(
        network,
        material.base.family,
        material.forget,
        material.retain,
        **specification["recipe"],
        generator=torch.Generator().manual_seed(specification["seed"]),
        on_step=progress.on_step,
        resume=progress.resume,
        **remember,
    )
    material.base.family.round_to_stored(network)
    return trace, progress.losses.curves()


def resume_context(specification: dict[str, Any]) -> bytes:
    """Between two attempts of a job another request may have completed: then base and retain set are others."""
    depends = {key: specification[key] for key in ("job", "base", "method", "recipe", "seed", "generate")}
    positions = {name: message["positions"] for name, message in specification["sets"].items()}
    return json.dumps([depends, positions], sort_keys=True).encode()


def kept_context(specification: dict[str, Any]) -> str:
    """What a result of base and retain set alone depends on; equal digests, equal results."""
    retain = specification["sets"].get("retain")
    kept = [retain["blob"], retain["positions"], retain["labels"]] if retain else _generated(specification)
    depends = [specification["base"]["digest"], specification["evaluation"].get("prompt"), *kept]
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


def _generated(specification: dict[str, Any]) -> list[Any]:
    return [specification[key] for key in ("generate", "seed", "names", "evaluation")]


def pack(
    specification: dict[str, Any], material: Material, network: nn.Module, blobs: LocalBlobs
) -> tuple[dict[str, Any], dict[str, int]]:
    """Write what changed, against the base, into scratch; and what that adds to the store, beside a full copy."""
    directory, pack_path = material.scratch / "checkpoint", material.scratch / "pack"
    name = f"packs/{specification['job']}-{specification['token']}"
    material.base.family.save(network, directory, material.base.directory)
    manifest = weights.pack_delta(material.base.manifest, blobs, directory, pack_path, name)
    manifest_path = material.scratch / "manifest"
    manifest_path.write_bytes(weights.encode(manifest))
    changes = weights.changes(manifest, material.base.manifest)
    packed = {
        "pack": str(pack_path) if pack_path.exists() else None,
        "manifest": str(manifest_path),
        "digest": weights.digest(manifest),
        "changes": changes,
    }
    full = sum(file.size for file in manifest.files)
    return packed, {"bytes_added": changes["bytes_added"], "bytes_full": full}


def written(report: evaluate.Report, specification: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """The report, and where its pictures lie; those that show images are sealed."""
    place, pictures = specification["images"], {}
    for picture, png in report.pictures.items():
        if picture in IMAGES:
            png = seal(base64.b64decode(place["key"]), png, f"{place['folder']}/{picture}".encode())
        (scratch / picture).write_bytes(png)
        pictures[picture] = str(scratch / picture)
    return {"report": report.document, "pictures": pictures}


def prepare_torch(specification: dict[str, Any]) -> torch.device:
    if specification["threads"]:
        torch.set_num_threads(specification["threads"])
    return pick_device(specification["device"])
