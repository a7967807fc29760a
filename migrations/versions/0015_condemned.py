"""since when a condemned blob is known to be: jobs that started before may still read it

Revision: 0015, after 0014
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("erasures", sa.Column("condemned_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("erasures", "condemned_at")
