"""the key that tells duplicates has a name, an age and a check value as the fingerprint keys have

Revision: 0017, after 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

FIRST = "duplicates"


def upgrade() -> None:
    postgres = op.get_bind().dialect.name == "postgresql"
    clock = "extract(epoch from now())" if postgres else "(julianday('now') - 2440587.5) * 86400.0"
    first_used = op.get_bind().scalar(sa.text("SELECT min(created_at) FROM requests WHERE fingerprint IS NOT NULL"))
    since = first_used or float(op.get_bind().scalar(sa.text(f"SELECT {clock}")) or 0)
    op.execute(
        sa.text("INSERT INTO named_keys (name, purpose, made_at, current_since) VALUES (:name, :name, :since, :since)")
        .bindparams(name=FIRST, since=since)
    )  # fmt: skip


def downgrade() -> None:
    """The schema before uses the first key's name: what a later one made matches nothing there."""
    later = sa.text("SELECT count(*) FROM named_keys WHERE purpose = :name").bindparams(name=FIRST)
    if (op.get_bind().scalar(later) or 0) > 1:
        op.execute("UPDATE requests SET fingerprint = NULL")
    op.execute(sa.text("DELETE FROM named_keys WHERE purpose = :name").bindparams(name=FIRST))
