"""Migrations: from empty to the records' own schema, on both databases, any number of times."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect

from app import migration
from app.deployment import Deployment
from app.records import Record
from app.records import api_key as api_keys


def test_the_migrated_schema_is_the_records_schema(lethe: Deployment) -> None:
    with lethe.store.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []
        tables = set(inspect(session.connection()).get_table_names())
    assert tables == {*Record.metadata.tables, "alembic_version"}


def test_upgrading_twice_changes_nothing(lethe: Deployment) -> None:
    assert migration.present(lethe.store) == migration.newest() == migration.upgrade(lethe.store)


def test_admin_keys_of_before_may_do_what_admins_may(lethe: Deployment) -> None:
    config = migration._config()
    with lethe.store.write() as session:
        for role in ("admin", "requester"):
            key, _ = api_keys.issue(session, lethe.pepper, name=role, role=role, actor="test")
            key.scopes = [scope for scope in key.scopes if scope != "requests:reopen"]
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0001")
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        assert {key.role: set(key.scopes) for key in api_keys.every(session)} == {
            role: set(api_keys.ROLES[role]) for role in ("admin", "requester")
        }


@pytest.mark.parametrize("index", ["uq_jobs_one_running_per_model", "ix_jobs_claimable"])
def test_the_indexes_that_the_engine_leans_on_exist(lethe: Deployment, index: str) -> None:
    with lethe.store.read() as session:
        names = {each["name"] for each in inspect(session.connection()).get_indexes("jobs")}
    assert index in names
