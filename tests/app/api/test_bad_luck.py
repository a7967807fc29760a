"""A full disk, a damaged store, a database that is away: a problem document that says no more than it may, and nothing half stored."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.storage import LocalBlobs, StorageFull
from tests import tiny
from tests.app.api.deployed import (
    ZIP,
    World,
    ask,
    packed,
    refused,
    register,
    stored,
    upload_model,
    upload_set,
)
from tests.conftest import key_for


class FullAfter(LocalBlobs):
    """A disk with room for so many blobs more."""

    def __init__(self, root: Path, room: int) -> None:
        super().__init__(root)
        self.room = room

    def put(self, name: str, source: Any) -> int:
        self.room -= 1
        if self.room < 0:
            raise StorageFull(errno.ENOSPC, f"no room to store {name}")
        return super().put(name, source)


@pytest.mark.parametrize("room", [0, 1])
def test_a_full_disk_keeps_nothing(world: World, room: int) -> None:
    upload = upload_model(world.admin, world.directory)
    before = stored(world.lethe)

    def client() -> TestClient:
        full = replace(world.lethe, blobs=FullAfter(world.lethe.blobs.root, room))
        return TestClient(create_app(full), headers=dict(world.admin.headers))

    refused(upload_set(client(), "train", "no-room"), 507, "storage-full")
    refused(upload_set(client(), "forget"), 507, "storage-full")
    body = {"name": "no-room", "family": "image_classifier", "source": {"upload": upload}}
    refused(client().post("/v1/models", json=body), 507, "storage-full")
    if room == 0:
        refused(client().post("/v1/uploads", content=packed(world.directory), headers=ZIP), 507, "storage-full")
    assert stored(world.lethe) == before
    assert world.admin.post("/v1/models", json=body | {"name": f"room-{room}"}).status_code == 201


def test_a_full_disk_under_the_keys_keeps_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = stored(world.lethe)
    with monkeypatch.context() as kernel:
        kernel.setattr(os, "fsync", no_room)
        refused(ask(world.requester), 507, "storage-full")
        refused(upload_set(world.requester, "forget"), 507, "storage-full")
    assert stored(world.lethe) == before


def test_a_damaged_store_is_a_fault_that_says_nothing(world: World, tmp_path: Path) -> None:
    made = register(world, "damaged", tiny.write("vit", tmp_path / "damaged", seed=9))
    world.lethe.blobs.delete(f"manifests/{made.json()['id']}")
    problem = refused(world.admin.get("/v1/models/damaged/checkpoints"), 500, "internal-error")
    assert "manifests" not in json.dumps(problem)


def test_a_database_that_does_not_answer_is_503(world: World) -> None:
    away = replace(world.lethe, store=type(world.lethe.store)("postgresql://nobody@127.0.0.1:9/none?connect_timeout=1"))
    client = TestClient(create_app(away), headers={"Authorization": f"Bearer {key_for(world.lethe)}"})
    for path in ("/v1/models", "/readyz"):
        answer = client.get(path)
        refused(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "5"
