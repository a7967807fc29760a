"""whose key may change a model

Revision: 0018, after 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

SCOPE = "models:admin"


def upgrade() -> None:
    op.add_column("models", sa.Column("owner", sa.String(), nullable=False, server_default=""))
    op.execute("UPDATE models SET owner = created_by")
    _give_admins_the_new_scope()


def _give_admins_the_new_scope() -> None:
    """Else nobody could change what a key registered that has left."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("role", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys.c.id, keys.c.scopes).where(keys.c.role == "admin")).all():
        if SCOPE not in key.scopes:
            connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=[*key.scopes, SCOPE]))


def downgrade() -> None:
    op.drop_column("models", "owner")
