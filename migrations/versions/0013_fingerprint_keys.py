"""named keys with a lifetime, and which of them a tombstone was made with

Revision: 0013, after 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

FIRST = "fingerprint"  # the key of all digests so far
MARKED = ("tombstones", "held_tombstones")


def upgrade() -> None:
    postgres = op.get_bind().dialect.name == "postgresql"
    for table in MARKED:
        op.add_column(table, sa.Column("key_name", sa.String(), nullable=False, server_default=FIRST))
        if postgres:  # SQLite would have to make the table anew
            op.alter_column(table, "key_name", server_default=None)
    named_keys = op.create_table(
        "named_keys",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("check_value", sa.String(), nullable=True),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.Column("current_since", sa.Double(), nullable=True),
        sa.Column("retired_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_named_keys")),
    )
    clock = "extract(epoch from now())" if postgres else "(julianday('now') - 2440587.5) * 86400.0"
    first_used = op.get_bind().scalar(sa.text("SELECT min(created_at) FROM datasets"))
    since = first_used or float(op.get_bind().scalar(sa.text(f"SELECT {clock}")) or 0)
    op.bulk_insert(
        named_keys,
        [{"name": name, "purpose": name, "made_at": since, "current_since": since} for name in (FIRST, "hmac")],
    )


def downgrade() -> None:
    """Tombstones of later keys go: the schema before could not tell them from the first key's."""
    op.drop_table("named_keys")
    for table in MARKED:
        op.execute(f"DELETE FROM {table} WHERE key_name <> '{FIRST}'")
        op.drop_column(table, "key_name")
