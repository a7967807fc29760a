"""What every table shares: names for constraints, ids that sort by time, and the database's own clock.

Times are seconds since 1970 (UTC) as doubles, on both databases alike; the API renders them as RFC 3339.
"""

import secrets
import time
from typing import Any

from sqlalchemy import JSON, CursorResult, Delete, Double, MetaData, Update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class Record(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON, float: Double}


def new_id(prefix: str) -> str:
    """An id whose text order is its order of creation: 48 bits of milliseconds, 64 random bits."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def changed(session: Session, statement: Update) -> bool:
    """Run a conditional UPDATE. Whether it changed a row; loaded records are not touched."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount > 0


def deleted(session: Session, statement: Delete) -> int:
    """Run a DELETE. How many rows went; loaded records are not touched."""
    result = session.execute(statement.execution_options(synchronize_session=False))
    assert isinstance(result, CursorResult)
    return result.rowcount


class now(FunctionElement[float]):  # noqa: N801  (used as an SQL function)
    """The database's clock at the moment the statement runs, in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
