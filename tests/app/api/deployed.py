"""A deployment with sets and a tiny registered classifier, and what HTTP tests ask and check again and again."""

import io
import itertools
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import func, select

from app import weights
from app.audit import sequencer
from app.deployment import Deployment
from app.privacy.sealing import seal
from app.records import Record
from app.records import checkpoint as checkpoints
from app.records import job as jobs
from app.records import model as models
from app.records import request as requests
from app.records.base import new_id
from app.records.checkpoint import Checkpoint, Status
from tests import pictures, reports, tiny
from tests.conftest import client_for

Response = Any  # the test client's own class, which differs with the httpx that is installed
ZIP = {"Content-Type": "application/zip"}
_numbers = itertools.count(100)


@dataclass(frozen=True)
class World:
    """`digits` is registered with train (also retain) and test sets of labels 0 to 3; `directory` holds its files."""

    lethe: Deployment
    admin: TestClient
    requester: TestClient
    stranger: TestClient
    directory: Path


def build(lethe: Deployment, folder: Path) -> World:
    admin, requester, stranger = (client_for(lethe, role) for role in ("admin", "requester", "requester"))
    directory = tiny.write("vit", folder / "digits")
    for name, role, seed in (("train-set", "train", 1), ("test-set", "test", 2)):
        assert upload_set(admin, role, name, pictures.imagefolder(seed=seed)).status_code == 201
    world = World(lethe, admin, requester, stranger, directory)
    answer = register(world, "digits", directory, train="train-set", retain="train-set", test="test-set")
    assert answer.status_code == 201, answer.text
    return world


def upload_set(
    client: TestClient, role: str, name: str | None = None, body: bytes | None = None, **options: Any
) -> Response:
    params = {"role": role} | ({"name": name} if name else {})
    content = pictures.imagefolder(seed=next(_numbers)) if body is None else body
    return client.post("/v1/datasets", params=params, content=content, **{"headers": ZIP, **options})


def forget_set(client: TestClient, labels: tuple[object, ...] = (3,), body: bytes | None = None) -> str:
    """Upload a fresh set of role forget; its id."""
    answer = upload_set(client, "forget", body=body or pictures.imagefolder(labels, each=3, seed=next(_numbers)))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def packed(files: Path | Mapping[str, bytes]) -> bytes:
    """A zip of a directory's files, or of these."""
    if isinstance(files, Path):
        found = sorted(path for path in files.rglob("*") if path.is_file())
        files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return archive.getvalue()


def upload_model(client: TestClient, files: Path | Mapping[str, bytes]) -> str:
    answer = client.post("/v1/uploads", content=packed(files), headers=ZIP)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def register(world: World, name: str, files: Path | Mapping[str, bytes], **options: Any) -> Response:
    source = {"upload": upload_model(world.admin, files)}
    body = {"name": name, "family": "image_classifier", "source": source, **options}
    return world.admin.post("/v1/models", json=body)


def ask(client: TestClient, **body: Any) -> Response:
    """POST a request; by default salun on samples of the train set."""
    document = {"model": "digits", "forget": {"samples": ["0/0", "1/1"]}, "method": "salun", **body}
    return client.post("/v1/requests", content=json.dumps(document), headers={"Content-Type": "application/json"})


