"""the audit: history rows numbered and hash-linked

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("history_id", sa.Integer(), nullable=False),
        sa.Column("leaf", sa.LargeBinary(), nullable=False),
        sa.Column("link", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["history_id"], ["history.id"], name=op.f("fk_audit_history_id")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit")),
        sa.UniqueConstraint("history_id", name=op.f("uq_audit_history_id")),
    )
    op.create_table(
        "audit_queue",
        sa.Column("history_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["history_id"], ["history.id"], name=op.f("fk_audit_queue_history_id")),
        sa.PrimaryKeyConstraint("history_id", name=op.f("pk_audit_queue")),
    )
    if op.get_bind().dialect.name == "postgresql":
        _guard_on_postgres()
    else:
        _guard_on_sqlite()
    op.execute("INSERT INTO audit_queue (history_id) SELECT id FROM history")
    _rename_scope("history:read", "audit:read")


def _guard_on_postgres() -> None:
    op.execute(
        "CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'audit is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_append_only()"
    )
    op.execute(
        "CREATE FUNCTION history_waits() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO audit_queue (history_id) VALUES (NEW.id); RETURN NULL; END $$"
    )
    op.execute("CREATE TRIGGER history_waits AFTER INSERT ON history FOR EACH ROW EXECUTE FUNCTION history_waits()")


def _guard_on_sqlite() -> None:
    """REPLACE deletes without firing the DELETE trigger, so that an id that was there before is refused on INSERT."""
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END"
        )
    op.execute(
        "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit "
        "WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq OR history_id = NEW.history_id) "
        "BEGIN SELECT RAISE(ABORT, 'audit is append-only'); END"
    )
    op.execute(
        "CREATE TRIGGER history_waits AFTER INSERT ON history BEGIN "
        "SELECT RAISE(ABORT, 'history is append-only') WHERE EXISTS (SELECT 1 FROM audit WHERE history_id = NEW.id) "
        "OR EXISTS (SELECT 1 FROM audit_queue WHERE history_id = NEW.id); "
        "INSERT INTO audit_queue (history_id) VALUES (NEW.id); END"
    )


def _rename_scope(old: str, new: str) -> None:
    keys = sa.table("api_keys", sa.column("id", sa.String), sa.column("scopes", sa.JSON))
    connection = op.get_bind()
    for key in connection.execute(sa.select(keys.c.id, keys.c.scopes)).all():
        if old in key.scopes:
            scopes = [new if scope == old else scope for scope in key.scopes]
            connection.execute(keys.update().where(keys.c.id == key.id).values(scopes=scopes))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION history_waits() CASCADE")
        op.execute("DROP FUNCTION audit_is_append_only() CASCADE")
    else:
        op.execute("DROP TRIGGER history_waits")
    op.drop_table("audit_queue")
    op.drop_table("audit")
    _rename_scope("audit:read", "history:read")
