"""overrides of a verdict, and what it takes to lay their tombstones

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCOPE = "checkpoints:override"


def upgrade() -> None:
    op.create_table(
        "held_tombstones",
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_held_tombstones_checkpoint_id")),
        sa.PrimaryKeyConstraint("checkpoint_id", "fingerprint", name=op.f("pk_held_tombstones")),
    )
    with op.batch_alter_table("checkpoints", schema=None) as batch_op:
        batch_op.add_column(sa.Column("override", sa.JSON(), nullable=True))
    _give_admins_the_new_scope()


def _give_admins_the_new_scope() -> None:
    """An admin may do everything, and a key that lacks a scope of its role could make no other key of it."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("role", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys.c.id, keys.c.scopes).where(keys.c.role == "admin")).all():
        if SCOPE not in key.scopes:
            connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=[*key.scopes, SCOPE]))


def downgrade() -> None:
    op.drop_column("checkpoints", "override")
    op.drop_table("held_tombstones")
