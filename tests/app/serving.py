"""A real server in a thread, for tests of the client and the CLI: HTTP as it travels, without a worker."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from app import migration
from app.deployment import deploy
from app.main import create_app
from app.settings import Settings
from tests.app.api.deployed import World, build
from tests.services import free_port


@contextmanager
def served(folder: Path, **settings: object) -> Iterator[tuple[World, str]]:
    """The world of the API's tests, and the address at which it answers."""
    lethe = deploy(Settings.model_validate({"data": folder / "lethe", **settings}))
    migration.upgrade(lethe.store)
    world = build(lethe, folder)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(lethe), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield world, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def key_of(world: World) -> str:
    """The admin's key."""
    return world.admin.headers["Authorization"].removeprefix("Bearer ")
