"""One deployment per test module and database: tests of the API name their own things and share the rest."""

from collections.abc import Iterator

import pytest

from app import migration
from app.deployment import deploy
from app.settings import Settings
from tests import services
from tests.app.api.deployed import World, build


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Migrated, without a worker and without the sweeper."""
    folder = tmp_path_factory.mktemp("world")
    url = "" if request.param == "sqlite" else services.fresh_database(request.getfixturevalue("postgres_server"))
    (folder / "roots").mkdir()
    lethe = deploy(Settings(data=folder / "lethe", database_url=url, model_roots=str(folder / "roots")))
    migration.upgrade(lethe.store)
    yield build(lethe, folder)
    lethe.store.close()
