"""Bring a database to the newest schema: what `lethe migrate` runs, also at the start of `lethe up`."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from app.records.session import Store

_SCRIPTS = Path(__file__).resolve().parent.parent / "migrations"


def upgrade(store: Store) -> str:
    """Run every missing migration in one transaction. Returns the revision that the database has now."""
    config = _config()
    with store.write() as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")
    return newest()


def newest() -> str:
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def present(store: Store) -> str | None:
    """The database's revision; None for an empty one."""
    with store.read() as session:
        return MigrationContext.configure(session.connection()).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    return config
