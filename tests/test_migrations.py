"""Migrations: from empty to the records' own schema, on both databases, any number of times."""

import json

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text

from app import migration, sweeper
from app.audit.sequencer import integrate
from app.deployment import Deployment
from app.key_rotation import rotate_duplicates
from app.records import Record, audit_entry, history
from app.records import api_key as api_keys
from app.records import job as jobs
from app.records import model as models
from app.records import named_key as named_keys
from app.records import tombstone as tombstones
from app.records.checkpoint import Checkpoint
from app.records.job import Job
from app.records.model import Model
from app.records.request import Request
from tests.app.records.test_attack_result import add_attack
from tests.app.records.test_job import add_job, add_model

ROLES = ("admin", "approver", "requester")
LATER = (  # scopes that roles were given by a migration
    "requests:reopen", "checkpoints:override", "requests:verify", "requests:approve", "requests:hold", "checkpoints:retire",
    "models:admin",
)  # fmt: skip


def test_the_migrated_schema_is_the_records_schema(lethe: Deployment) -> None:
    with lethe.store.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []
        tables = set(inspect(session.connection()).get_table_names())
    assert tables == {*Record.metadata.tables, "alembic_version"}


def test_upgrading_twice_changes_nothing(lethe: Deployment) -> None:
    assert migration.present(lethe.store) == migration.newest() == migration.upgrade(lethe.store)


def test_keys_of_before_may_do_what_their_roles_may(lethe: Deployment) -> None:
    config = migration._config()
    with lethe.store.write() as session:
        for role in ROLES:
            key, _ = api_keys.issue(session, lethe.pepper, name=role, role=role, actor="test")
            key.scopes = [scope for scope in key.scopes if scope not in LATER]
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0001")
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        assert {key.role: set(key.scopes) for key in api_keys.page(session, after=None, limit=9)} == {
            role: set(api_keys.ROLES[role]) for role in ROLES
        }


def test_models_of_before_have_no_evaluators(lethe: Deployment) -> None:
    config = migration._config()
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0007")
        columns = "id, name, family, labels, policy, evaluation, created_by, created_at, revision"
        session.execute(
            text(f"INSERT INTO models ({columns}) VALUES ('m', 'm', 'clip', '[]', '{{}}', '{{}}', 'k', 1, 1)")
        )
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        assert session.get_one(Model, "m").evaluators == {}


def test_requests_of_before_become_ladders_of_one_rung_and_go_back(lethe: Deployment) -> None:
    config = migration._config()
    first = add_job(lethe, add_model(lethe))
    with lethe.store.write() as session:
        request = session.scalars(select(Request)).one()
        jobs.add(session, jobs.of_rung(request, 0, 1))
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0004")
        (row,) = session.execute(text("SELECT method, recipe FROM requests")).all()
        recipe = row.recipe if isinstance(row.recipe, dict) else json.loads(row.recipe)
        assert (row.method, recipe) == ("salun", {"epochs": 1})
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        assert session.scalars(select(Request)).one().ladder == [{"method": "salun", "recipe": {"epochs": 1}}]
        found = jobs.of_request(session, request.id)
    assert [(job.method, job.recipe, job.rung, job.retry) for job in found] == [
        ("salun", {"epochs": 1}, 0, retry) for retry in (0, 1)
    ]
    assert found[0].id == first


def test_a_log_of_before_is_numbered_and_its_readers_read_on(lethe: Deployment) -> None:
    config = migration._config()
    with lethe.store.write() as session:
        key, _ = api_keys.issue(session, lethe.pepper, name="old", role="admin", actor="test")
        key.scopes = ["models:read", "history:read", "keys:write"]
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0005")
        history.write(session, "test", "thing.done", "of before")
    migration.upgrade(lethe.store)
    assert integrate(lethe.store) == 2
    with lethe.store.read() as session:
        assert [row.resource for _, row in audit_entry.between(session, 1, 9)] == [f"key:{key.id}", "of before"]
        assert api_keys.page(session, after=None, limit=1)[0].scopes[:3] == ["models:read", "audit:read", "keys:write"]
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0005")
        scopes = session.scalar(text("SELECT scopes FROM api_keys"))
        assert "history:read" in scopes and "audit:read" not in scopes


def test_tombstones_of_before_are_the_first_fingerprint_key_s_and_later_ones_go_back_with_it(lethe: Deployment) -> None:
    config = migration._config()
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0012")
        columns = "model_id, fingerprint, request_id, created_at"
        session.execute(text(f"INSERT INTO tombstones ({columns}) VALUES ('m', '{'a' * 64}', 'r', 1)"))
    migration.upgrade(lethe.store)
    with lethe.store.write() as session:
        assert tombstones.counts(session) == {"fingerprint": 1} and tombstones.of_model(session, "m") == {"a" * 64}
        assert named_keys.current(session).name == "fingerprint" and named_keys.current(session).check_value is None
        tombstones.lay(session, "m", "r", {"fingerprint-2:" + "b" * 64})
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0012")
        assert list(session.scalars(text("SELECT fingerprint FROM tombstones"))) == ["a" * 64]
    migration.upgrade(lethe.store)


