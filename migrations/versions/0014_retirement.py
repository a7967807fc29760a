"""retired versions, and the blobs that went with them

Revision: 0014, after 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

SCOPE, ROLES = "checkpoints:retire", ("admin", "owner")


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("retired", sa.JSON(), nullable=True))
    op.create_table(
        "erasures",
        sa.Column("blob", sa.String(), nullable=False),
        sa.Column("retirement", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("erased_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("blob", name=op.f("pk_erasures")),
    )
    op.create_index(op.f("ix_erasures_retirement"), "erasures", ["retirement"])
    op.create_index(op.f("ix_erasures_erased_at"), "erasures", ["erased_at"])
    _give_the_new_scope()


def _give_the_new_scope() -> None:
    """A key that lacks a scope of its role could make no other key of it."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("role", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys.c.id, keys.c.scopes).where(keys.c.role.in_(ROLES))).all():
        if SCOPE not in key.scopes:
            connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=[*key.scopes, SCOPE]))


def downgrade() -> None:
    """Refused while a version is retired: its weights do not come back, and an older release would look for them."""
    checkpoints = sa.table("checkpoints", sa.column("status", sa.String))
    if op.get_bind().execute(sa.select(checkpoints).where(checkpoints.c.status == "retired").limit(1)).first():
        raise RuntimeError("a version is retired, which an older release does not know: restore a backup instead")
    op.drop_table("erasures")
    op.drop_column("checkpoints", "retired")
