"""aliases and their moves

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCOPE = "requests:reopen"


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("move_id", sa.Integer(), nullable=False),
        sa.Column("moved_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_aliases_model_id")),
        sa.ForeignKeyConstraint(
            ["model_id", "version"],
            ["checkpoints.model_id", "checkpoints.number"],
            name=op.f("fk_aliases_model_id_version"),
        ),
        sa.PrimaryKeyConstraint("model_id", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "alias_moves",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("from_version", sa.Integer(), nullable=True),
        sa.Column("to_version", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("reopened", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_alias_moves_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_moves")),
    )
    with op.batch_alter_table("alias_moves", schema=None) as batch_op:
        batch_op.create_index("ix_alias_moves_model_id_name_id", ["model_id", "name", "id"], unique=False)
    _forbid_changes_of_moves()
    _give_admins_the_new_scope()


def _forbid_changes_of_moves() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION alias_moves_are_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'alias_moves is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER alias_moves_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON alias_moves "
            "FOR EACH STATEMENT EXECUTE FUNCTION alias_moves_are_append_only()"
        )
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER alias_moves_no_{verb.lower()} BEFORE {verb} ON alias_moves "
            "BEGIN SELECT RAISE(ABORT, 'alias_moves is append-only'); END"
        )


def _give_admins_the_new_scope() -> None:
    """An admin may do everything, and a key that lacks a scope of its role could make no other key of it."""
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("role", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys.c.id, keys.c.scopes).where(keys.c.role == "admin")).all():
        if SCOPE not in key.scopes:
            connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=[*key.scopes, SCOPE]))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION alias_moves_are_append_only() CASCADE")
    op.drop_table("alias_moves")
    op.drop_table("aliases")
