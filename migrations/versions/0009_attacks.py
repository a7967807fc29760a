"""attacks after the fact: jobs of another kind, and what they found

Revision: 0009, after 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

RUNGS = ("uq_jobs_request_id_retry_rung", "jobs", ["request_id", "retry", "rung"])
OF_RUNGS = sa.text("kind = 'unlearn'")
OF_ATTACKS = "SELECT id FROM jobs WHERE kind = 'attack'"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("kind", sa.String(), nullable=False, server_default="unlearn"))
    op.add_column("jobs", sa.Column("checkpoint_id", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("created_by", sa.String(), nullable=True))
    if op.get_bind().dialect.name == "postgresql":  # SQLite would have to make the table anew, and others refer to it
        op.alter_column("jobs", "kind", server_default=None)
    op.drop_index(RUNGS[0], "jobs")
    op.create_index(*RUNGS, unique=True, sqlite_where=OF_RUNGS, postgresql_where=OF_RUNGS)
    op.create_table(
        "attack_results",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("checkpoint_id", sa.String(), nullable=False),
        sa.Column("rows", sa.JSON(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attack_results_job_id_jobs")),
        sa.ForeignKeyConstraint(["request_id"], ["requests.id"], name=op.f("fk_attack_results_request_id_requests")),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"], ["checkpoints.id"], name=op.f("fk_attack_results_checkpoint_id_checkpoints")
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_attack_results")),
    )
    op.create_index(op.f("ix_attack_results_request_id"), "attack_results", ["request_id"])


def downgrade() -> None:
    """Attack jobs go, with what they told and found."""
    op.drop_table("attack_results")
    op.execute(f"DELETE FROM job_events WHERE job_id IN ({OF_ATTACKS})")
    op.execute("DELETE FROM jobs WHERE kind = 'attack'")
    op.drop_index(RUNGS[0], "jobs")
    op.create_index(*RUNGS, unique=True)
    for column in ("created_by", "checkpoint_id", "kind"):
        op.drop_column("jobs", column)
