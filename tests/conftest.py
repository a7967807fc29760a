"""Shared fixtures: every database test runs on SQLite and on a real Postgres."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from app import migration
from app.deployment import Deployment, deploy
from app.main import create_app
from app.records import api_key as api_keys
from app.settings import Settings
from tests import services

torch.set_num_threads(1)  # the networks are tiny: threads cost more than they bring, most of all on a busy machine


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with services.postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with services.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Empty: SQLite in the data folder."""
    if request.param == "sqlite":
        return ""
    return services.fresh_database(request.getfixturevalue("postgres_server"))


@pytest.fixture
def lethe(tmp_path: Path, database_url: str) -> Iterator[Deployment]:
    """A migrated deployment without a worker."""
    roots = tmp_path / "models"
    roots.mkdir()
    deployment = deploy(Settings(data=tmp_path / "lethe", database_url=database_url, model_roots=str(roots)))
    migration.upgrade(deployment.store)
    yield deployment
    deployment.store.close()


def key_for(lethe: Deployment, role: str = "admin") -> str:
    with lethe.store.write() as session:
        return api_keys.issue(session, lethe.pepper, name=role, role=role, actor="test")[1]


def client_for(lethe: Deployment, role: str = "admin") -> TestClient:
    headers = {"Authorization": f"Bearer {key_for(lethe, role)}"}
    return TestClient(create_app(lethe), headers=headers, raise_server_exceptions=False)


@pytest.fixture
def client(lethe: Deployment) -> TestClient:
    """An admin's HTTP client."""
    return client_for(lethe)
