"""Migrations: from empty to the records' own schema, on both databases, any number of times."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from app import migration
from app.deployment import Deployment
from app.records import Record


def test_the_migrated_schema_is_the_records_schema(lethe: Deployment) -> None:
    with lethe.store.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []
        tables = set(inspect(session.connection()).get_table_names())
    assert tables == {*Record.metadata.tables, "alembic_version"}


def test_upgrading_twice_changes_nothing(lethe: Deployment) -> None:
    assert migration.present(lethe.store) == migration.newest() == migration.upgrade(lethe.store)


@pytest.mark.parametrize("index", ["uq_jobs_one_running_per_model", "ix_jobs_claimable"])
def test_the_indexes_that_the_engine_leans_on_exist(lethe: Deployment, index: str) -> None:
    with lethe.store.read() as session:
        names = {each["name"] for each in inspect(session.connection()).get_indexes("jobs")}
    assert index in names