def test_pictures_of_before_that_lie_unsealed_are_erased_and_curves_stay(lethe: Deployment) -> None:
    config = migration._config()
    add_attack(lethe)
    with lethe.store.write() as session:
        version = session.scalars(select(Checkpoint)).one()
        version.manifest, version.report = "manifests/job_1-1.ret_1-2", {"pictures": ["front.png", "grid.png"]}
    names = [f"pictures/job_1-1/{name}" for name in ("front.png", "grid.png")]
    for name in names:
        lethe.blobs.put(name, b"png")
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0015")
    migration.upgrade(lethe.store)
    sweeper.purge_old_data(lethe)
    assert [lethe.blobs.exists(name) for name in names] == [True, False]
    with lethe.store.read() as session:
        assert session.scalars(select(Checkpoint.images)).all() == [None]


def test_the_key_of_duplicates_is_as_old_as_the_first_request_and_what_a_later_one_made_goes_back_with_it(
    lethe: Deployment,
) -> None:
    add_job(lethe, add_model(lethe))
    config = migration._config()
    with lethe.store.write() as session:
        session.execute(text("UPDATE requests SET fingerprint = 'a', created_at = 7.0"))
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0016")
        assert session.scalar(text("SELECT fingerprint FROM requests")) == "a"
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        assert named_keys.of_duplicates(session).made_at == 7.0
    rotate_duplicates(lethe, "expired", yes=True)
    with lethe.store.write() as session:
        session.execute(text("UPDATE requests SET fingerprint = 'b'"))
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0016")
        assert session.scalar(text("SELECT fingerprint FROM requests")) is None
    migration.upgrade(lethe.store)


@pytest.mark.parametrize(
    "index", ["uq_jobs_request_id_retry_rung", "uq_jobs_one_running_per_model", "ix_jobs_claimable"]
)
def test_the_indexes_that_the_engine_leans_on_exist(lethe: Deployment, index: str) -> None:
    with lethe.store.read() as session:
        names = {each["name"] for each in inspect(session.connection()).get_indexes("jobs")}
    assert index in names


def test_attack_jobs_go_with_the_schema_that_has_them_and_rungs_stay(lethe: Deployment) -> None:
    config = migration._config()
    add_attack(lethe)
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0008")
        assert session.scalars(text("SELECT status FROM jobs")).all() == ["succeeded"]
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        assert [job.kind for job in session.scalars(select(Job))] == ["unlearn"]


def test_requests_that_wait_for_a_person_are_cancelled_by_a_schema_that_knows_none(lethe: Deployment) -> None:
    config = migration._config()
    add_job(lethe, add_model(lethe))
    with lethe.store.write() as session:
        session.scalars(select(Request)).one().status = "awaiting_approval"
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0009")
        assert session.execute(text("SELECT status, finished_at FROM requests")).one() == ("cancelled", 0.0)
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        request, model = session.scalars(select(Request)).one(), session.scalars(select(Model)).one()
    assert (request.needs, request.regime, request.extension) == ([], "other", None)
    assert model.process == {"verification": "none", "approval": "none"}


def test_models_of_before_belong_to_the_key_that_registered_them(lethe: Deployment) -> None:
    config = migration._config()
    model_id = add_model(lethe)
    with lethe.store.write() as session:
        session.get_one(Model, model_id).owner = "key:another"
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0015")
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        model = session.get_one(Model, model_id)
    assert model.owner == model.created_by == "test"


def test_models_of_before_keep_what_the_deployment_says(lethe: Deployment) -> None:
    config = migration._config()
    model_id = add_model(lethe)
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0009")
    migration.upgrade(lethe.store)
    with lethe.store.read() as session:
        model = session.get_one(Model, model_id)
    assert model.retention == {}
    assert models.retention(model, 30.0) == {"completed_days": 0, "failed_days": 30.0}


def test_no_schema_that_knows_no_retired_version_is_gone_back_to_while_there_is_one(lethe: Deployment) -> None:
    config = migration._config()
    add_attack(lethe)
    with lethe.store.write() as session:
        session.scalars(select(Checkpoint)).one().status = "retired"
    with pytest.raises(RuntimeError, match="restore a backup"), lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0013")
    assert migration.present(lethe.store) == migration.newest()
    with lethe.store.write() as session:
        session.scalars(select(Checkpoint)).one().status = "superseded"
    with lethe.store.write() as session:
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0013")
        assert "erasures" not in inspect(session.connection()).get_table_names()
    migration.upgrade(lethe.store)
