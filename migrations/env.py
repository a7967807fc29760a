"""Alembic's entry: the metadata of app.records, on the connection that `lethe migrate` hands over."""

from alembic import context
from sqlalchemy import create_engine

from app.records import Record
from app.settings import settings


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _upgrade(connection)
        return
    url = settings().database.replace("postgresql://", "postgresql+psycopg://", 1)
    with create_engine(url).connect() as fresh:
        _upgrade(fresh)
        fresh.commit()


def _upgrade(connection: object) -> None:
    context.configure(connection=connection, target_metadata=Record.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
