"""evaluators of a model beside its judge

Revision: 0008, after 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("models", schema=None) as batch_op:
        batch_op.add_column(sa.Column("evaluators", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("models", "evaluators")
