"""sealed pictures of reports, and which of before lie unsealed

Revision: 0016, after 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

IMAGES = {"grid.png", "prompts.png"}


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("images", sa.String(), nullable=True))
    _name_those_of_before()


def _name_those_of_before() -> None:
    """They lie unsealed among the other pictures: the sweeper erases them."""
    texts = (sa.column(name, sa.String) for name in ("id", "manifest", "images"))
    checkpoints = sa.table("checkpoints", *texts, sa.column("report", sa.JSON))
    connection = op.get_bind()
    for row in connection.execute(sa.select(checkpoints.c.id, checkpoints.c.manifest, checkpoints.c.report)).all():
        if not IMAGES.isdisjoint(row.report.get("pictures", [])):
            folder = "pictures/" + row.manifest.removeprefix("manifests/").partition(".")[0]
            connection.execute(checkpoints.update().where(checkpoints.c.id == row.id).values(images=folder))


def downgrade() -> None:
    """What lies sealed no older release opens or erases: its key goes with the operator, or with a later upgrade."""
    op.drop_column("checkpoints", "images")
