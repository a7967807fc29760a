"""the life of a request: what it waits for, who decided, its regime and its extension

Revision: 0010, after 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

NEW_SCOPES = {"admin": ("requests:verify", "requests:approve"), "approver": ("requests:approve",)}
NO_STEPS = '{"verification": "none", "approval": "none"}'
REQUESTS = (
    ("needs", sa.JSON(), "[]"),
    ("regime", sa.String(), "other"),
    ("verification", sa.JSON(), None),
    ("decision", sa.JSON(), None),
    ("extension", sa.JSON(), None),
)


def upgrade() -> None:
    op.add_column("models", sa.Column("process", sa.JSON(), nullable=False, server_default=NO_STEPS))
    for name, kind, default in REQUESTS:
        op.add_column("requests", sa.Column(name, kind, nullable=default is None, server_default=default))
    op.create_index("ix_requests_due_at_id", "requests", ["due_at", "id"])
    _give_roles_their_new_scopes()


def _give_roles_their_new_scopes() -> None:
    """A key made before may do what its role says now."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("role", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys).where(keys.c.role.in_(NEW_SCOPES))).all():
        lacking = [scope for scope in NEW_SCOPES[key.role] if scope not in key.scopes]
        connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=[*key.scopes, *lacking]))


def downgrade() -> None:
    """A request that waits for a person, or that one ended, counts as cancelled: the schema of before knows no such thing."""
    waiting = "status IN ('awaiting_verification', 'awaiting_approval', 'denied', 'expired')"
    op.execute(
        f"UPDATE requests SET status = 'cancelled', finished_at = COALESCE(finished_at, created_at) WHERE {waiting}"
    )
    op.drop_index("ix_requests_due_at_id", "requests")
    for name, *_ in REQUESTS:
        op.drop_column("requests", name)
    op.drop_column("models", "process")
