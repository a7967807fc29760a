"""Run a protocol through the REST API: copies of the model, requests one after the other, and what their reports say.

The model itself is never asked to forget. Requests that must not build on each other get a fresh copy each, downloaded and
registered again under a name of its own; a sequence has one copy for all. One request runs at a time, so that none
disturbs another's seconds.
"""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.client import Lethe
from app.errors import Refused
from app.protocols.cases import Case, Division, cases
from app.protocols.needs import check, settings
from app.protocols.schema import Protocol
from app.protocols.summary import summary

Told = Callable[[dict[str, Any]], None]
SETS = ("train", "retain", "test")
COPIES = "The server cannot delete models: the copies, and the sets uploaded for them, stay registered."
SEQUENTIAL = (
    "Requests of one seed ran one after the other on one copy, each on the newest released version: a version that "
    "missed the copy's policy is in quarantine, and the next request did not build on it (`parent`)."
)


def run(
    client: Lethe,
    protocol: Protocol,
    model_name: str,
    images: Path | None = None,
    limit: int | None = None,
    on_event: Told = lambda event: None,
    on_result: Told = lambda result: None,
) -> dict[str, Any]:
    """The whole result; `on_result` is told after each request what there is so far."""
    model = client.call("GET", f"/v1/models/{model_name}")
    check(protocol, model, client.call("GET", "/v1/catalog"))
    every = cases(client, protocol, model, images)
    chosen = every[:limit]
    result = _begun(client, protocol, model, len(every) - len(chosen))
    with _downloaded(client, model) as directory:
        copy, line = "", None
        for number, case in enumerate(chosen, start=1):
            if not protocol.sequential or line != (case.settings, case.seed):
                line = (case.settings, case.seed)
                copy = f"{model['name'][:60]}-{result['run']}-{number}"
                sets = _sets(client, copy, case.division, images)
                result["copies"].append(_copied(client, protocol, model, directory, copy, sets))
            result["requests"].append(_asked(client, protocol, copy, case, images, on_event))
            result["summary"] = summary(protocol, result["requests"])
            on_result(result)
    return result


def _begun(client: Lethe, protocol: Protocol, model: dict[str, Any], left_out: int) -> dict[str, Any]:
    head = client.call("GET", f"/v1/models/{model['name']}/checkpoints/head")
    if head["parent"] is not None:
        rule = "It has forgotten already: a copy would not know what, and could train on it again."
        remedy = "Register its base under another name, with sets that hold nothing of it."
        raise Refused("protocol-unfit", "model", rule, remedy)
    return {
        "run": uuid.uuid4().hex[:8],
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "protocol": protocol.model_dump(),
        "model": {part: model[part] for part in ("name", "family")}
        | {part: head[part] for part in ("number", "digest")},
        "notes": [*protocol.notes, COPIES, *([SEQUENTIAL] if protocol.sequential else [])],
        "left_out": left_out,
        "copies": [],
        "summary": [],
        "requests": [],
    }


@contextmanager
def _downloaded(client: Lethe, model: dict[str, Any]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield client.pull(model["name"], "head", Path(folder))


def _copied(
    client: Lethe, protocol: Protocol, model: dict[str, Any], directory: Path, name: str, sets: dict[str, str]
) -> dict[str, Any]:
    """What the result says of the copy: its reports call a label by its number in `labels`."""
    kept = {part: model[part] for part in ("judge", "evaluators", "policy", "ladder")}
    named = {role: model[role] for role in SETS} | sets
    made = client.register_model(
        directory, name, model["family"], **kept, **named, evaluation=settings(protocol, model)
    )
    return {part: made[part] for part in ("name", "labels", "evaluation", *SETS)}


def _sets(client: Lethe, name: str, division: Division | None, images: Path | None) -> dict[str, str]:
    """Of a division: the proxy is what the method may train on, and the labels to retain are only measured."""
    if division is None or images is None:
        return {}
    found = {}
    for role, labels in (("retain", division.proxy), ("test", division.retain)):
        with _folder_of(images, labels) as folder:
            found[role] = client.upload_dataset(folder, role, f"{name}-{role}")["id"]
    return {**found, "train": found["retain"]}


@contextmanager
def _folder_of(images: Path, labels: list[str]) -> Iterator[Path]:
    """A folder of links to the files of some labels."""
    with tempfile.TemporaryDirectory() as made:
        for label in labels:
            (Path(made) / label).mkdir()
            for path in sorted(path for path in (images / label).iterdir() if path.is_file()):
                (Path(made) / label / path.name).symlink_to(path.resolve())
        yield Path(made)


def _asked(
    client: Lethe, protocol: Protocol, copy: str, case: Case, images: Path | None, on_event: Told
) -> dict[str, Any]:
    """One request, followed to its end."""
    forget = case.forget
    if case.division is not None and images is not None:
        with _folder_of(images, case.division.forget) as folder:
            forget = {"dataset": client.upload_dataset(folder, "forget")["id"]}
    posted = client.request(
        copy, forget, concept=case.concept, method=protocol.method, recipe=case.recipe, seed=case.seed
    )
    return _row(client, case, client.wait(posted["id"], on_event))


def _row(client: Lethe, case: Case, done: dict[str, Any]) -> dict[str, Any]:
    row = {
        "settings": case.settings,
        "seed": case.seed,
        "recipe": case.recipe,
        "labels": case.labels,
        "forgotten": done["forget_count"],
        "request": done["id"],
        "copy": done["model"],
        "status": done["status"],
        "reason": done["reason"],
        "seconds": sum(job["seconds"] or 0.0 for job in done["jobs"]),
        "unlearning_seconds": sum(job["unlearning_seconds"] or 0.0 for job in done["jobs"]),
        "version": done["checkpoint"],
        "report": None,
    }
    if done["checkpoint"] is None:
        return row
    path = f"/v1/models/{done['model']}/checkpoints/{done['checkpoint']}"
    version, report = client.call("GET", path), client.report(done["model"], done["checkpoint"])
    values = {figure["metric"]: figure["value"] for figure in report["figures"]}
    return row | {
        "parent": version["parent"],
        "bytes_added": version["changes"].get("bytes_added"),
        "peak_memory": values.get("peak_memory"),
        "peak_device_memory": values.get("peak_device_memory"),
        "verdict": report["verdict"],
        "report_at": f"{path}/report",
        "report": report,
    }
