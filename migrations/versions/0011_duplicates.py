"""what a request asks, as a keyed digest: earlier requests for the same are told

Revision: 0011, after 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Requests of before have none: they duplicate nothing."""
    op.add_column("requests", sa.Column("fingerprint", sa.String(), nullable=True))
    op.create_index(op.f("ix_requests_fingerprint"), "requests", ["fingerprint"])


def downgrade() -> None:
    op.drop_index(op.f("ix_requests_fingerprint"), "requests")
    op.drop_column("requests", "fingerprint")