def asked(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = ask(client, **body)
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


def add_version(
    world: World,
    folder: Path,
    status: Status = Status.RELEASED,
    supersede: bool = False,
    report: dict[str, Any] | None = None,
    request_id: str | None = None,
    job_id: str | None = None,
) -> tuple[int, Path]:
    """Another version of `digits`, stored as a worker stores it. Its number, and the directory that was packed."""
    number = next(_numbers)
    directory, pack = tiny.write("vit", folder / str(number), seed=number), folder / f"{number}.pack"
    lethe, names = world.lethe, {kind: f"{kind}s/test-{number}" for kind in ("pack", "manifest")}
    with lethe.store.read() as session:
        model = models.find(session, "digits")
        assert model is not None
        parent = checkpoints.head(session, model.id)
        if request_id and job_id is None:
            job_id = jobs.of_request(session, request_id)[-1].id
    with lethe.blobs.open(parent.manifest) as file:
        before = weights.decode(file.read())
    manifest = weights.pack_delta(before, lethe.blobs, directory, pack, names["pack"])
    lethe.blobs.put(names["pack"], pack)
    lethe.blobs.put(names["manifest"], weights.encode(manifest))
    version = Checkpoint(
        id=new_id("ckpt"), model_id=model.id, parent_id=parent.id, request_id=request_id, job_id=job_id, status=status,
        pack=names["pack"], manifest=names["manifest"],
        digest=weights.digest(manifest), changes=dict(weights.changes(manifest, before)),
        report=report or reports.report(pictures=["grid.png"]),
    )  # fmt: skip
    keep_grid(lethe, version, pictures.png(number))
    with lethe.store.write() as session:
        checkpoints.add(session, version, "worker:test")
        if supersede:
            checkpoints.supersede_before(session, version, "worker:test")
    return version.number, directory


def keep_grid(lethe: Deployment, version: Checkpoint, png: bytes) -> None:
    """Sealed, as a worker does it; the version is not stored yet."""
    version.images = checkpoints.images_folder(version.id)
    name, key = f"{version.images}/grid.png", lethe.keyring.new_key(checkpoints.images_key(version.id))
    lethe.blobs.put(name, seal(key, png, name.encode()))


def forgotten(world: World, name: str, status: Status = Status.RELEASED) -> tuple[int, str]:
    """A version of a model as a request makes it: completed and released, or quarantined. Its number, and the request."""
    lethe, request_id, passed = world.lethe, new_id("req"), status == Status.RELEASED
    with lethe.store.write() as session:
        model = models.find(session, name)
        assert model is not None
        parent = checkpoints.head(session, model.id)
        request = requests.Request(
            id=request_id, model_id=model.id, status="queued", sealed=b"", forget_kind="samples", forget_count=1, method="salun",
            ladder=[{"method": "salun", "recipe": {}}], seed=0, requested_at=0.0, due_at=1.0, created_by="test", created_at=0.0,
        )  # fmt: skip
        requests.add(session, request)
        ended = requests.Status.COMPLETED if passed else requests.Status.EVALUATION_FAILED
        for to in (requests.Status.RUNNING, ended):
            requests.move(session, request_id, to, "worker:test")
        job = jobs.of_rung(request, 0, 0)
        job.status = jobs.Status.SUCCEEDED
        jobs.add(session, job)
        version = Checkpoint(id=new_id("ckpt"), model_id=model.id, parent_id=parent.id, request_id=request_id,
                             status=status, manifest=parent.manifest, digest=parent.digest, changes={},
                             report=reports.report(verdict="passed" if passed else "failed"))  # fmt: skip
        checkpoints.add(session, version, "worker:test")
        if passed:
            checkpoints.supersede_before(session, version, "worker:test")
    return version.number, request_id


def drawn_for_a_request(world: World, status: Status) -> tuple[int, str]:
    """A version of `digits` as a request makes it, whose report has a grid. Its number, and the request."""
    number, request_id = forgotten(world, "digits", status)
    with world.lethe.store.write() as session:
        found = session.get_one(Checkpoint, version(world, number).id)
        keep_grid(world.lethe, found, pictures.png(number))
        found.report = {**found.report, "pictures": ["grid.png"]}
    return number, request_id


def version(world: World, number: int) -> Checkpoint:
    with world.lethe.store.read() as session:
        model = models.find(session, "digits")
        found = checkpoints.find(session, model.id, number) if model else None
    assert found is not None
    return found


def attackable(world: World, **body: Any) -> str:
    """A request with a version that changed nothing, in quarantine: no one's parent. Its job has not run."""
    request_id = str(asked(world.admin, **body)["id"])
    with world.lethe.store.write() as session:
        parent = checkpoints.head(session, session.get_one(requests.Request, request_id).model_id)
        version = Checkpoint(id=new_id("ckpt"), model_id=parent.model_id, parent_id=parent.id, request_id=request_id,
                             status=Status.QUARANTINED, manifest=parent.manifest, digest=parent.digest, changes={},
                             report=reports.report(verdict="failed"))  # fmt: skip
        checkpoints.add(session, version, "worker:test")
    return request_id


def audited(world: World, **filters: str) -> list[dict[str, Any]]:
    """The audit's entries that an admin sees, with all that was committed so far."""
    while sequencer.integrate(world.lethe.store):
        pass
    answer = world.admin.get("/v1/audit", params={"limit": "200", **filters})
    assert answer.status_code == 200, answer.text
    entries: list[dict[str, Any]] = answer.json()["data"]
    return entries


def refused(answer: Response, status: int, code: str | None = None, field: str | None = None) -> dict[str, Any]:
    """The problem document of a refusal, checked for its form."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "request_id"} <= problem.keys()
    assert problem["status"] == status and problem["title"] and problem["detail"]
    assert problem["type"].startswith("urn:lethe:problem:")
    assert problem["request_id"] == answer.headers["x-request-id"]
    if code is not None:
        assert problem["type"] == f"urn:lethe:problem:{code}", problem
    if field is not None:
        (error,) = problem["errors"]
        assert error["field"] == field and error["rule"] and error["remedy"], problem
    return problem


def stored(lethe: Deployment) -> tuple[dict[str, int], dict[str, int]]:
    """Everything that is kept: rows per table; blobs, keys, scratch and bell by size. The history is counted, its numbers
    are not: a running server gives them a moment later."""
    with lethe.store.read() as session:
        rows = {
            table.name: session.scalar(select(func.count()).select_from(table)) or 0
            for table in Record.metadata.sorted_tables
            if table.name not in ("audit", "audit_queue", "leaders")
        }
    data = lethe.settings.data
    files = {path.relative_to(data).as_posix(): path.stat().st_size for path in data.rglob("*") if path.is_file()}
    return rows, {name: size for name, size in files.items() if not name.startswith("lethe.db")}


def stored_but_history(lethe: Deployment) -> tuple[dict[str, int], dict[str, int]]:
    """The same without the count of the history, which tells of what was stored and is gone again, too."""
    rows, files = stored(lethe)
    return {table: count for table, count in rows.items() if table != "history"}, files
