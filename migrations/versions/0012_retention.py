"""retention per model, legal holds, and what proves a purge

Revision: 0012, after 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SCOPE, ROLES = "requests:hold", ("admin", "approver")


def upgrade() -> None:
    op.add_column("models", sa.Column("retention", sa.JSON(), nullable=False, server_default="{}"))
    if op.get_bind().dialect.name == "postgresql":  # SQLite would have to make the table anew, and others refer to it
        op.alter_column("models", "retention", server_default=None)
    op.create_table(
        "legal_holds",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name=op.f("fk_legal_holds_request_id")),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_legal_holds")),
    )
    op.create_table(
        "purge_proofs",
        sa.Column("resource", sa.String(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("resource", name=op.f("pk_purge_proofs")),
    )
    _give_the_new_scope()


def _give_the_new_scope() -> None:
    """A key that lacks a scope of its role could make no other key of it."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("role", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys.c.id, keys.c.scopes).where(keys.c.role.in_(ROLES))).all():
        if SCOPE not in key.scopes:
            connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=[*key.scopes, SCOPE]))


def downgrade() -> None:
    """Holds end with the schema that has them: lift none by accident, and downgrade only when none stands."""
    op.drop_table("purge_proofs")
    op.drop_table("legal_holds")
    op.drop_column("models", "retention")
