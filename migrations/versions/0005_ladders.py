"""ladders: jobs carry what they run, requests a list of it, models their own list

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NEW = (
    ("requests", "ladder", sa.JSON(), "[]"),
    ("jobs", "method", sa.String(), ""),
    ("jobs", "recipe", sa.JSON(), "{}"),
    ("jobs", "rung", sa.Integer(), "0"),
    ("jobs", "retry", sa.Integer(), "0"),
)
REQUESTS = sa.table("requests", *(sa.column(name, sa.String) for name in ("id", "method")),
                    *(sa.column(name, sa.JSON) for name in ("recipe", "ladder")))  # fmt: skip
JOBS = sa.table("jobs", *(sa.column(name, sa.String) for name in ("id", "request_id", "method")),
                sa.column("recipe", sa.JSON), sa.column("retry", sa.Integer))  # fmt: skip


def upgrade() -> None:
    op.add_column("models", sa.Column("ladder", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("unlearning_seconds", sa.Double(), nullable=True))
    for table, name, kind, default in NEW:
        op.add_column(table, sa.Column(name, kind, nullable=False, server_default=default))
    _fill()
    if op.get_bind().dialect.name == "postgresql":  # SQLite would have to make tables anew that others refer to
        for table, name, *_ in NEW:
            op.alter_column(table, name, server_default=None)
    op.drop_column("requests", "recipe")
    op.create_index("uq_jobs_request_id_retry_rung", "jobs", ["request_id", "retry", "rung"], unique=True)


def _fill() -> None:
    """Every request of before named one method, and its jobs were tries of it."""
    connection = op.get_bind()
    tries: dict[str, int] = {}
    asked = {row.id: row for row in connection.execute(sa.select(REQUESTS.c.id, REQUESTS.c.method, REQUESTS.c.recipe))}
    for row in asked.values():
        ladder = [{"method": row.method, "recipe": row.recipe}]
        connection.execute(REQUESTS.update().where(REQUESTS.c.id == row.id).values(ladder=ladder))
    for job in connection.execute(sa.select(JOBS.c.id, JOBS.c.request_id).order_by(JOBS.c.id)).all():
        row, retry = asked[job.request_id], tries.get(job.request_id, 0)
        tries[job.request_id] = retry + 1
        filled = JOBS.update().where(JOBS.c.id == job.id)
        connection.execute(filled.values(method=row.method, recipe=row.recipe, retry=retry))


def downgrade() -> None:
    """A request of method auto goes back to its first rung."""
    op.drop_index("uq_jobs_request_id_retry_rung", "jobs")
    op.add_column("requests", sa.Column("recipe", sa.JSON(), nullable=False, server_default="{}"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(REQUESTS.c.id, REQUESTS.c.ladder)).all():
        connection.execute(REQUESTS.update().where(REQUESTS.c.id == row.id).values(**row.ladder[0]))
    if connection.dialect.name == "postgresql":
        op.alter_column("requests", "recipe", server_default=None)
    for column in ("unlearning_seconds", "retry", "rung", "recipe", "method"):
        op.drop_column("jobs", column)
    op.drop_column("requests", "ladder")
    op.drop_column("models", "ladder")
